"""Which rows of the pool a recipe trains on, holds out and puts into each split."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from tokenclean.errors import RecipeError, TemplateError
from tokenclean.pool import Pool, contiguous_splits, heldout_rows, stratified_splits
from tokenclean.recipe import Recipe
from tokenclean.tokens import render

_IDENTITY_TEXTS = 200


def tokens_options(recipe: Recipe) -> dict[str, Any]:
    """The recipe's arguments of ``tokenize_pool``."""
    tokens = recipe.tokens
    return {"template": tokens.template, "max_length": tokens.max_length, "targets": tokens.targets}


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


def split_rows(sources: tuple[str, ...], recipe: Recipe) -> list[np.ndarray]:
    """Row numbers of each split. Raises RecipeError for more splits than rows."""
    count = recipe.cleaning.splits
    if count > len(sources):
        raise RecipeError(f"cleaning.splits: {count} splits of {len(sources)} training rows; use fewer splits")
    if recipe.cleaning.split_kind == "contiguous":
        return contiguous_splits(len(sources), count)
    return stratified_splits(sources, count, recipe.seed)
