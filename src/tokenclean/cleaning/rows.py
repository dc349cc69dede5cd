"""Which rows of the pool a recipe trains on, holds out and puts into each split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tokenclean.errors import PoolError, RecipeError, TemplateError
from tokenclean.pool import (
    Intake,
    Mixture,
    Pool,
    RejectedRow,
    RenderedRows,
    check_usable,
    contiguous_splits,
    heldout_rows,
    load_mixture,
    stratified_splits,
    write_rejected,
)
from tokenclean.recipe import Recipe
from tokenclean.tokens import render

_IDENTITY_TEXTS = 200


def tokens_options(recipe: Recipe) -> dict[str, Any]:
    """The recipe's arguments of ``tokenize_pool``."""
    tokens = recipe.tokens
    return {
        "template": tokens.template,
        "max_length": tokens.max_length,
        "targets": tokens.targets,
        "date": tokens.date,
    }


def sample_texts(pool: Pool, tokenizer: Any, template: str) -> list[str]:
    """Texts of the pool's first rows, on which two tokenizers are compared; tokenized rows are decoded, and rows that
    the template refuses left out."""
    texts = []
    for conversation in pool.conversations[:_IDENTITY_TEXTS]:
        if conversation.tokens is not None:
            texts.append(tokenizer.decode(conversation.tokens.input_ids))
            continue
        with suppress(TemplateError):
            texts.append(render(conversation, tokenizer, template).text)
    return texts


def open_mixture(
    recipe: Recipe, *, listing: Path | None = None, note: Callable[[str], None] = lambda text: None
) -> Mixture:
    """The rows of the recipe's sources, filtered and drawn as its ``pool`` section says, before ``pool.max_rows``.

    ``listing``: where the rows that cannot be used are written, if they are too many. Raises as ``load_mixture`` and
    ``check_usable``.
    """

    def check(pool: Pool, intake: Intake) -> None:
        _check(intake, pool.rejected, recipe, listing)

    mixture = load_mixture(recipe.pool, recipe.pool_seed, check=check, note=note)
    if removed := mixture.removed_by_filter:
        told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in removed.items())
        note(f"mixture: {len(mixture.pool):,} rows taken, {sum(removed.values()):,} left out ({told})")
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
        splits = contiguous_splits(len(rows), count)
    else:
        splits = stratified_splits([sources[row] for row in rows], count, recipe.seed)
    return [*([] if first is None else [first]), *(rows[split] for split in splits)]


def check_best_rated(count: int, rows: int) -> None:
    """Raise RecipeError where the best-rated rows would be all rows."""
    if count >= rows:
        raise RecipeError(
            f"cleaning.ds2_rows: the {count:,} best-rated of {rows:,} training rows are all of them; set it lower"
        )
