"""From scores to cleaned token labels: pure functions over per-token columns (section 4.2)."""

from tokenclean.selection.agreement import LabelNoise, auroc, jaccard, label_noise
from tokenclean.selection.selectors import kept_count, lowest_kept, select_tokens
from tokenclean.selection.streaming import Cut, find_cut, mask_of, write_kept

__all__ = [
    "Cut",
    "LabelNoise",
    "auroc",
    "find_cut",
    "jaccard",
    "kept_count",
    "label_noise",
    "lowest_kept",
    "mask_of",
    "select_tokens",
    "write_kept",
]
