"""The data pool: conversations in, checked row by row, and its division into splits."""

from tokenclean.pool.conversation import Conversation, LabelledTokens, Pool, RejectedRow, ToolCall, Turn
from tokenclean.pool.formats import FORMATS
from tokenclean.pool.rejected import check_rejected_share, write_rejected
from tokenclean.pool.sources import load_pool, load_sources, merge_pools
from tokenclean.pool.splits import contiguous_splits, heldout_rows, stratified_splits

__all__ = [
    "FORMATS",
    "Conversation",
    "LabelledTokens",
    "Pool",
    "RejectedRow",
    "ToolCall",
    "Turn",
    "check_rejected_share",
    "contiguous_splits",
    "heldout_rows",
    "load_pool",
    "load_sources",
    "merge_pools",
    "stratified_splits",
    "write_rejected",
]
