"""The texts behind a run's table: its pool read again, in the table's rows and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from tokenclean.errors import PoolError, RunFolderError
from tokenclean.experiment.run_files import RECIPE
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
    model = recipe.model
    tokenizer = load_tokenizer(resolve_source(model.base, revision=model.revision, trusted=model.trust_remote_code))
    tokens = tokenize_pool(conversations, tokenizer, **recipe.tokens.model_dump())
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


def _rows_of(recipe: Recipe, ids: frozenset[str]) -> Iterator[Conversation]:
    trusted = [recipe.cleaning.trusted] if recipe.cleaning.trusted is not None else []
    # The trusted file may be one of the pool's, so the two are not read as one pool, in which no id may come twice.
    for row in chain(stream_sources(recipe.pool.sources), stream_sources(trusted)):
        if isinstance(row, Conversation) and row.id in ids:
            yield row


def _same_rows(first: Ragged, second: Ragged) -> np.ndarray:
    return np.array([np.array_equal(a, b) for a, b in zip(first, second, strict=True)], dtype=bool)
