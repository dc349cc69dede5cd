"""From scores to cleaned token labels: pure functions over per-token columns (section 4.2)."""

from tokenclean.selection.label_metrics import LabelNoise, auroc, jaccard, label_noise
from tokenclean.selection.noise_mixture import (
    NoiseEstimate,
    NoisePrior,
    NoiseRates,
    surprisal_table,
    token_posterior,
)
from tokenclean.selection.ranking import kept_count, lowest_kept, select_tokens
from tokenclean.selection.repetition import RepeatedNgram, Repetition, find_repetition
from tokenclean.selection.score_shards import RandomRanks, Shard, StoredScores
from tokenclean.selection.sortable_keys import order_keys
from tokenclean.selection.streaming import Cut, find_cut, mask_of

__all__ = [
    "Cut",
    "LabelNoise",
    "NoiseEstimate",
    "NoisePrior",
    "NoiseRates",
    "RandomRanks",
    "RepeatedNgram",
    "Repetition",
    "Shard",
    "StoredScores",
    "auroc",
    "find_cut",
    "find_repetition",
    "jaccard",
    "kept_count",
    "label_noise",
    "lowest_kept",
    "mask_of",
    "order_keys",
    "select_tokens",
    "surprisal_table",
    "token_posterior",
]
