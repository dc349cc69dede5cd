"""DS² over a recipe's pool: what the correction changed, how raters agree, which rows are selected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenclean.ds2 import CLASSES, Transition, second_opinion
from tokenclean.ds2.curated_pool import CuratedPool, CuratedRatings, curate_pool
from tokenclean.ds2.label_correction import neighbour_votes
from tokenclean.ds2.rater_agreement import pair_agreements, shared_selection
from tokenclean.errors import MissingExtraError
from tokenclean.observer import Observer
from tokenclean.pool.recipe_pool import open_mixture
from tokenclean.recipe import Recipe
from tokenclean.report.plots.ratings import ratings_plot, transition_plot
from tokenclean.report.tables import Table, share_text
from tokenclean.store import Store, atomic_path, write_json

MOVED = 10
"""Conversations shown, whose ratings moved most."""

_EXCERPT = 60
_LABELS = tuple(map(str, range(CLASSES)))
CURATION = "curation.json"
"""File of a curation, and of the results of a run with one, for a report."""


@dataclass(frozen=True)
class CurateResult:
    """``folder``: everything as files; ``tables``: to be shown; ``sentences``: what was changed and selected."""

    folder: Path
    curated: CuratedPool
    tables: tuple[Table, ...]
    sentences: tuple[str, ...]


def curate(recipe: Recipe, store: Store, observer: Observer | None = None) -> CurateResult:
    """Correct the ratings of the recipe's pool and select its best rows: ``pool.curation.rows`` of them, else
    ``cleaning.ds2_rows``.

    Writes ``curation/`` in the run folder: ``rows.parquet`` (every row with raw and curated labels of every rater,
    confidence, long-tail score, and rank among the selected), the tables as Markdown, and with matplotlib plots of
    the labels and of the transition matrices, their data as CSV beside them. Raises as ``curate_pool``.
    """
    observer = observer or Observer()
    pool = open_mixture(recipe, listing=store.root / "rejected.jsonl", note=observer.note).pool
    curated = curate_pool(pool, recipe, store, note=observer.note, progress=observer.progress)
    settings = recipe.pool.curation
    wanted = (settings.rows if settings is not None else None) or recipe.cleaning.ds2_rows
    count = min(wanted, len(pool))
    selection = curated.selection(count)
    second = [_second_opinion(ratings, curated) for ratings in curated.ratings]
    tables = [_distribution(curated), *_transitions(curated, second)]
    if len(curated.ratings) > 1:
        tables.append(_agreement(curated, count))
    tables += [_selected(curated, selection), _moved(curated)]
    folder = store.root / "curation"
    folder.mkdir(parents=True, exist_ok=True)
    _write_rows(curated, selection, folder / "rows.parquet")
    with atomic_path(folder / "tables.md") as temporary:
        temporary.write_text("\n".join(table.to_markdown() for table in tables), encoding="utf-8")
    document = curation_document(curated, count)
    write_json(folder / CURATION, document)
    with atomic_path(folder / "recipe.yaml") as temporary:
        temporary.write_text(recipe.to_yaml(), encoding="utf-8")
    _plots(document, folder, observer)
    return CurateResult(folder, curated, tuple(tables), tuple(_sentences(curated, selection)))


def _second_opinion(ratings: CuratedRatings, curated: CuratedPool) -> Transition:
    votes = neighbour_votes(ratings.raw, curated.neighbours.first(10), CLASSES)
    return second_opinion(ratings.raw, votes / votes.sum(axis=1, keepdims=True))


def _distribution(curated: CuratedPool) -> Table:
    rows = []
    for ratings in curated.ratings:
        for when, labels in (("before", ratings.raw), ("after", ratings.labels)):
            counts = np.bincount(labels, minlength=CLASSES)
            rows.append((ratings.rater, when, *(f"{count:,}" for count in counts), f"{labels.mean():.3f}"))
    unread = [f"{r.rater}: {int((~r.is_parsed).sum()):,} answers could not be read" for r in curated.ratings]
    note = "; ".join(text for text, r in zip(unread, curated.ratings, strict=True) if not r.is_parsed.all())
    columns = ("rater", "", *_LABELS, "mean")
    return Table("Rows by class, before and after correction", columns, tuple(rows), note, text_columns=(0, 1))


def _transitions(curated: CuratedPool, second: list[Transition]) -> list[Table]:
    tables = []
    for ratings, other in zip(curated.ratings, second, strict=True):
        rows = [
            (
                f"true {k}",
                f"{ratings.transition.prior[k]:.3f}",
                *(f"{value:.3f}" for value in row),
                f"{other.matrix[k, k]:.3f}",
            )
            for k, row in enumerate(ratings.transition.matrix)
        ]
        title = f"Score transition matrix of {ratings.rater}: P(rated i | true k)"
        note = (
            f"{ratings.transition.noise_rate:.1%} of the ratings are wrong by this estimate, "
            f"{1 - float(np.sum(other.prior * np.diag(other.matrix))):.1%} by cleanlab's"
        )
        columns = ("", "prior", *(f"rated {i}" for i in _LABELS), "cleanlab's P(k | k)")
        tables.append(Table(title, columns, tuple(rows), note))
    return tables


def _agreement(curated: CuratedPool, count: int) -> Table:
    before = pair_agreements({r.rater: r.raw for r in curated.ratings})
    after = pair_agreements({r.rater: r.labels for r in curated.ratings})
    names = [ratings.rater for ratings in curated.ratings]
    selections = {
        when: {n: curated.selection(count, rater=i, is_curated=when == "after") for i, n in enumerate(names)}
        for when in ("before", "after")
    }
    rows, sections = [], {}
    for pair in zip(before, after, strict=True):
        sections[len(rows)] = f"{pair[0].first}, {pair[0].second}"
        for agreement, (when, chosen) in zip(pair, selections.items(), strict=True):
            shared = shared_selection([chosen[agreement.first], chosen[agreement.second]])
            correlation = f"{agreement.rank_correlation:.3f}"
            rows.append((when, share_text(agreement.exact), correlation, share_text(shared)))
    if len(names) > 2:
        sections[len(rows)] = "all"
        for when, chosen in selections.items():
            rows.append((when, "", "", share_text(shared_selection(list(chosen.values())))))
    note = (
        "same: rows with the same label; rank corr.: Spearman's of the labels; shared: of the "
        f"{count:,} rows that each would select, those that all of them would"
    )
    title = "How raters agree, before and after correction"
    return Table(title, ("raters", "same", "rank corr.", "shared"), tuple(rows), note, sections=sections)


def _selected(curated: CuratedPool, selection: np.ndarray) -> Table:
    """Rows, mean label and mean long-tail score of the selection and of the pool, source by source."""
    sources = np.array([row.source for row in curated.pool])
    is_selected = np.zeros(len(sources), dtype=bool)
    is_selected[selection] = True
    first = curated.ratings[0]
    rows = []
    for name in [*sorted(set(sources.tolist())), "all"]:
        of_source = np.ones(len(sources), dtype=bool) if name == "all" else sources == name
        chosen = of_source & is_selected
        means = [
            f"{values[part].mean():.3f}" if part.any() else "–"
            for values in (first.labels, curated.long_tail)
            for part in (chosen, of_source)
        ]
        rows.append(
            (
                name,
                f"{int(of_source.sum()):,}",
                f"{int(chosen.sum()):,}",
                share_text(chosen.sum() / of_source.sum()),
                *means,
            )
        )
    if len(rows) == 2:
        rows = rows[1:]
    columns = ("source", "rows", "selected", "share", "label, selected", "all", "long tail, selected", "all")
    return Table(f"The {len(selection):,} rows selected by {first.rater}", columns, tuple(rows))


def _moved(curated: CuratedPool) -> Table:
    """The conversations whose label moved most, the surest first."""
    first = curated.ratings[0]
    moved = np.abs(first.labels - first.raw)
    order = np.lexsort((np.arange(len(moved)), -first.confidence, -moved))[:MOVED]
    rows = []
    for place in order[moved[order] > 0]:
        conversation = curated.pool[int(place)]
        text = " ".join(turn.content for turn in conversation.turns)
        excerpt = " ".join(text.split())
        excerpt = excerpt if len(excerpt) <= _EXCERPT else excerpt[: _EXCERPT - 1] + "…"
        label = f"{first.raw[place]} → {first.labels[place]}"
        row = f"{Path(conversation.file).name}:{conversation.line}"
        rows.append((row, label, f"{first.confidence[place]:.2f}", excerpt))
    title = f"Conversations whose label by {first.rater} moved most"
    return Table(title, ("row", "label", "confidence", "text"), tuple(rows), text_columns=(0, 3))


def _sentences(curated: CuratedPool, selection: np.ndarray) -> list[str]:
    told = []
    for ratings in curated.ratings:
        changed = int((ratings.labels != ratings.raw).sum())
        told.append(
            f"{ratings.rater}: {int(ratings.is_error.sum()):,} of {len(ratings.raw):,} labels are taken for wrong, "
            f"{changed:,} were replaced"
        )
    first = curated.ratings[0]
    uncurated = curated.selection(len(selection), is_curated=False)
    shared = len(np.intersect1d(selection, uncurated)) / len(selection)
    told.append(
        f"{shared:.1%} of the {len(selection):,} selected rows would be selected by {first.rater}'s raw labels too"
    )
    return told


def _write_rows(curated: CuratedPool, selection: np.ndarray, file: Path) -> None:
    rank = np.full(len(curated.pool), -1, dtype=np.int64)
    rank[selection] = np.arange(len(selection))
    columns: dict[str, Any] = {
        "id": [row.id for row in curated.pool],
        "source": [row.source for row in curated.pool],
        "long_tail": curated.long_tail,
        "rank": pa.array(rank, mask=rank < 0),
    }
    for ratings in curated.ratings:
        for name in ("raw", "labels", "suggested", "is_error", "noisy", "confidence", "is_parsed"):
            columns[f"{ratings.rater}.{name}"] = getattr(ratings, name)
    with atomic_path(file) as temporary:
        pq.write_table(pa.table(columns), temporary)


def curation_document(curated: CuratedPool, count: int) -> dict[str, Any]:
    """What a report tells of the curated ratings: ``raters`` (rows by class before and after, transition matrix) and
    ``tables``, of the ``count`` best rows."""
    raters = [
        {
            "rater": ratings.rater,
            "before": np.bincount(ratings.raw, minlength=CLASSES).tolist(),
            "after": np.bincount(ratings.labels, minlength=CLASSES).tolist(),
            "matrix": ratings.transition.matrix.tolist(),
            "noise_rate": ratings.transition.noise_rate,
        }
        for ratings in curated.ratings
    ]
    tables = [_agreement(curated, count)] if len(raters) > 1 else []
    tables += [_selected(curated, curated.selection(count)), _moved(curated)]
    return {"raters": raters, "tables": [table.to_document() for table in tables]}


def _plots(document: Mapping[str, Any], folder: Path, observer: Observer) -> None:
    """The plots as SVG with their data as CSV; without matplotlib a note says that there are none."""
    try:
        plots = [ratings_plot("ratings", document["raters"]), transition_plot("transition", document["raters"])]
    except MissingExtraError as error:
        observer.note(f"no plots of the ratings: {error}")
        return
    for plot in plots:
        for name, text in plot.files.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
