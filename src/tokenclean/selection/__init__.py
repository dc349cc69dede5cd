"""From scores to cleaned token labels: pure functions over per-token columns (section 4.2)."""

from tokenclean.selection.agreement import LabelNoise, auroc, jaccard, label_noise
from tokenclean.selection.keys import order_keys
from tokenclean.selection.selectors import kept_count, lowest_kept, select_tokens
from tokenclean.selection.shards import RandomRanks, Shard, StoredScores
from tokenclean.selection.streaming import Cut, find_cut, mask_of, write_kept

__all__ = [
    "Cut",
    "LabelNoise",
    "RandomRanks",
    "Shard",
    "StoredScores",
    "auroc",
    "find_cut",
    "jaccard",
    "kept_count",
    "label_noise",
    "lowest_kept",
    "mask_of",
    "order_keys",
    "select_tokens",
    "write_kept",
]
