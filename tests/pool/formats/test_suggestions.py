from __future__ import annotations

import shlex
from typing import Any

import pytest
from parsing import parse_row

from tokenclean.pool.formats import RowError

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
SPOKEN = [{"speaker": "user", "said": "Why?"}, {"speaker": "assistant", "said": "Because."}]


@pytest.mark.parametrize(
    "row",
    [
        {"dialogue": MESSAGES},
        {"dialogue": [MESSAGES]},
        {"data": {"chat": SPOKEN}},
        {"question": "Why?", "answer": "Because."},
        {"Query": "Why?", "Solution": "Because.", "level": 3},
        {"content": "Once upon a time."},
    ],
)
def test_the_suggested_option_reads_the_row(row: dict[str, Any]):
    with pytest.raises(RowError, match="keys fit no format") as caught:
        parse_row(row)
    options = shlex.split(caught.value.remedy)
    assert options[0::2] == ["--column"] * (len(options) // 2)
    assert parse_row(row, columns=dict(option.split("=", 1) for option in options[1::2])).turns[-1].role == "assistant"


def test_an_unknown_role_suggests_a_role():
    with pytest.raises(RowError) as caught:
        parse_row({"messages": [{"role": "Big Boss", "content": "x"}]})
    assert caught.value.remedy.startswith("--role 'big boss'=user")


def test_nothing_is_suggested_where_nothing_is_plain():
    with pytest.raises(RowError) as caught:
        parse_row({"a1": 3, "b2": [1, 2]})
    assert caught.value.remedy == ""


def test_python_literals_are_read_on_request_and_never_run():
    calls = [{"name": "f", "arguments": {"x": True}}]
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    row = {"messages": repr(messages)}
    with pytest.raises(RowError) as caught:
        parse_row(row)
    assert caught.value.remedy == "--python-literals"
    assert parse_row(row, python_literals=True).turns[1].tool_calls[0].arguments == '{"x": true}'
    for text in ("[__import__('os').system('x')]", "['a' for a in 'b']", "[" * 5000, "it's [fine]"):
        parse_row({"prompt": "a", "completion": text}, python_literals=True)
