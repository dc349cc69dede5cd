"""Conversations to token ids and noisy token labels (§3)."""

from tokenclean.tokens.templates import render
from tokenclean.tokens.tokenize import TokenizedPool, first_tokens_touching, tokenize_pool, tokens_touching

__all__ = ["TokenizedPool", "first_tokens_touching", "render", "tokenize_pool", "tokens_touching"]
