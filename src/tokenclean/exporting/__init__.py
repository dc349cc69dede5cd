"""The cleaned data for other trainers: one canonical file, and a small writer for each trainer."""

from tokenclean.exporting.cleaned_file import (
    CleanedCounts,
    CleanedDataset,
    SourceCounts,
    read_cleaned,
    token_weights,
    write_cleaned,
)
from tokenclean.exporting.dataset_card import Card, ModelName
from tokenclean.exporting.export import ExportResult, export, push_folder
from tokenclean.exporting.trainers import WRITERS

__all__ = [
    "WRITERS",
    "Card",
    "CleanedCounts",
    "CleanedDataset",
    "ExportResult",
    "ModelName",
    "SourceCounts",
    "export",
    "push_folder",
    "read_cleaned",
    "token_weights",
    "write_cleaned",
]
