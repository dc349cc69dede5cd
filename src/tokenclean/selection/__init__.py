"""From scores to cleaned token labels: pure functions over per-token columns (section 4.2)."""

from tokenclean.selection.label_metrics import (
    LabelNoise,
    auroc,
    average_precision,
    expected_calibration_error,
    jaccard,
    label_noise,
)
from tokenclean.selection.noise_mixture import NoiseEstimate, NoiseRates, surprisal_table, token_posterior
from tokenclean.selection.ranking import kept_count, lowest_kept, select_tokens
from tokenclean.selection.repeated_passages import Repetition, find_repetition
from tokenclean.selection.sortable_keys import order_keys

__all__ = [
    "LabelNoise",
    "NoiseEstimate",
    "NoiseRates",
    "Repetition",
    "auroc",
    "average_precision",
    "expected_calibration_error",
    "find_repetition",
    "jaccard",
    "kept_count",
    "label_noise",
    "lowest_kept",
    "order_keys",
    "select_tokens",
    "surprisal_table",
    "token_posterior",
]
