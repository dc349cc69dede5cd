"""From finished runs to what their pages show: tables opened for the viewer, and decoders for a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tokenclean.errors import ModelError, RunFolderError
from tokenclean.experiment.finished.finished_run import KEPT, FinishedRun, tokenizer_name
from tokenclean.models.loading.load import load_tokenizer, resolve_source
from tokenclean.report.viewer.page_data import MAX_CONVERSATIONS, MAX_TOKENS, View, ViewedTable, open_view
from tokenclean.report.viewer.token_spans import SpanDecoder


def open_tables(
    places: Sequence[Path],
    *,
    model: str | None = None,
    trusted: tuple[str, ...] = (),
    max_conversations: int = MAX_CONVERSATIONS,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
) -> View:
    """One table on disk, or two, opened for the viewer with the tokenizer of ``model``, by default of the base that the
    first names. Raises as ``tokenizer_name``, ``load_tokenizer`` and ``open_view``."""
    name, revision = (model, None) if model is not None else tokenizer_name(places[0])
    tokenizer = load_tokenizer(resolve_source(name, revision=revision, trusted=trusted))
    names = [_table_name(place) for place in places]
    if len(set(names)) < len(names):
        names = [str(place) for place in places]
    tables = [ViewedTable.of_file(name, place) for name, place in zip(names, places, strict=True)]
    return open_view(tables, tokenizer, max_conversations=max_conversations, max_tokens=max_tokens, seed=seed)


def view_title(view: View) -> str:
    """Of the viewer's page."""
    return f"Tokens of {' and '.join(table.name for table in view.tables)}"


def with_names(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs with names that differ: of their folders, or where these are equal the folders as they were given.

    Raises RunFolderError for a folder that is given twice.
    """
    names = [run.name for run in runs]
    named = [replace(run, name=str(run.place)) if names.count(run.name) > 1 else run for run in runs]
    for number, run in enumerate(named):
        if run.name in (other.name for other in named[:number]):
            raise RunFolderError(f"{run.place}: is given twice")
    return named


def decoder_of(
    run: FinishedRun, note: Callable[[str], None], *, model: str | None = None, trusted: tuple[str, ...] = ()
) -> SpanDecoder | None:
    """Of the tokens of a run that has a table; where the base's tokenizer cannot be had, a note says that no token is
    told. Raises ModelError where that of ``model`` cannot."""
    if model is not None:
        return SpanDecoder(load_tokenizer(resolve_source(model, trusted=trusted)))
    name, revision = tokenizer_name(next(iter(run.kept_tables().values())))
    try:
        return SpanDecoder(load_tokenizer(resolve_source(name, revision=revision, trusted=trusted)))
    except ModelError as error:
        note(f"{run.name}: no token is told, since the tokenizer cannot be had (--model names another): {error}")
        return None


def _table_name(table: Path) -> str:
    """What to call a table: the strategy of a run's, the file's name of another."""
    return table.parent.name if table.name == KEPT and (table.parent.parent / "recipe.yaml").is_file() else table.stem
