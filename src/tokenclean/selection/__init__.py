"""From scores to cleaned token labels: pure functions over per-token columns (section 4.2)."""

from tokenclean.selection.agreement import LabelNoise, auroc, jaccard, label_noise
from tokenclean.selection.selectors import kept_count, lowest_kept, select_tokens

__all__ = ["LabelNoise", "auroc", "jaccard", "kept_count", "label_noise", "lowest_kept", "select_tokens"]
