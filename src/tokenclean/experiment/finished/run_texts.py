"""The texts behind a run's table or cleaned dataset: its pool read again, in the same rows and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import yaml

from tokenclean.errors import PoolError, RunFolderError, TableError
from tokenclean.experiment.run_files import RECIPE
from tokenclean.exporting import CleanedDataset, WeightedTexts
from tokenclean.models.loading.load import load_tokenizer, resolve_source
from tokenclean.pool import Conversation
from tokenclean.pool.sources import stream_sources
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe, load_recipe
from tokenclean.token_table import TokenTable
from tokenclean.tokens import TokenizedPool, tokenize_pool


@dataclass(frozen=True)
class RunTexts:
    """``rows``: int64, the rows of the table that were found, rising. ``tokens``, ``conversations``: of these rows."""

    recipe: Recipe
    rows: np.ndarray
    tokens: TokenizedPool
    conversations: tuple[Conversation, ...]


def read_texts(results: Path, table: TokenTable, note: Callable[[str], None]) -> RunTexts:
    """Read the pool of a folder of results again, for the rows of one of its tables.

    A row that the pool no longer has, or that gives other tokens now, is left out, and ``note`` says how many are.
    Raises RunFolderError for results without a recipe, PoolError where no row is found, and as ``stream_sources`` and
    ``load_tokenizer``.
    """
    if not (results / RECIPE).is_file():
        raise RunFolderError(f"{results}: has no {RECIPE}, which says where the texts are; give a folder of a run")
    recipe = load_recipe(results / RECIPE)
    found = {row.id: row for row in _rows_of(recipe, frozenset(table.ids))}
    numbers = np.array([number for number, id in enumerate(table.ids) if id in found], dtype=np.int64)
    conversations = tuple(found[table.ids[number]] for number in numbers.tolist())
    tokens = _tokenizer_of(recipe)(conversations)
    is_same = _same_rows(table.take(numbers)["input_ids"], tokens.input_ids)
    if lost := len(table) - int(is_same.sum()):
        note(
            f"{lost:,} of {len(table):,} rows are left out: the pool no longer has them, or they give other tokens now"
        )
    if not is_same.any():
        places = ", ".join(source.place for source in recipe.pool.sources)
        raise PoolError(f"{places}: none of the run's {len(table):,} rows is there with the same tokens; run again")
    kept = np.flatnonzero(is_same)
    return RunTexts(recipe, numbers[kept], tokens.take(kept), tuple(conversations[row] for row in kept.tolist()))


def weighted_texts(cleaned: CleanedDataset) -> WeightedTexts:
    """The conversations of a cleaned dataset that a run has made, with their weights, in the order of its rows.

    Raises TableError for a dataset without a recipe, for rows that the recipe's sources do not hold any more, and for
    rows that come to other tokens; PoolError where the sources cannot be read.
    """
    stated = cleaned.metadata.get("recipe")
    if not stated:
        raise TableError(
            f"{cleaned.path}: its texts are needed, and it names no recipe to read them by; export a run folder"
        )
    recipe = Recipe.model_validate(yaml.safe_load(stated))
    ids: list[str] = cleaned.rows.column("id").to_pylist()
    found = {row.id: row for row in _rows_of(recipe, frozenset(ids))}
    if missing := [id for id in ids if id not in found]:
        raise TableError(
            f"{cleaned.path}: {len(missing):,} of {len(ids):,} rows are not in the pool any more, {missing[0]!r} "
            "first: its files have changed since the run. Run the recipe again, or restore the files"
        )
    tokenize = _tokenizer_of(recipe)
    conversations = tuple(found[id] for id in ids)
    tokens = tokenize(conversations)
    is_same = _same_rows(cleaned.column("input_ids"), tokens.input_ids)
    if not is_same.all():
        raise TableError(
            f"{cleaned.path}: row {ids[int(is_same.argmin())]!r} comes to other tokens than in the run; is "
            f"{recipe.model.base} still the same tokenizer? Run the recipe again"
        )
    return WeightedTexts(conversations, tokens, cleaned.column("token_weight"), tokenize)


def _tokenizer_of(recipe: Recipe) -> Callable[[Sequence[Conversation]], TokenizedPool]:
    """What makes tokens of conversations as the recipe's run does."""
    model, options = recipe.model, recipe.tokens.model_dump()
    tokenizer = load_tokenizer(resolve_source(model.base, revision=model.revision, trusted=model.trust_remote_code))
    return lambda conversations: tokenize_pool(conversations, tokenizer, **options)


def _rows_of(recipe: Recipe, ids: frozenset[str]) -> Iterator[Conversation]:
    trusted = [recipe.cleaning.trusted] if recipe.cleaning.trusted is not None else []
    # The trusted file may be one of the pool's, so the two are not read as one pool, in which no id may come twice.
    for row in chain(stream_sources(recipe.pool.sources), stream_sources(trusted)):
        if isinstance(row, Conversation) and row.id in ids:
            yield row


def _same_rows(first: Ragged, second: Ragged) -> np.ndarray:
    return np.array([np.array_equal(a, b) for a, b in zip(first, second, strict=True)], dtype=bool)
