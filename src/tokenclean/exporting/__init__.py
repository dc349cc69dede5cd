"""The cleaned data for other trainers: one canonical file, and a small writer for each trainer."""

from tokenclean.exporting.cleaned_file import CleanedDataset, read_cleaned, write_cleaned
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.export import WRITERS, ExportResult, export
from tokenclean.exporting.kept_counts import CleanedCounts, SourceCounts
from tokenclean.exporting.model_name import ModelName
from tokenclean.exporting.upload import push_folder

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
