"""The data pool: conversations read and checked row by row, mixed, and divided into splits."""

from tokenclean.pool.contamination import Contamination, find_contamination
from tokenclean.pool.conversation import Conversation, LabelledTokens, Pool, RejectedRow, RemovedRow, ToolCall, Turn
from tokenclean.pool.duplicates import Duplicate, exact_duplicates, near_duplicates
from tokenclean.pool.formats import FORMATS
from tokenclean.pool.formats.json_text import write_row
from tokenclean.pool.intake import Intake, LeftOutThoughts, RenderedRows, check_usable
from tokenclean.pool.mixture import FILTERS, Mixture, load_mixture, mix_pools
from tokenclean.pool.rejected import join_rejected, read_rejected, write_rejected, write_removed
from tokenclean.pool.shards import SHARD_CHARACTERS, PoolSurvey, count_characters, shard_stream, survey_pool
from tokenclean.pool.sources import load_pool, load_sources, merge_pools, stream_sources
from tokenclean.pool.splits import contiguous_splits, heldout_rows, stratified_splits

__all__ = [
    "FILTERS",
    "FORMATS",
    "SHARD_CHARACTERS",
    "Contamination",
    "Conversation",
    "Duplicate",
    "Intake",
    "LabelledTokens",
    "LeftOutThoughts",
    "Mixture",
    "Pool",
    "PoolSurvey",
    "RejectedRow",
    "RemovedRow",
    "RenderedRows",
    "ToolCall",
    "Turn",
    "check_usable",
    "contiguous_splits",
    "count_characters",
    "exact_duplicates",
    "find_contamination",
    "heldout_rows",
    "join_rejected",
    "load_mixture",
    "load_pool",
    "load_sources",
    "merge_pools",
    "mix_pools",
    "near_duplicates",
    "read_rejected",
    "shard_stream",
    "stratified_splits",
    "stream_sources",
    "survey_pool",
    "write_rejected",
    "write_removed",
    "write_row",
]
