"""From finished runs to what their pages show: tables opened for the viewer, and decoders for a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from tokenclean.errors import ModelError, RunFolderError
from tokenclean.experiment.finished.finished_run import FinishedRun, tokenizer_name
from tokenclean.experiment.run_files import KEPT, NOISE, RECIPE
from tokenclean.models.loading.token_decoder import load_decoder
from tokenclean.report.viewer.page_data import View, ViewedTable, open_view
from tokenclean.report.viewer.ranked_table import Sample
from tokenclean.report.viewer.token_spans import SpanDecoder


def open_tables(
    places: Sequence[Path],
    *,
    model: str | None = None,
    trusted: tuple[str, ...] = (),
    sample: Sample | None = None,
) -> View:
    """Open one table, or two to compare, for the viewer, with the tokenizer of ``model``, by default the base that the
    first table names. Raises as ``tokenizer_name``, ``load_decoder`` and ``open_view``."""
    tokenizer = tokenizer_of(places[0], model, trusted)
    names = [_table_name(place) for place in places]
    if len(set(names)) < len(names):
        names = [str(place) for place in places]
    tables = [ViewedTable.of_file(name, place, noise_of(place)) for name, place in zip(names, places, strict=True)]
    return open_view(tables, tokenizer, sample)


def tokenizer_of(table: Path, model: str | None = None, trusted: tuple[str, ...] = ()) -> Tokenizer:
    """The tokenizer of ``model``, by default of the base that the table names. Raises as ``tokenizer_name`` and
    ``load_decoder``."""
    name, revision = (model, None) if model is not None else tokenizer_name(table)
    return load_decoder(name, revision, trusted)


def view_title(view: View) -> str:
    """The title of the viewer's page."""
    return f"Tokens of {' and '.join(table.name for table in view.tables)}"


def with_names(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs of one report: where there are several, numbered and with different names.

    A name is that of the run's folder, or where these are equal the whole path as given. Raises RunFolderError for a
    folder that is given twice.
    """
    if len(runs) == 1:
        return list(runs)
    names = [run.name for run in runs]
    named = []
    for number, run in enumerate(runs, start=1):
        name = str(run.place) if names.count(run.name) > 1 else run.name
        if name in (other.name for other in named):
            raise RunFolderError(f"{run.place}: is given twice")
        named.append(replace(run, name=name, number=number))
    return named


def decoder_of(
    run: FinishedRun, note: Callable[[str], None], *, model: str | None = None, trusted: tuple[str, ...] = ()
) -> SpanDecoder | None:
    """The decoder of a run that has a table; None, with a note, where the base's tokenizer cannot be loaded.

    Raises ModelError where that of ``model`` cannot.
    """
    name, revision = (model, None) if model else tokenizer_name(next(iter(run.kept_tables().values())))
    try:
        return SpanDecoder(load_decoder(name, revision, trusted))
    except ModelError as error:
        if model is not None:
            raise
        note(f"{run.name}: token examples omitted: could not load the tokenizer (--model names another): {error}")
        return None


def _table_name(table: Path) -> str:
    """A table's name for a reader: the strategy for a run's table, else the file's name."""
    return table.parent.name if _is_of_run(table) else table.stem


def noise_of(table: Path) -> Mapping[str, float]:
    """Row id -> the noise rate that a run's strategy estimated; empty for other tables and strategies."""
    document = table.parent.parent / NOISE
    if not _is_of_run(table) or not document.is_file():
        return {}
    rows = json.loads(document.read_text(encoding="utf-8")).get(table.parent.name, {}).get("rows", {})
    return {name: rate for name, rate in rows.items() if rate is not None}


def _is_of_run(table: Path) -> bool:
    return table.name == KEPT and (table.parent.parent / RECIPE).is_file()
