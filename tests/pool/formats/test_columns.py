from __future__ import annotations

import pytest
from parsing import parse_row

from tokenclean.errors import RecipeError
from tokenclean.pool import Turn
from tokenclean.pool.formats import RowError
from tokenclean.pool.formats.row_options import check_columns

QUESTION_AND_ANSWER = (Turn("user", "Why?"), Turn("assistant", "Because."))


def read_reason(row: dict, columns: dict[str, str]) -> str:
    with pytest.raises(RowError) as caught:
        parse_row(row, columns=columns)
    return str(caught.value)


def read_problems(format: str = "auto", columns: dict | None = None, roles: dict | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check_columns(format, columns or {}, roles or {})
    return caught.value.problems


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"q": "Why?", "a": "Because."}, {"instruction": "q", "output": "a"}),
        ({"qa": {"q": "Why?", "a": ["x"]}, "a.b": "Because."}, {"instruction": "qa.q", "output": "a.b"}),
        (
            {"qa.q": "Why?", "qa": {"q": "no"}, "a": {"b": {"c": "Because."}}},
            {"instruction": "qa.q", "output": "a.b.c"},
        ),
        (
            {"output": "Why?", "instruction": "Because.", "input": "unread", "messages": []},
            {"instruction": "output", "output": "instruction", "source": "file"},
        ),
    ],
)
def test_mapped_columns_alone_are_read(row, columns):
    assert parse_row(row, columns=columns).turns == QUESTION_AND_ANSWER


@pytest.mark.parametrize(
    ("messages", "columns"),
    [
        (
            [{"who": "user", "text": "Why?"}, {"who": "assistant", "text": "Because."}],
            {"role": "who", "content": "text"},
        ),
        (
            [
                {"role": "x", "author": {"role": "user"}, "content": "Why?"},
                {"author": {"role": "ai"}, "content": "Because.", "weight": 1},
            ],
            {"role": "author.role"},
        ),
        ([{"from": "human", "text": "Why?"}, {"from": "gpt", "text": "Because."}], {"value": "text"}),
        (
            [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}],
            {"role": "from", "content": "value"},
        ),
    ],
)
def test_keys_of_messages_are_mapped_too(messages, columns):
    assert parse_row({"messages": messages}, columns=columns).turns == QUESTION_AND_ANSWER
    row = {"chat": {"turns": messages}, "messages": "unread"}
    assert parse_row(row, columns=columns | {"messages": "chat.turns"}).turns == QUESTION_AND_ANSWER


def test_an_optional_key_of_messages_may_be_missing():
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because.", "cot": "Hm."}]
    turns = parse_row({"messages": messages}, columns={"reasoning": "cot"}).turns
    assert [turn.reasoning for turn in turns] == ["", "Hm."]


def test_a_call_may_have_no_content_under_a_mapped_name():
    calls = [{"name": "add", "arguments": {}}]
    messages = [{"role": "user", "text": "Why?"}, {"role": "assistant", "tool_calls": calls}]
    assert parse_row({"messages": messages}, columns={"content": "text"}).turns[1].content == ""


@pytest.mark.parametrize(
    ("row", "columns", "reason"),
    [
        ({"q": "x"}, {"instruction": "q", "output": "a"}, "output: no column 'a'; found 'q'"),
        ({"q": "x", "a": 3}, {"instruction": "q", "output": "a.b"}, "output: no column 'a.b'; found 'q', 'a'"),
        ({"messages": [{"role": "user"}]}, {"role": "who"}, "messages[0].role: no column 'who'; found 'role'"),
        ({"messages": [{"role": "user"}]}, {"content": "t"}, "messages[0].content: no column 't'; found 'role'"),
    ],
)
def test_a_missing_column_names_key_and_column(row, columns, reason):
    assert read_reason(row, columns) == reason


def test_null_on_the_way_is_null():
    row = {"q": "Why?", "extra": None, "a": "Because."}
    columns = {"instruction": "q", "output": "a", "input": "extra.context"}
    assert parse_row(row, columns=columns).turns == QUESTION_AND_ANSWER


def test_roles_go_before_the_known_names():
    messages = [{"role": "Frage", "content": "Why?"}, {"role": "user", "content": "Because."}]
    assert parse_row({"messages": messages}, roles={"Frage": "user", "user": "assistant"}).turns == QUESTION_AND_ANSWER


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"columns": {"instrction": "q"}}, "columns: unknown key 'instrction'; did you mean 'instruction'?"),
        ({"columns": {"text": ""}}, "columns.text: the column's name is blank"),
        ({"columns": {"role": "a", "value": "b"}}, "columns: expected role and content, or from and value, found keys"),
        (
            {"columns": {"instruction": "q"}},
            "columns: only mapped keys are read, and instruction is not enough: messages",
        ),
        (
            {"format": "alpaca", "columns": {"output": "a", "prompt": "q"}},
            "columns: only mapped keys are read, and output, prompt is not enough: alpaca needs instruction and output",
        ),
        ({"format": "text", "columns": {"text": "t", "role": "r"}}, "columns.role: the format text does not read it"),
        (
            {"roles": {"ai": "asistant"}},
            "roles.ai: expected one of system, user, assistant, tool, found 'asistant'; did",
        ),
        ({"roles": {" ": "user"}}, "roles: a role's name is blank"),
    ],
)
def test_options_that_fit_no_row(options, problem):
    assert read_problems(**options)[0].startswith(problem)
    with pytest.raises(RecipeError):
        parse_row({"text": "x"}, **options)


def test_every_problem_is_told_at_once():
    assert len(read_problems("auto", {"x": "y", "text": ""}, {"a": "b", "": "c"})) == 5


def test_usual_options_pass():
    check_columns("auto", {}, {})
    check_columns("tokens", {"input_ids": "ids", "labels": "y", "source": "from"}, {})
    check_columns("messages", {"role": "who"}, {"narrator": "system"})
