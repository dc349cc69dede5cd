"""Conversations to token ids and noisy token labels (§3)."""

from tokenclean.tokens.kept_table import KeptCounts, SourceKept, select_table
from tokenclean.tokens.table import (
    TableWriter,
    TokenTable,
    is_table,
    iter_table,
    read_metadata,
    read_table,
    write_table,
)
from tokenclean.tokens.template import Rendered, render
from tokenclean.tokens.tokenize import TokenizedPool, tokenize_pool, tokens_touching

__all__ = [
    "KeptCounts",
    "Rendered",
    "SourceKept",
    "TableWriter",
    "TokenTable",
    "TokenizedPool",
    "is_table",
    "iter_table",
    "read_metadata",
    "read_table",
    "render",
    "select_table",
    "tokenize_pool",
    "tokens_touching",
    "write_table",
]
