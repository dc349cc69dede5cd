"""tokenclean: keep the tokens worth training on.

    from tokenclean import load_pool, select_tokens, token_losses, tokenize_pool

Importing this package loads nothing but itself: each name below is imported when it is first used, so that the command
line starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenclean.pool import Conversation, Pool, Turn, load_pool
    from tokenclean.ragged import Ragged
    from tokenclean.scoring import token_losses
    from tokenclean.selection import select_tokens
    from tokenclean.tokens import TokenizedPool, tokenize_pool

__version__ = "0.1.0"

__all__ = [
    "Conversation",
    "Pool",
    "Ragged",
    "TokenizedPool",
    "Turn",
    "load_pool",
    "select_tokens",
    "token_losses",
    "tokenize_pool",
]

_MODULES = {
    **dict.fromkeys(("Conversation", "Pool", "Turn", "load_pool"), "pool"),
    "Ragged": "ragged",
    "token_losses": "scoring",
    "select_tokens": "selection",
    **dict.fromkeys(("TokenizedPool", "tokenize_pool"), "tokens"),
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
