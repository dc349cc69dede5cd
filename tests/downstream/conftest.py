"""Cleaned rows longer than trainers' defaults, and what a trainer should feed its model of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fed_rows import LENGTHS, Row, rows_fed

from tokenclean.exporting import Card, CleanedCounts, ModelName, write_cleaned
from tokenclean.ragged import Ragged
from tokenclean.token_table import TokenTable


@pytest.fixture(scope="session")
def cleaned_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A canonical file of random rows for the tiny model (600 ids), about half of whose tokens are kept."""
    generator = np.random.default_rng(3)
    ids = [generator.integers(1, 600, length) for length in LENGTHS]
    is_kept = [generator.random(length) < 0.5 for length in LENGTHS]
    for row in is_kept:
        row[0], row[-1] = False, True
    is_kept[2][:1024] = False
    is_response = [np.arange(length) > 0 for length in LENGTHS]
    columns = {
        "input_ids": Ragged.from_rows(ids, np.int64),
        "is_response": Ragged.from_rows(is_response, np.bool_),
        "is_kept": Ragged.from_rows(is_kept, np.bool_),
    }
    names = tuple(f"row-{n}" for n in range(len(LENGTHS)))
    path = tmp_path_factory.mktemp("cleaned") / "cleaned.parquet"
    write_cleaned(TokenTable(names, ("pool",) * len(names), columns), path)
    return path


@pytest.fixture(scope="session")
def expected(cleaned_path: Path) -> Counter[Row]:
    """Every row of the canonical file, once."""
    rows = pq.read_table(cleaned_path, columns=["input_ids", "labels"]).to_pylist()
    return rows_fed([(row["input_ids"], row["labels"]) for row in rows])


@pytest.fixture
def card() -> Card:
    return Card(
        title="Cleaned rows",
        base=ModelName("org/base", "v1"),
        strategy="fixed_model",
        counts=CleanedCounts(()),
        template="tulu",
        max_length=2048,
        tokenclean_version="0.1.0",
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` stores inside the test's folder."""
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
