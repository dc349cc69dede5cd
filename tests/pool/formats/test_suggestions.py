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
        {"input": "Why?", "output": "Because."},
        {"instruction": "Why?", "answer": "Because."},
        {"system_prompt": "Be terse.", "question": "Why?", "response": "Because.", "tools": [{"name": "f"}]},
        {"input": MESSAGES[:1], "output": "Because.", "generator": "x"},
        {"o'clock": [{"who": "user", "text": "Why?"}, {"who": "bot", "text": "So."}]},
    ],
)
def test_the_suggested_option_reads_the_row(row: dict[str, Any]):
    with pytest.raises(RowError, match="keys fit no format") as caught:
        parse_row(row)
    options = shlex.split(caught.value.remedy)
    assert options[0::2] == ["--column"] * (len(options) // 2)
    turns = parse_row(row, columns=dict(option.split("=", 1) for option in options[1::2])).turns
    assert turns[-1].role == "assistant"
    assert (turns[0].role == "system") == ("system_prompt" in row)


def test_an_unknown_role_suggests_a_role():
    with pytest.raises(RowError) as caught:
        parse_row({"messages": [{"role": "Big Boss", "content": "x"}]})
    assert caught.value.remedy.startswith("--role 'big boss=user' ")


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
    pandas = {"messages": repr(messages).replace("}, {", "}\n {")}
    assert parse_row(pandas, python_literals=True).turns == parse_row(row, python_literals=True).turns
    as_text = [{"role": "user", "content": "a } { b"}, {"role": "assistant", "function_call": "{'name': 'f'}"}]
    assert parse_row({"messages": repr(as_text)}, python_literals=True).turns[0].content == "a } { b"
    assert (
        parse_row({"instruction": "a", "output": "['x', 'y']"}, python_literals=True).turns[1].content == "['x', 'y']"
    )
    for text in ("[__import__('os').system('x')]", "['a' for a in 'b']", "[" * 5000, "it's [fine]"):
        parse_row({"prompt": "a", "completion": text}, python_literals=True)
