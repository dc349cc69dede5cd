"""The texts of a cleaned dataset's rows, read again from the pool of its run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import yaml

from tokenclean.errors import TableError
from tokenclean.exporting import CleanedDataset, WeightedTexts
from tokenclean.models.loading.load import load_tokenizer, resolve_source
from tokenclean.pool import load_sources
from tokenclean.pool.recipe_pool import open_mixture
from tokenclean.recipe import Recipe
from tokenclean.tokens import tokenize_pool

if TYPE_CHECKING:
    from tokenclean.pool import Conversation
    from tokenclean.tokens import TokenizedPool


def read_texts(cleaned: CleanedDataset) -> WeightedTexts:
    """The conversations of a dataset that a run has made, with their weights, in the order of its rows.

    Raises TableError for a dataset without a recipe, for rows that the recipe's pool does not hold any more, and for
    rows that come to other tokens; PoolError where the pool's files cannot be read.
    """
    stated = cleaned.metadata.get("recipe")
    if not stated:
        raise TableError(
            f"{cleaned.path}: its texts are needed, and it names no recipe to read them by; export a run folder"
        )
    recipe = Recipe.model_validate(yaml.safe_load(stated))
    ids: list[str] = cleaned.rows.column("id").to_pylist()
    found = _conversations(recipe)
    if missing := [id for id in ids if id not in found]:
        raise TableError(
            f"{cleaned.path}: {len(missing):,} of {len(ids):,} rows are not in the pool any more, {missing[0]!r} "
            "first: its files have changed since the run. Run the recipe again, or restore the files"
        )
    source = resolve_source(recipe.model.base, revision=recipe.model.revision, trusted=recipe.model.trust_remote_code)
    tokenizer, options = load_tokenizer(source), recipe.tokens.model_dump()

    def tokenize(conversations: Sequence[Conversation]) -> TokenizedPool:
        return tokenize_pool(conversations, tokenizer, **options)

    conversations = tuple(found[id] for id in ids)
    tokens, expected = tokenize(conversations), cleaned.column("input_ids")
    for row, own in enumerate(expected):
        if not np.array_equal(own, tokens.input_ids[row]):
            raise TableError(
                f"{cleaned.path}: row {ids[row]!r} comes to other tokens than in the run; is {source} still the same "
                "tokenizer? Run the recipe again"
            )
    return WeightedTexts(conversations, tokens, cleaned.column("token_weight"), tokenize)


def _conversations(recipe: Recipe) -> dict[str, Conversation]:
    """The rows of the recipe's pool by their ids."""
    rows = list(open_mixture(recipe).pool)
    if recipe.cleaning.trusted is not None:
        rows += load_sources([recipe.cleaning.trusted])
    return {row.id: row for row in rows}
