"""Sound rows of every format, seeded damage to them (to their values and to their bytes), and what holds of any pool.

``test_intake_mutations.py`` and ``fuzz_intake.py`` share it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from tokenclean.pool import Conversation, Pool
from tokenclean.pool.formats.field_types import holds_nothing
from tokenclean.pool.formats.known_formats import SYSTEM_KEYS
from tokenclean.pool.formats.known_names import COMMON_KEYS, ROW_KEYS, ROW_WEIGHT_KEYS

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "required": ["a"]}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2.5, None]}}}
QUESTION = {"role": "user", "content": 'Grüße 🌍, "wie" geht\'s?\n}, {'}
ANSWER = {"role": "assistant", "content": "Gut.\u2028", "reasoning_content": "Think.", "weight": 1}
THINKING = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nGut.", "loss_weight": 0.5, "name": None}
PADDED = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": None, "c": {"d": None}}}}

SOUND: dict[str, tuple[dict[str, Any], ...]] = {
    "messages": (
        {"messages": [{"role": "system", "content": ""}, QUESTION, ANSWER], "source": "flan", "rating": 4},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL], "train": True},
                {"role": "tool", "content": "3.5", "name": "add", "tool_call_id": "c1"},
                ANSWER,
            ],
            "system": "Be brief.",
            "tools": [TOOL],
        },
        {
            "messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [PADDED]}, THINKING],
            "tools": [TOOL],
            "id": 7,
            "score": 0.5,
            "images": None,
            "rejected": "",
        },
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "thinking": "Hm."}]},
        {
            "conversations": [
                {"from": "human", "value": "1 + 2.5?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}', "loss": False},
                {"from": "observation", "value": "3.5"},
                {"from": "gpt", "value": "3.5", "training": True},
            ],
            "tools": json.dumps([TOOL]),
            "system": "Be brief.",
        },
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Again.", "response": "3", "history": [["a", "b"], ["c", "d"]], "system": "Be brief."},
    ),
    "prompt_completion": ({"prompt": "", "completion": "Once"}, {"prompt": "Once\r\n", "completion": " upon a time"}),
    "prompt_messages": ({"prompt": [QUESTION], "completion": [ANSWER], "tools": [TOOL]},),
    "tokens": (
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [0, 0, 9, 8], "labels": [-100, -100, -100, 8], "attention_mask": [0, 0, 1, 1]},
    ),
    "text": ({"text": "Once upon a time."}, {"text": "[1, 2]"}),
}
ROWS = tuple(row for rows in SOUND.values() for row in rows)

# JSON texts that no Python value writes: numbers too long to convert, nesting too deep to parse.
_TEXTS = {
    "@digits@": "9" * 5000,
    "@lists@": "[" * 3000 + "]" * 3000,
    "@objects@": '{"a":' * 1500 + "1" + "}" * 1500,
}
_VALUES = (
    *("", " ", "\t\u00a0", "\0", "\ufeff", "\ud800", "\udcff", "\r", "\r\n", '"', "'", ",", "null", "NaN", "[]", "{}"),
    *("[[", '[{"role":', '["\\ud800"]', "[1e999]", "assistant", "function_call", "x" * 3000),
    *("</think>", "<think>", "<think>a</think>", "\u200b", "Assistant", "[{'role': 'user'}]"),
    *(None, True, False, 0, 1, -100, -1, 0.5, 1e308, float("nan"), float("-inf"), 2**63, -(2**64), 10**400),
)
_KEYS = (
    *dict.fromkeys(key for row in ROWS for key in row),
    *("role", "from", "context", "", "\ud800", "chosen", "label", "loss_mask", "query", "functions", "system_prompt"),
    *("train_detail", "mask", "reasoning", "completion_mask", "token_weight", "unknown", "value", "</think>"),
)

_INSERTED = (
    *(b"\xef\xbb\xbf", b"\0", b"\r", b"\n", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\", b'"', b"'", b",", b":", b" "),
    *(b"{", b"}", b"[", b"]", b"}, {", b"null", b"NaN", b"-Infinity", b"1e999", b'"messages": 3, ', b"\\u0000"),
)


def change_row(random: Random, row: dict[str, Any]) -> Any:
    """Another row, with one to three changes of value anywhere in this one; now and then no object at all."""
    changed: Any = json.loads(json.dumps(row))
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_iterate_places(changed))
        if not places or random.random() < 0.02:
            return _draw_value(random)
        random.choice(_CHANGES)(random, *random.choice(places))
    return changed if changed != row else change_row(random, row)


def write_json(value: Any, has_escapes: bool = True) -> str:
    """JSON text on one line. Without escapes it may hold lone surrogates, which are no UTF-8."""
    text = json.dumps(value, ensure_ascii=has_escapes)
    for name, written in _TEXTS.items():
        text = text.replace(f'"{name}"', written)
    return text


def encode(text: str) -> bytes:
    """UTF-8, and bytes that are none where the text holds a lone surrogate."""
    return text.encode("utf-8", "surrogatepass")


def damage_bytes(random: Random, content: bytes) -> bytes:
    """The bytes with one to three pieces of damage, which may leave nothing, or several lines."""
    for _ in range(random.choice((1, 1, 2, 3))):
        content = random.choice(_DAMAGES)(random, content, random.randrange(len(content) + 1))
    return content


def describe_content(conversation: Conversation) -> tuple[Any, ...]:
    """All that a conversation says, without where it stood."""
    tokens = conversation.tokens and (conversation.tokens.input_ids.tolist(), conversation.tokens.is_response.tolist())
    return conversation.kind, conversation.turns, conversation.tools, tokens


def check_pool(pool: Pool, file: str) -> None:
    """Every row of a pool read from ``file`` can be used, and every rejected one is explained.

    Raises AssertionError otherwise, UnicodeEncodeError for a text that no file can hold.
    """
    for row in pool.rejected:
        assert row.file == file
        assert row.line > 0
        assert row.reason.strip()
        assert len(row.text) <= 200
        (row.reason + row.text).encode()
    for conversation in pool:
        assert all(name.isprintable() for name in conversation.unread)
        (conversation.original_id + "".join(conversation.unread)).encode()
        assert conversation.file == file
        assert conversation.line > 0
        (conversation.id + conversation.tools).encode()
        for turn in conversation.turns:
            (turn.content + turn.reasoning + turn.name + turn.call_id).encode()
            for call in turn.tool_calls:
                (call.name + call.arguments + call.id).encode()
                assert isinstance(json.loads(call.arguments), dict)
        if conversation.tokens is None:
            assert any(turn.role == "assistant" and turn.is_trained for turn in conversation.turns)
            for turn in conversation.turns:
                assert -1 <= turn.weight <= 1
                assert all(0 <= start < end <= len(turn.content) for start, end, _ in turn.spans)
                assert all(0 <= weight <= 1 for _, _, weight in turn.spans)
        else:
            assert len(conversation.tokens.input_ids) == len(conversation.tokens.is_response) >= 2
            assert conversation.tokens.is_response.any()


def find_unaccounted(row: dict[str, Any], conversation: Conversation) -> set[str]:
    """Keys of a row that hold something, are no key of its format, and are not named as unread."""
    formats = {"chat": ("messages", "sharegpt", "alpaca", "prompt_completion"), "completion": ("prompt_completion",)}
    names = formats.get(conversation.kind, (conversation.kind,))
    known = {*COMMON_KEYS, *ROW_WEIGHT_KEYS, *SYSTEM_KEYS, "functions", "loss", "mask"}
    known.update(key for name in names for key in ROW_KEYS[name])
    return {key for key, value in row.items() if not holds_nothing(value)} - known - set(conversation.unread)


def _iterate_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of the value with every key or index in it."""
    todo = [value]
    while todo:
        container = todo.pop()
        if isinstance(container, dict | list) and container:
            items = list(container.items() if isinstance(container, dict) else enumerate(container))
            for key, item in items:
                yield container, key
                todo.append(item)


