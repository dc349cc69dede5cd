"""Cleaned rows longer than trainers' defaults, and what a trainer should feed its model of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from cleaned_rows import CARD, expected_rows, write_cleaned_rows
from fed_rows import Row

from tokenclean.exporting import Card


@pytest.fixture(scope="session")
def cleaned_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cleaned") / "cleaned.parquet"
    write_cleaned_rows(path)
    return path


@pytest.fixture(scope="session")
def expected(cleaned_path: Path) -> Counter[Row]:
    """Every row of the canonical file, once."""
    return expected_rows(cleaned_path)


@pytest.fixture
def card() -> Card:
    return CARD


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` stores inside the test's folder."""
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
