"""A data-set repository of the Hub: every canonical column, float weights included, and a card."""

from __future__ import annotations

from pathlib import Path

from tokenclean.exporting.card import Card
from tokenclean.exporting.cleaned import CleanedDataset


def write_hf(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``data/train-00000-of-00001.parquet`` and ``README.md``; ``datasets.load_dataset(folder)`` reads it."""
    (folder / "data").mkdir()
    cleaned.write_columns(cleaned.rows.column_names, folder / "data" / "train-00000-of-00001.parquet", with_counts=True)
    (folder / "README.md").write_text(card.to_markdown(), encoding="utf-8")
    return """python -c 'from datasets import load_dataset; print(load_dataset(".", split="train"))'"""
