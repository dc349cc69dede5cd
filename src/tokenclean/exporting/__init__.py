"""The cleaned data for other trainers: one canonical file, and a small writer for each trainer."""

from tokenclean.exporting.cleaned_file import CleanedCounts, CleanedDataset, SourceCounts, read_cleaned, write_cleaned
from tokenclean.exporting.dataset_card import Card, ModelName
from tokenclean.exporting.export import ExportResult, export, push_folder
from tokenclean.exporting.trainers import WRITERS, TextWriter, TokenWriter
from tokenclean.exporting.weighted_texts import WeightedTexts

__all__ = [
    "WRITERS",
    "Card",
    "CleanedCounts",
    "CleanedDataset",
    "ExportResult",
    "ModelName",
    "SourceCounts",
    "TextWriter",
    "TokenWriter",
    "WeightedTexts",
    "export",
    "push_folder",
    "read_cleaned",
    "write_cleaned",
]