def _draw_value(random: Random) -> Any:
    if random.random() < 0.03:
        # The name stands for JSON, which is written later; the text is a string that holds the same JSON.
        return random.choice((*_TEXTS, *_TEXTS.values()))
    value = random.choice(_VALUES)
    for _ in range(random.choice((0, 0, 0, 1, 2, 300)) if random.random() < 0.5 else 0):
        value = [value] if random.random() < 0.5 else {random.choice(_KEYS): value}
    return value


def _replace(random: Random, container: Any, key: Any) -> None:
    container[key] = _draw_value(random)


def _drop(_random: Random, container: Any, key: Any) -> None:
    del container[key]


def _rename(random: Random, container: Any, key: Any) -> None:
    if isinstance(container, dict):
        container[random.choice(_KEYS)] = container.pop(key)
    else:
        container[key] = {random.choice(_KEYS): container[key]}


def _add(random: Random, container: Any, key: Any) -> None:
    if isinstance(container, dict):
        container[random.choice(_KEYS)] = random.choice((container[key], _draw_value(random)))
    else:
        container.insert(key, random.choice((container[key], _draw_value(random))))


def _write_as_text(_random: Random, container: Any, key: Any) -> None:
    container[key] = json.dumps(container[key])


_CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (_replace, _replace, _drop, _rename, _add, _write_as_text)


def _flip(random: Random, content: bytes, at: int) -> bytes:
    return content[:at] + bytes(byte ^ (1 << random.randrange(8)) for byte in content[at : at + 1]) + content[at + 1 :]


def _insert(random: Random, content: bytes, at: int) -> bytes:
    return content[:at] + random.choice(_INSERTED) + content[at:]


def _insert_long(random: Random, content: bytes, at: int) -> bytes:
    # Long lines cost time, so they are few.
    if random.random() > 0.05:
        return _insert(random, content, at)
    long = random.choice((b"9" * 5000, b'{"a":' * 2000, b"[" * 3000, b"\\" * 3000, b" " * 5000))
    return content[:at] + long + content[at:]


def _cut_out(random: Random, content: bytes, at: int) -> bytes:
    return content[:at] + content[at + random.choice((1, 1, 2, 8, 64)) :]


def _truncate(_random: Random, content: bytes, at: int) -> bytes:
    return content[:at]


def _repeat(random: Random, content: bytes, at: int) -> bytes:
    end = at + random.choice((1, 8, 64))
    return content[:end] + content[at:]


def _swap_quotes(random: Random, content: bytes, _at: int) -> bytes:
    return content.replace(b'"', random.choice((b"'", b"", b'""', "\u201c".encode())), random.choice((1, 2, -1)))


def _repeat_key(random: Random, content: bytes, _at: int) -> bytes:
    key = json.dumps(random.choice(_KEYS)).encode()
    return content.replace(b"{", b"{" + key + b": " + random.choice((b"3, ", b"null, ", b'"x", ', b"[], ")), 1)


_DAMAGES: tuple[Callable[[Random, bytes, int], bytes], ...] = (
    *(_flip, _flip, _insert, _insert, _insert_long, _cut_out, _truncate, _repeat, _swap_quotes, _repeat_key),
)
