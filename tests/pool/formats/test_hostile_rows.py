"""Whatever stands in a row, it parses or is refused with a reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsing import parse_row

from tokenclean.pool.formats import FORMATS, RowError
from tokenclean.pool.formats.known_names import MESSAGE_KEYS, ROW_KEYS

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
GOOD: dict[str, dict[str, object]] = {
    "messages": {"messages": MESSAGES},
    "sharegpt": {"conversations": MESSAGES},
    "alpaca": {"instruction": "Add.", "output": "3"},
    "prompt_completion": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    "tokens": {"input_ids": [5, 6], "labels": [-100, 6]},
    "text": {"text": "Once upon a time."},
}
HUGE = 10**100_000  # Python refuses to print it, so neither hypothesis nor a test's name may hold it
NEITHER_TEXT_NOR_LIST = [float("nan"), HUGE, b"bytes", True, {"x": HUGE}, [HUGE] * 2, [{"x": HUGE}], [True] * 5000]
NO_LIST = ["[" * 100_000, '[{"role":' * 100_000, "9" * 5000, "[NaN, 1e999]", "\ud800", '["\\ud800"]']
LISTS_OF_FORMATS = {"messages", "conversations", "tools", "history", "input_ids", "labels", "attention_mask"}

KEYS = sorted({key for keys in ROW_KEYS.values() for key in keys} | {*MESSAGE_KEYS, "function", "arguments", "type"})
ROLES = ["user", "assistant", "tool", "function_call", "narrator"]
WORDS = [*ROLES, "text", "function", "", " ", "[]", "{}", '{"name": "f", "arguments": {}}', "[[", "NaN", "\ud800"]
SCALARS = st.none() | st.booleans() | st.integers(-101, 3) | st.floats() | st.sampled_from([*WORDS, b"x"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner), max_leaves=12
)
TURNS = st.builds(
    lambda role, more: {"role": role, "content": "x"} | more,
    st.sampled_from(ROLES),
    st.dictionaries(st.sampled_from(MESSAGE_KEYS), VALUES, max_size=2),
)
LISTS = st.lists(TURNS | VALUES, max_size=4).map(lambda turns: [*MESSAGES, *turns])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([{}, *GOOD.values()]),
    st.dictionaries(st.sampled_from(KEYS), VALUES | LISTS | LISTS.map(lambda turns: json.dumps(turns, default=str))),
    st.sampled_from(["auto", *FORMATS]),
)
def test_any_row_parses_or_says_why(good, row, format):
    try:
        parsed = parse_row(good | row, format)
    except RowError as error:
        str(error).encode()  # a reason is written to a file
        return
    assert parsed.kind == "tokens" or any(turn.role == "assistant" and turn.is_trained for turn in parsed.turns)
    texts = [(turn.content, turn.reasoning, turn.name, turn.tool_calls) for turn in parsed.turns]
    assert "\ud800" not in "".join(text for turn in texts for text in turn[:3])
    assert all(isinstance(json.loads(call.arguments), dict) for turn in texts for call in turn[3])


@pytest.mark.parametrize("format", FORMATS)
def test_values_that_fit_no_key_are_refused_shortly(format):
    for key in ROW_KEYS[format]:
        for value in NEITHER_TEXT_NOR_LIST + (NO_LIST if key in LISTS_OF_FORMATS else []):
            with pytest.raises(RowError) as caught:
                parse_row(GOOD[format] | {key: value}, format)
            assert len(str(caught.value)) < 300


def test_deep_objects_are_refused():
    deep: dict = {}
    for _ in range(100_000):
        deep = {"x": deep}
    with pytest.raises(RowError, match=r"^tools: nested too deeply$"):
        parse_row({"messages": MESSAGES, "tools": [deep]})
