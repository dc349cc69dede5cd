"""The cleaned data for other trainers: one canonical file, and one small writer a trainer."""

from tokenclean.exporting.card import Card
from tokenclean.exporting.cleaned import CleanedDataset, read_cleaned, write_cleaned
from tokenclean.exporting.counts import CleanedCounts, SourceCounts
from tokenclean.exporting.export import WRITERS, ExportResult, export
from tokenclean.exporting.hub import push_folder
from tokenclean.exporting.model_name import ModelName

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
    "write_cleaned",
]
