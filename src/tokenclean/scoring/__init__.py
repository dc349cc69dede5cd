"""Losses of a pool's response tokens, and what they say about a model."""

from tokenclean.scoring.paired_difference import PairedDifference, mean_loss, paired_difference
from tokenclean.scoring.scorer import token_losses

__all__ = ["PairedDifference", "mean_loss", "paired_difference", "token_losses"]
