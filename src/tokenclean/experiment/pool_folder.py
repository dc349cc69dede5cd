"""A recipe's pool as a folder: mixed, written, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenclean.models.loading.load import load_tokenizer, resolve_source
from tokenclean.observer import ShowProgress, no_progress
from tokenclean.pool import Intake, Mixture, Pool, RejectedRow, write_rejected, write_removed, write_row
from tokenclean.pool.intake import write_lines
from tokenclean.pool.recipe_pool import check_rendered, open_mixture, take_rows
from tokenclean.recipe import Recipe
from tokenclean.report.pool_tables import contamination_table, mixture_table, statistics_csv, statistics_table
from tokenclean.report.tables import Table
from tokenclean.store import atomic_folder, write_json
from tokenclean.tokens.statistics import PoolStatistics, pool_statistics

POOL = "pool.jsonl"


@dataclass(frozen=True)
class BuiltPool:
    """``mixture``: with ``pool.max_rows`` not yet applied; ``rows``: written; ``tables``: to be shown; ``intake``: what
    became of all rows."""

    folder: Path
    mixture: Mixture
    rows: int
    statistics: PoolStatistics
    tables: tuple[Table, ...]
    intake: Intake


def build_pool(
    recipe: Recipe,
    folder: Path,
    *,
    note: Callable[[str], None] = lambda text: None,
    progress: ShowProgress = no_progress,
) -> BuiltPool:
    """Read, filter and draw the recipe's pool as a run does, and write the rows that a run would use.

    The folder gets ``pool.jsonl`` (a row a conversation, which any command reads again), ``removed.jsonl`` and
    ``rejected.jsonl`` (rows left out, and rows that cannot be used, each with its reason), ``contamination.jsonl``
    (each row and benchmark that overlap, where they were compared), ``pool.json`` (all counts), ``tables.md``,
    ``statistics.csv`` and ``recipe.yaml``, all of them or none.

    Raises RunFolderError where the folder is there already, and as ``open_mixture`` and ``pool_statistics``; too many
    unusable rows are listed beside the folder.
    """
    with atomic_folder(folder) as place:
        source = resolve_source(
            recipe.model.base, revision=recipe.model.revision, trusted=recipe.model.trust_remote_code
        )
        tokenizer = load_tokenizer(source)  # a missing model is reported before the pool is read
        listing = folder.with_name(f"{folder.name}.rejected.jsonl")
        mixture = open_mixture(recipe, listing=listing, note=note)
        pool = take_rows(mixture.pool, recipe)
        if recipe.pool.curation is not None and recipe.pool.curation.rows is not None:
            note("pool.curation.rows is not applied here; tokenclean curate shows which rows it selects")
        note(f"counting the tokens of {len(pool):,} rows")
        report = progress("tokenize", "row")  # its clock starts here
        statistics = pool_statistics(pool, tokenizer, recipe.tokens, report)
        intake = check_rendered(mixture, recipe, *statistics.rendered, listing=listing)
        unusable = tuple(row for part in statistics.rendered for row in part.unusable)
        _write_rows(pool, mixture, unusable, place)
        tables = _tables(recipe, mixture, statistics)
        (place / "tables.md").write_text("\n".join(table.to_markdown() for table in tables), encoding="utf-8")
        (place / "statistics.csv").write_text(statistics_csv(statistics), encoding="utf-8")
        (place / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        write_json(place / "pool.json", _document(recipe, mixture, pool, statistics, intake))
    return BuiltPool(folder, mixture, len(pool), statistics, tables, intake)


def _tables(recipe: Recipe, mixture: Mixture, statistics: PoolStatistics) -> tuple[Table, ...]:
    tables = [mixture_table(mixture)]
    if mixture.contamination is not None:
        tables.append(contamination_table(mixture.contamination, recipe.pool.filters.contamination.action))
    return (*tables, statistics_table(statistics, recipe.model.base))


def _write_rows(pool: Pool, mixture: Mixture, unusable: Sequence[RejectedRow], place: Path) -> None:
    write_lines((write_row(conversation) for conversation in pool), place / POOL)
    write_removed(pool.removed, place / "removed.jsonl")
    write_rejected((*pool.rejected, *unusable), place / "rejected.jsonl")
    if mixture.contamination is not None:
        overlaps = [asdict(overlap) for overlap in mixture.contamination.overlaps]
        for overlap in overlaps:
            del overlap["row"]  # its number among the rows compared
        write_lines(overlaps, place / "contamination.jsonl")


def _document(
    recipe: Recipe, mixture: Mixture, pool: Pool, statistics: PoolStatistics, intake: Intake
) -> dict[str, object]:
    contamination = mixture.contamination
    return {
        "rows": len(pool),
        "rows_before_max_rows": len(mixture.pool),
        "rejected_rows": len(pool.rejected),
        "intake": intake.to_json(),
        "removed_rows": mixture.removed_by_filter,
        "sources": [asdict(counts) for counts in mixture.sources],
        "benchmarks": None if contamination is None else [asdict(b) for b in contamination.benchmarks],
        "uncompared_rows": None if contamination is None else contamination.unchecked,
        "tokens_of": recipe.model.base,
        "statistics": [asdict(line) for line in (*statistics.sources, statistics.total)],
    }
