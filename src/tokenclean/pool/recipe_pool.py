"""Which rows of the pool a recipe trains on, holds out and puts into each split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from tokenclean.errors import PoolError, RecipeError
from tokenclean.executors import LOCAL, Executor
from tokenclean.pool.conversation import Pool, RejectedRow, RemovedRow
from tokenclean.pool.duplicates import exact_duplicates
from tokenclean.pool.intake import Intake, RenderedRows, check_usable, write_rejected
from tokenclean.pool.mixture import Mixture, mix_pools
from tokenclean.pool.sources import load_sources
from tokenclean.pool.splits import heldout_rows, stratified_splits
from tokenclean.recipe import Recipe


def open_mixture(
    recipe: Recipe,
    *,
    listing: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
    executor: Executor = LOCAL,
) -> Mixture:
    """The rows of the recipe's sources, filtered and drawn as its ``pool`` section says, before ``pool.max_rows``.

    ``listing``: where the rows that cannot be used are written, if they are too many. Raises as ``load_sources``,
    ``check_usable`` and ``mix_pools``.
    """
    pools = [load_sources([source]) for source in recipe.pool.sources]
    rejected = [row for pool in pools for row in pool.rejected]
    _check(Intake.of(chain(*pools, rejected)), rejected, recipe, listing)
    mixture = mix_pools(pools, recipe.pool, recipe.pool_seed, note=note, executor=executor)
    if removed := mixture.removed_by_filter:
        reasons = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in removed.items())
        note(f"mixture: {len(mixture.pool):,} rows taken, {sum(removed.values()):,} left out ({reasons})")
    return mixture


def check_rendered(mixture: Mixture, recipe: Recipe, *parts: RenderedRows, listing: Path | None = None) -> Intake:
    """What became of the rows of a mixture after ``parts`` of it were rendered; it has to be usable.

    ``listing``: as in ``open_mixture``. Raises as ``check_usable``.
    """
    intake = mixture.intake.after_rendering(*parts)
    _check(intake, (*mixture.pool.rejected, *(row for part in parts for row in part.unusable)), recipe, listing)
    return intake


def _check(intake: Intake, rows: Sequence[RejectedRow], recipe: Recipe, listing: Path | None) -> None:
    try:
        check_usable(intake, recipe.pool.max_rejected_share, listing=listing)
    except PoolError:
        if listing is not None:
            write_rejected(rows, listing)
        raise


def leave_out_trusted(pool: Pool, trusted: Pool, note: Callable[[str], None]) -> Pool:
    """The pool without rows that are among the trusted ones too, which would be trained on twice or held out."""
    note(f"trusted rows: {len(trusted):,}, on which the reference is warmed up")
    repeats = exact_duplicates([*trusted, *pool])
    of_trusted = {d.row - len(trusted): d.of for d in repeats if d.of < len(trusted) <= d.row}
    if not of_trusted:
        return pool
    note(f"{len(of_trusted):,} rows of the pool are left out, since they are among the trusted ones")
    removed = (
        RemovedRow(
            *(row.id, row.source, row.file, row.line),
            filter="trusted",
            reason="the same row is among the trusted ones",
            resembles=trusted[of].id,
            original_id=row.original_id,
        )
        for row, of in ((pool[number], of) for number, of in of_trusted.items())
    )
    rest = pool.take([number for number in range(len(pool)) if number not in of_trusted])
    return replace(rest, removed=(*pool.removed, *removed))


def take_rows(pool: Pool, recipe: Recipe) -> Pool:
    """The pool cut to ``pool.max_rows`` seeded rows."""
    if recipe.pool.max_rows is not None and recipe.pool.max_rows < len(pool):
        pool = pool.take(heldout_rows(pool.sources, recipe.pool.max_rows, recipe.pool_seed))
    return pool


def split_heldout(pool: Pool, recipe: Recipe) -> tuple[Pool, Pool]:
    """The pool to train on and the held-out rows, stratified by source. Raises RecipeError for a pool too small."""
    settings = recipe.pool.heldout
    count = min(settings.rows, int(settings.max_share * len(pool)))
    if count < 2:
        raise RecipeError(
            f"pool.heldout: {settings.max_share:.0%} of {len(pool)} rows leaves {count} held-out rows, at least 2 are "
            "needed; use a larger pool or raise pool.heldout.max_share"
        )
    heldout = heldout_rows(pool.sources, count, recipe.pool_seed)
    rest = np.setdiff1d(np.arange(len(pool)), heldout)
    return pool.take(rest), pool.take(heldout)


LEAST_CHOOSING_ROWS = 20
"""Fewer rows than this decide nothing: their interval is wider than what cleaning gains."""


def split_choosing(rows: np.ndarray, sources: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``rows`` in two halves, those to choose by and the rest, stratified by source; the rest has the odd row.

    ``rows``: row numbers, int64 (N,), ascending; ``sources``: of all rows. Both halves ascend. The first is empty where
    it would have fewer than ``LEAST_CHOOSING_ROWS``.
    """
    count = len(rows) // 2
    if count < LEAST_CHOOSING_ROWS:
        return rows[:0], rows
    chosen = heldout_rows(np.array(sources)[rows].tolist(), count, seed)
    return rows[chosen], np.delete(rows, chosen)


def split_rows(sources: tuple[str, ...], recipe: Recipe, first: np.ndarray | None = None) -> list[np.ndarray]:
    """Row numbers of each split; ``first``: those of D̃_0 where they are chosen already, the rest being split.

    Raises RecipeError for more splits than rows.
    """
    count, rows = recipe.cleaning.splits, np.arange(len(sources))
    if first is not None:
        count, rows = count - 1, np.setdiff1d(rows, first)
    if count > len(rows):
        raise RecipeError(f"cleaning.splits: {count} splits of {len(rows)} training rows; use fewer splits")
    if recipe.cleaning.split_kind == "contiguous":
        splits = np.array_split(np.arange(len(rows)), count)  # the paper's: the first ones take the remainder
    else:
        splits = stratified_splits([sources[row] for row in rows], count, recipe.seed)
    return [*([] if first is None else [first]), *(rows[split] for split in splits)]
