"""The data pool: conversations read and checked row by row, mixed, and divided into splits."""

from tokenclean.pool.contamination import Contamination
from tokenclean.pool.conversation import Conversation, LabelledTokens, Pool, RejectedRow, ToolCall, Turn
from tokenclean.pool.formats.row_parser import write_row
from tokenclean.pool.intake import (
    Intake,
    LeftOutThoughts,
    RenderedRows,
    check_usable,
    join_rejected,
    read_rejected,
    write_rejected,
    write_removed,
)
from tokenclean.pool.mixture import FILTERS, Mixture
from tokenclean.pool.shards import SHARD_CHARACTERS, PoolSurvey, count_characters, shard_stream, survey_pool
from tokenclean.pool.sources import load_pool, load_sources, stream_sources

__all__ = [
    "FILTERS",
    "SHARD_CHARACTERS",
    "Contamination",
    "Conversation",
    "Intake",
    "LabelledTokens",
    "LeftOutThoughts",
    "Mixture",
    "Pool",
    "PoolSurvey",
    "RejectedRow",
    "RenderedRows",
    "ToolCall",
    "Turn",
    "check_usable",
    "count_characters",
    "join_rejected",
    "load_pool",
    "load_sources",
    "read_rejected",
    "shard_stream",
    "stream_sources",
    "survey_pool",
    "write_rejected",
    "write_removed",
    "write_row",
]
