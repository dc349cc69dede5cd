from __future__ import annotations

import pytest

from tokenclean.errors import RecipeError
from tokenclean.pool import FORMATS, Turn
from tokenclean.pool.formats import REQUIRED_KEYS, RowError, detect_format, parse_row


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


QUESTION = message("user", "Why?")
ANSWER = message("assistant", "Because.")
ALPACA = {"instruction": "Add.", "output": "3"}
PROMPT = {"prompt": "Once", "completion": " upon"}


def test_every_format_states_its_keys():
    assert FORMATS.keys() == REQUIRED_KEYS.keys()


def test_messages_keep_texts_and_order():
    row = {"messages": [message("system", "Be terse."), message("user", " Why?\n"), ANSWER, QUESTION, ANSWER, QUESTION]}
    kind, turns = parse_row(row)
    assert kind == "chat"
    assert turns[:3] == (Turn("system", "Be terse."), Turn("user", " Why?\n"), Turn("assistant", "Because."))
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]


def test_messages_allow_a_blank_or_late_system_turn():
    row = {"messages": [message("system", ""), QUESTION, message("system", "New rules."), ANSWER]}
    assert [turn.role for turn in parse_row(row)[1]] == ["system", "user", "system", "assistant"]


@pytest.mark.parametrize("key", ["output", "response"])
@pytest.mark.parametrize(
    ("instruction", "context", "question"),
    [
        ("Add.", "1 and 2", "Add.\n1 and 2"),
        ("Add.", "", "Add."),
        ("Add.", " \n", "Add."),
        ("Add.", None, "Add."),
        ("", "1 and 2", "1 and 2"),
    ],
)
def test_alpaca(key, instruction, context, question):
    row = {"instruction": instruction, "input": context, key: "3"}
    assert parse_row(row) == ("chat", (Turn("user", question), Turn("assistant", "3")))


@pytest.mark.parametrize("prompt", ["Once", "", "  "])
def test_prompt_completion_allows_a_blank_prompt(prompt):
    row = {"prompt": prompt, "completion": " upon"}
    assert parse_row(row) == ("completion", (Turn("user", prompt), Turn("assistant", " upon")))


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [], "prompt": "x", "prompt_id": 3}, "messages"),
        (ALPACA, "alpaca"),
        (ALPACA | {"messages": None}, "alpaca"),
        ({"instruction": "Add.", "output": None, "response": "3"}, "alpaca"),
        (PROMPT | {"instruction": "Add.", "output": None}, "prompt_completion"),
    ],
)
def test_detect_format_goes_by_keys_with_a_value(row, name):
    assert detect_format(row) == name


def test_detect_format_lists_what_was_found_and_what_is_needed():
    with pytest.raises(RowError) as caught:
        detect_format({"text": "x", "prompt": None})
    reason = str(caught.value)
    assert "found 'text', 'prompt' (null)" in reason
    assert "messages needs messages" in reason
    assert "alpaca needs instruction and output or response" in reason
    assert "prompt_completion needs prompt and completion" in reason


def test_detect_format_describes_any_row():
    with pytest.raises(RowError, match="found no key"):
        detect_format({})
    with pytest.raises(RowError, match="and 5 more"):
        detect_format({f"key{i}": i for i in range(15)})
    with pytest.raises(RowError) as caught:
        detect_format({"\ud800": 1})
    str(caught.value).encode()


def test_detect_format_never_guesses():
    with pytest.raises(RowError, match="alpaca and prompt_completion: name the format"):
        parse_row(ALPACA | PROMPT)
    assert parse_row(ALPACA | PROMPT, "alpaca") == parse_row(ALPACA)
    assert parse_row(ALPACA | PROMPT, "prompt_completion") == parse_row(PROMPT)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hi", "messages: expected a list, found text"),
        ({"role": "user"}, "messages: expected a list, found object"),
        ([], "messages: no assistant turn, so there is no response to train on"),
        ([message("system", "x"), QUESTION], "messages: no assistant turn, so there is no response to train on"),
        ([QUESTION, "hi"], "messages[1]: expected an object with role and content, found text"),
        ([{"content": "x"}], "messages[0].role: missing"),
        ([message("user", "x"), {"role": "assistant"}], "messages[1].content: missing"),
        ([QUESTION, message("assistant", None)], "messages[1].content: missing"),
        ([QUESTION, ANSWER, message("user", ["x"])], "messages[2].content: expected text, found list"),
        ([message("user", 3)], "messages[0].content: expected text, found number"),
        ([message("user", True)], "messages[0].content: expected text, found true or false"),
        ([{"role": 1, "content": "x"}], "messages[0].role: expected text, found number"),
        ([message("gpt", "x")], "messages[0].role: unknown role 'gpt'; known are system, user, assistant"),
        ([message("user", " ")], "messages[0].content: blank user turn"),
        ([QUESTION, ANSWER, QUESTION, message("assistant", "\n")], "messages[3].content: blank assistant turn"),
        ([ANSWER, QUESTION, ANSWER], "messages[0].role: expected a user turn before the first assistant turn"),
        ([message("system", "x"), ANSWER], "messages[1].role: expected a user turn before the first assistant turn"),
        ([QUESTION, message("assistant", "ab\ud800")], "messages[1].content: lone surrogate at character 3"),
    ],
)
def test_faults_of_messages(messages, reason):
    with pytest.raises(RowError) as caught:
        parse_row({"messages": messages})
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"output": "3"}, "instruction: missing"),
        (ALPACA | {"instruction": 3}, "instruction: expected text, found number"),
        (ALPACA | {"instruction": " ", "input": ""}, "instruction: blank, and there is no input either"),
        (ALPACA | {"input": {}}, "input: expected text, found object"),
        (ALPACA | {"input": "\udc00"}, "input: lone surrogate at character 1"),
        ({"instruction": "Add."}, "output: missing, and so is response; expected one of them"),
        (ALPACA | {"response": "3"}, "output: given, and so is response; expected one of them"),
        (ALPACA | {"output": ""}, "output: blank response"),
        ({"instruction": "Add.", "response": "\t"}, "response: blank response"),
    ],
)
def test_faults_of_alpaca(row, reason):
    with pytest.raises(RowError) as caught:
        parse_row(row, "alpaca")
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"completion": "x"}, "prompt: missing"),
        (PROMPT | {"prompt": []}, "prompt: expected text, found list"),
        (PROMPT | {"completion": None}, "completion: missing"),
        (PROMPT | {"completion": 1.5}, "completion: expected text, found number"),
        (PROMPT | {"completion": " "}, "completion: blank response"),
    ],
)
def test_faults_of_prompt_completion(row, reason):
    with pytest.raises(RowError) as caught:
        parse_row(row, "prompt_completion")
    assert str(caught.value) == reason


def test_a_named_format_misses_its_key():
    with pytest.raises(RowError, match=r"^messages: missing$"):
        parse_row(ALPACA, "messages")


def test_unknown_format_is_the_callers_fault():
    with pytest.raises(RecipeError, match=r"found 'mesages'; did you mean 'messages'\?"):
        parse_row(ALPACA, "mesages")
    with pytest.raises(RecipeError, match=r"found 'xyz'$"):
        parse_row(ALPACA, "xyz")
