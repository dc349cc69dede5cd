"""Conversations to token ids and noisy token labels (§3)."""

from tokenclean.tokens.table import TokenTable, is_table, read_table, write_table
from tokenclean.tokens.template import Rendered, render
from tokenclean.tokens.tokenize import TokenizedPool, tokenize_pool, tokens_touching

__all__ = [
    "Rendered",
    "TokenTable",
    "TokenizedPool",
    "is_table",
    "read_table",
    "render",
    "tokenize_pool",
    "tokens_touching",
    "write_table",
]
