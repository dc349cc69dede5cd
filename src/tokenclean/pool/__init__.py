"""The data pool: conversations in, checked row by row, and its division into splits."""

from tokenclean.pool.conversation import Conversation, LabelledTokens, Pool, RejectedRow, ToolCall, Turn
from tokenclean.pool.formats import FORMATS
from tokenclean.pool.rejected import (
    check_rejected_share,
    is_too_large_share,
    join_rejected,
    too_many_rejected,
    write_rejected,
)
from tokenclean.pool.sources import load_pool, load_sources, merge_pools, stream_sources
from tokenclean.pool.splits import contiguous_splits, heldout_rows, stratified_splits
from tokenclean.pool.survey import SHARD_CHARACTERS, PoolSurvey, count_characters, shard_stream, survey_pool

__all__ = [
    "FORMATS",
    "SHARD_CHARACTERS",
    "Conversation",
    "LabelledTokens",
    "Pool",
    "PoolSurvey",
    "RejectedRow",
    "ToolCall",
    "Turn",
    "check_rejected_share",
    "contiguous_splits",
    "count_characters",
    "heldout_rows",
    "is_too_large_share",
    "join_rejected",
    "load_pool",
    "load_sources",
    "merge_pools",
    "shard_stream",
    "stratified_splits",
    "stream_sources",
    "survey_pool",
    "too_many_rejected",
    "write_rejected",
]
