"""The form of a dataset repository of the Hub, also for the transformers Trainer."""

from __future__ import annotations

from pathlib import Path

from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card


def write_hf(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """A data-set repository of the Hub: one Parquet file, named as there, with every canonical column."""
    (folder / "data").mkdir()
    file = folder / "data" / "train-00000-of-00001.parquet"
    cleaned.write_columns(cleaned.rows.column_names, file, with_counts=True)
    return """python -c 'from datasets import load_dataset; print(load_dataset(".", split="train"))'"""
