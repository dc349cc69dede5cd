"""DS² over a recipe's pool: what the correction changed, how raters agree, which rows are selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenclean.ds2.curated_pool import CuratedPool, curate_pool
from tokenclean.ds2.label_correction import neighbour_votes
from tokenclean.ds2.ratings import CLASSES
from tokenclean.ds2.selection import rank_correlation, shared_selection
from tokenclean.ds2.transition_matrix import second_opinion
from tokenclean.errors import MissingExtraError
from tokenclean.executors import LOCAL, Executor
from tokenclean.experiment.run_files import CURATION
from tokenclean.observer import Observer
from tokenclean.pool.recipe_pool import open_mixture
from tokenclean.recipe import Recipe
from tokenclean.report.plots.ratings import RaterFigures, ratings_plot, transition_plot
from tokenclean.report.tables import Table, share_text
from tokenclean.store import Store, atomic_path, write_json

MOVED = 10
"""How many conversations are shown, those whose ratings moved most."""

_EXCERPT = 60
_LABELS = tuple(map(str, range(CLASSES)))


@dataclass(frozen=True)
class CurateResult:
    """``folder``: everything as files; ``tables``: to be shown; ``sentences``: what was changed and selected."""

    folder: Path
    tables: tuple[Table, ...]
    sentences: tuple[str, ...]


def curate(recipe: Recipe, store: Store, observer: Observer | None = None, executor: Executor = LOCAL) -> CurateResult:
    """Correct the ratings of the recipe's pool and select its best rows: ``pool.curation.rows`` of them, else
    ``cleaning.ds2_rows``.

    Writes ``curation/`` in the run folder: ``rows.parquet`` (every row with raw and curated labels of every rater,
    confidence, long-tail score, and rank among the selected), the tables as Markdown, and with matplotlib plots of
    the labels and of the transition matrices, with their data as CSV. ``executor``: who compares and embeds rows.
    Raises what ``curate_pool`` raises.
    """
    observer = observer or Observer()
    listing = store.root / "rejected.jsonl"
    pool = open_mixture(recipe, listing=listing, note=observer.note, executor=executor).pool
    curated = curate_pool(pool, recipe, store, observer, executor)
    settings = recipe.pool.curation
    wanted = (settings.rows if settings is not None else None) or recipe.cleaning.ds2_rows
    count = min(wanted, len(pool))
    selection = curated.selection(count)
    tables = [_distribution(curated), *_transitions(curated), *_selection_tables(curated, count)]
    document = curation_document(curated, count)
    folder = store.root / "curation"
    folder.mkdir(parents=True, exist_ok=True)
    _write_rows(curated, selection, folder / "rows.parquet")
    write_json(folder / CURATION, document)
    texts = {"tables.md": "\n".join(table.to_markdown() for table in tables), "recipe.yaml": recipe.to_yaml()}
    for name, text in {**texts, **_plots(document["raters"], observer)}.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return CurateResult(folder, tuple(tables), tuple(_sentences(curated, selection)))


def _distribution(curated: CuratedPool) -> Table:
    rows = []
    for ratings in curated.ratings:
        for when, labels in (("before", ratings.raw), ("after", ratings.labels)):
            counts = np.bincount(labels, minlength=CLASSES)
            rows.append((ratings.rater, when, *(f"{count:,}" for count in counts), f"{labels.mean():.3f}"))
    note = "; ".join(
        f"{ratings.rater}: {int((~ratings.is_parsed).sum()):,} answers could not be read"
        for ratings in curated.ratings
        if not ratings.is_parsed.all()
    )
    columns = ("rater", "", *_LABELS, "mean")
    return Table("Rows by class, before and after correction", columns, tuple(rows), note, text_columns=(0, 1))


def _transitions(curated: CuratedPool) -> list[Table]:
    tables = []
    for ratings in curated.ratings:
        transition = ratings.transition
        votes = neighbour_votes(ratings.raw, curated.neighbours.first(10), CLASSES)
        other = second_opinion(ratings.raw, votes / votes.sum(axis=1, keepdims=True))
        rows = []
        for k, row in enumerate(transition.matrix):
            values = (transition.prior[k], *row, other.matrix[k, k])
            rows.append((f"true {k}", *(f"{value:.3f}" for value in values)))
        title = f"Score transition matrix of {ratings.rater}: P(rated i | true k)"
        note = (
            f"{transition.noise_rate:.1%} of the ratings are wrong by this estimate, {other.noise_rate:.1%} by "
            "cleanlab's"
        )
        columns = ("", "prior", *(f"rated {i}" for i in _LABELS), "cleanlab's P(k | k)")
        tables.append(Table(title, columns, tuple(rows), note))
    return tables


def _selection_tables(curated: CuratedPool, count: int) -> list[Table]:
    agreement = [_agreement(curated, count)] if len(curated.ratings) > 1 else []
    return [*agreement, _selected(curated, curated.selection(count)), _moved(curated)]


def _agreement(curated: CuratedPool, count: int) -> Table:
    numbers = range(len(curated.ratings))
    names = [ratings.rater for ratings in curated.ratings]
    compared = []
    for when, is_curated in (("before", False), ("after", True)):
        labels = [ratings.labels if is_curated else ratings.raw for ratings in curated.ratings]
        selections = [curated.selection(count, rater=number, is_curated=is_curated) for number in numbers]
        compared.append((when, labels, selections))
    rows, sections = [], {}
    for a, b in combinations(numbers, 2):
        sections[len(rows)] = f"{names[a]}, {names[b]}"
        for when, labels, selections in compared:
            same = share_text(float(np.mean(labels[a] == labels[b])))
            shared = share_text(shared_selection([selections[a], selections[b]]))
            rows.append((when, same, f"{rank_correlation(labels[a], labels[b]):.3f}", shared))
    if len(names) > 2:
        sections[len(rows)] = "all"
        rows += [(when, "", "", share_text(shared_selection(selections))) for when, _, selections in compared]
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
        share = share_text(chosen.sum() / of_source.sum())
        rows.append((name, f"{of_source.sum():,}", f"{chosen.sum():,}", share, *means))
    if len(rows) == 2:  # a single source, which is all
        rows = rows[1:]
    columns = ("source", "rows", "selected", "share", "label, selected", "all", "long tail, selected", "all")
    return Table(f"The {len(selection):,} rows selected by {first.rater}", columns, tuple(rows))


def _moved(curated: CuratedPool) -> Table:
    """The conversations whose label moved most, the surest first."""
    first = curated.ratings[0]
    moved = np.abs(first.labels - first.raw)
    order = np.lexsort((np.arange(len(moved)), -first.confidence, -moved))[:MOVED]
    rows = []
    for index in order[moved[order] > 0]:
        conversation = curated.pool[int(index)]
        excerpt = " ".join(" ".join(turn.content for turn in conversation.turns).split())
        if len(excerpt) > _EXCERPT:
            excerpt = excerpt[: _EXCERPT - 1] + "…"
        label = f"{first.raw[index]} → {first.labels[index]}"
        row = f"{Path(conversation.file).name}:{conversation.line}"
        rows.append((row, label, f"{first.confidence[index]:.2f}", excerpt))
    title = f"Conversations whose label by {first.rater} moved most"
    return Table(title, ("row", "label", "confidence", "text"), tuple(rows), text_columns=(0, 3))


def _sentences(curated: CuratedPool, selection: np.ndarray) -> list[str]:
    sentences = [
        f"{ratings.rater}: {int(ratings.is_error.sum()):,} of {len(ratings.raw):,} labels are taken for wrong, "
        f"{int((ratings.labels != ratings.raw).sum()):,} were replaced"
        for ratings in curated.ratings
    ]
    uncurated = curated.selection(len(selection), is_curated=False)
    shared = len(np.intersect1d(selection, uncurated)) / len(selection)
    sentences.append(
        f"{shared:.1%} of the {len(selection):,} selected rows would be selected by {curated.ratings[0].rater}'s raw "
        "labels too"
    )
    return sentences


def _write_rows(curated: CuratedPool, selection: np.ndarray, file: Path) -> None:
    rank = np.full(len(curated.pool), -1, dtype=np.int64)
    rank[selection] = np.arange(len(selection))
    columns: dict[str, object] = {
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


class CurationDocument(TypedDict):
    """A curation's JSON. ``tables``: as of ``Table.to_document``."""

    raters: list[RaterFigures]
    tables: list[dict[str, object]]


def curation_document(curated: CuratedPool, count: int) -> CurationDocument:
    """What a report shows of the curated ratings: ``raters`` (rows by class before and after, transition matrix) and
    ``tables``, of the ``count`` best rows."""
    raters: list[RaterFigures] = [
        {
            "rater": ratings.rater,
            "before": np.bincount(ratings.raw, minlength=CLASSES).tolist(),
            "after": np.bincount(ratings.labels, minlength=CLASSES).tolist(),
            "matrix": ratings.transition.matrix.tolist(),
            "noise_rate": ratings.transition.noise_rate,
        }
        for ratings in curated.ratings
    ]
    return {"raters": raters, "tables": [table.to_document() for table in _selection_tables(curated, count)]}


def _plots(raters: Sequence[RaterFigures], observer: Observer) -> dict[str, str]:
    """File name -> text: the plots as SVG, their data as CSV; without matplotlib a note says that there are none."""
    try:
        plots = [ratings_plot("ratings", raters), transition_plot("transition", raters)]
    except MissingExtraError as error:
        observer.note(f"no plots of the ratings: {error}")
        return {}
    return {name: text for plot in plots for name, text in plot.files.items()}
