"""Conversations to token ids and noisy token labels (§3)."""

from tokenclean.tokens.rendered_text import Rendered
from tokenclean.tokens.rendering import render
from tokenclean.tokens.tokenize import TokenizedPool, tokenize_pool, tokens_touching

__all__ = ["Rendered", "TokenizedPool", "render", "tokenize_pool", "tokens_touching"]
