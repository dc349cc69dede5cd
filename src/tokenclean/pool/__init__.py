"""The data pool: conversations in, checked row by row, and its division into splits."""

from tokenclean.pool.contamination import BenchmarkOverlap, Contamination, Overlap, find_contamination
from tokenclean.pool.conversation import Conversation, LabelledTokens, Pool, RejectedRow, RemovedRow, ToolCall, Turn
from tokenclean.pool.duplicates import Duplicate, exact_duplicates, near_duplicates
from tokenclean.pool.formats import FORMATS
from tokenclean.pool.formats.written import write_row
from tokenclean.pool.mixture import FILTERS, Mixture, SourceCounts, load_mixture, mix_pools
from tokenclean.pool.rejected import (
    check_rejected_share,
    is_too_large_share,
    join_rejected,
    too_many_rejected,
    write_rejected,
)
from tokenclean.pool.removed import write_removed
from tokenclean.pool.sources import load_pool, load_sources, merge_pools, stream_sources
from tokenclean.pool.splits import contiguous_splits, heldout_rows, stratified_splits
from tokenclean.pool.survey import SHARD_CHARACTERS, PoolSurvey, count_characters, shard_stream, survey_pool

__all__ = [
    "FILTERS",
    "FORMATS",
    "SHARD_CHARACTERS",
    "BenchmarkOverlap",
    "Contamination",
    "Conversation",
    "Duplicate",
    "LabelledTokens",
    "Mixture",
    "Overlap",
    "Pool",
    "PoolSurvey",
    "RejectedRow",
    "RemovedRow",
    "SourceCounts",
    "ToolCall",
    "Turn",
    "check_rejected_share",
    "contiguous_splits",
    "count_characters",
    "exact_duplicates",
    "find_contamination",
    "heldout_rows",
    "is_too_large_share",
    "join_rejected",
    "load_mixture",
    "load_pool",
    "load_sources",
    "merge_pools",
    "mix_pools",
    "near_duplicates",
    "shard_stream",
    "stratified_splits",
    "stream_sources",
    "survey_pool",
    "too_many_rejected",
    "write_rejected",
    "write_removed",
    "write_row",
]
