"""A data-set repository of the Hub: every canonical column, float weights included, and a card."""

from __future__ import annotations

from pathlib import Path

from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card

_DATA_FILE = "data/train-00000-of-00001.parquet"


def write_hf(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """One Parquet file, named as on the Hub; ``datasets.load_dataset(folder)`` reads it."""
    (folder / "data").mkdir()
    cleaned.write_columns(cleaned.rows.column_names, folder / _DATA_FILE, with_counts=True)
    return """python -c 'from datasets import load_dataset; print(load_dataset(".", split="train"))'"""
