"""The names by which rows are recognised: keys of rows and messages in each format, and names of roles."""

from __future__ import annotations

from typing import Final, get_args

from tokenclean.pool.conversation import Role
from tokenclean.pool.formats.labelled_tokens import TOKEN_MASKS, TOKEN_WEIGHTS
from tokenclean.pool.formats.loss_weights import NUMBER_KEYS, WEIGHT_KEYS

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Keys that a format needs: one of every group.
REQUIRED_KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "alpaca": (("instruction",), ("output", "response")),
    "prompt_completion": (("prompt",), ("completion",)),
    "tokens": (("input_ids",), ("labels", "completion_mask", "assistant_masks")),
    "text": (("text",),),
}
OPTIONAL_KEYS: dict[str, tuple[str, ...]] = {
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "alpaca": ("input", "context", "query", "system", "history", "tools", *REASONING_KEYS),
    "prompt_completion": ("tools", "system"),
    "tokens": ("attention_mask", *TOKEN_MASKS, *TOKEN_WEIGHTS),
    "text": (),
}
MESSAGE_KEYS: tuple[str, ...] = (
    *("role", "content", "from", "value", "tool_calls", *REASONING_KEYS, "function_call", "name", "tool_call_id"),
    *WEIGHT_KEYS,
)
# Keys that any row may have beside those of its format.
COMMON_KEYS = ("source", "original_id", "id")
ROW_WEIGHT_KEYS = ("train", "training", *NUMBER_KEYS)
ROW_KEYS: dict[str, frozenset[str]] = {
    name: frozenset(key for group in groups for key in group) | frozenset(OPTIONAL_KEYS[name])
    for name, groups in REQUIRED_KEYS.items()
}
ROLES: tuple[Role, ...] = get_args(Role)
MISSING: Final = object()

ALL_ROW_KEYS = frozenset[str]().union(*ROW_KEYS.values())
KEYS_OF_ROWS_ALONE = ALL_ROW_KEYS - {*MESSAGE_KEYS}  # reasoning, say, may be in a message too

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "system",
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "chatbot", "model", "ai"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython", "environment", "tool_response", "tool_result"), "tool"),
}
"""Usual role names, in lower case -> ours."""
