"""The data pool: conversations in, checked row by row, and its division into splits."""

from tokenclean.pool.conversation import Conversation, Pool, RejectedRow, Turn
from tokenclean.pool.formats import FORMATS
from tokenclean.pool.sources import load_pool, merge_pools, write_rejected
from tokenclean.pool.splits import contiguous_splits, heldout_rows, stratified_splits

__all__ = [
    "FORMATS",
    "Conversation",
    "Pool",
    "RejectedRow",
    "Turn",
    "contiguous_splits",
    "heldout_rows",
    "load_pool",
    "merge_pools",
    "stratified_splits",
    "write_rejected",
]
