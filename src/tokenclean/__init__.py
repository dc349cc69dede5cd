"""tokenclean: keep the tokens worth training on.

    from tokenclean import load_pool, select_tokens, token_losses, tokenize_pool

Importing this package loads neither torch nor transformers; ``token_losses`` does when it is called.
"""

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
