"""A canonical cleaned file of random rows, some longer than trainers' defaults."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from fed_rows import LENGTHS, Row, rows_fed

from tokenclean.exporting import Card, CleanedCounts, ModelName, write_cleaned
from tokenclean.ragged import Ragged
from tokenclean.token_table import TokenTable

CARD = Card(
    title="Cleaned rows",
    base=ModelName("org/base", "v1"),
    strategy="fixed_model",
    counts=CleanedCounts(()),
    template="tulu",
    max_length=2048,
    tokenclean_version="0.1.0",
)


def write_cleaned_rows(path: Path, *, with_floats: bool = False) -> None:
    """Rows for the tiny model (600 ids), about half of whose tokens are kept; the end token is 0, as is padding.

    ``with_floats``: the kept tokens have weights from 0.05 to 2, else 1.
    """
    generator = np.random.default_rng(3)
    ids = [generator.integers(1, 600, length) for length in LENGTHS]
    is_kept = [generator.random(length) < 0.5 for length in LENGTHS]
    for row, own in zip(is_kept, ids, strict=True):
        row[0], row[-1], own[-1] = False, True, 0
    is_kept[2][:1024] = False
    columns = {
        "input_ids": Ragged.from_rows(ids, np.int64),
        "is_response": Ragged.from_rows([np.arange(length) > 0 for length in LENGTHS], np.bool_),
        "is_kept": Ragged.from_rows(is_kept, np.bool_),
    }
    if with_floats:
        kept = columns["is_kept"]
        columns["weight"] = kept.with_values(kept.values * generator.uniform(0.05, 2, len(kept.values)))
    names = tuple(f"row-{n}" for n in range(len(LENGTHS)))
    write_cleaned(TokenTable(names, ("pool",) * len(names), columns), path)


def expected_rows(path: Path, column: str = "labels") -> Counter[Row]:
    """Every row of a canonical file, once, as its ids and this column."""
    rows = pq.read_table(path, columns=["input_ids", column]).to_pylist()
    return rows_fed([(row["input_ids"], row[column]) for row in rows])
