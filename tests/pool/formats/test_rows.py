from __future__ import annotations

import json

import pytest
from parsing import parse_row

from tokenclean.errors import RecipeError
from tokenclean.pool import Turn
from tokenclean.pool.formats import FORMATS, Parsed, RowError, detect_format
from tokenclean.pool.formats.known_names import REQUIRED_KEYS, ROW_KEYS
from tokenclean.recipe import source_from


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


QUESTION = message("user", "Why?")
ANSWER = message("assistant", "Because.")
ALPACA = {"instruction": "Add.", "output": "3"}
PROMPT = {"prompt": "Once", "completion": " upon"}
TOKENS = {"input_ids": [5, 6], "labels": [-100, 6]}
TEXT = {"text": "Once upon a time."}


def read_reason(row: dict, format: str = "auto") -> str:
    with pytest.raises(RowError) as caught:
        parse_row(row, format)
    return str(caught.value)


def test_every_format_states_its_keys():
    assert FORMATS.keys() == REQUIRED_KEYS.keys() == ROW_KEYS.keys()


@pytest.mark.parametrize("key", ["output", "response"])
@pytest.mark.parametrize("context_key", ["input", "context"])
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
def test_alpaca(key, context_key, instruction, context, question):
    row = {"instruction": instruction, context_key: context, key: "3"}
    assert parse_row(row) == Parsed("chat", (Turn("user", question), Turn("assistant", "3")))


def test_alpaca_puts_system_and_history_in_front():
    row = ALPACA | {"system": "Be terse.", "history": [["Hi", "Hello"], ["1 + 1?", "2"]], "tools": '[{"name": "add"}]'}
    parsed = parse_row(row)
    assert [turn.role for turn in parsed.turns] == ["system", *["user", "assistant"] * 3]
    assert [turn.content for turn in parsed.turns] == ["Be terse.", "Hi", "Hello", "1 + 1?", "2", "Add.", "3"]
    assert all(turn.is_trained for turn in parsed.turns)
    assert parsed.tools == '[{"name":"add"}]'
    assert parse_row(row | {"history": json.dumps(row["history"])}) == parsed
    assert parse_row(ALPACA | {"system": " ", "history": [], "tools": ""}) == parse_row(ALPACA)


@pytest.mark.parametrize("prompt", ["Once", "", "  ", "[1, 2]", '[{"a": "user", "content": "x"}]'])
def test_a_prompt_that_is_text_stays_text(prompt):
    row = {"prompt": prompt, "completion": " upon"}
    assert parse_row(row) == Parsed("completion", (Turn("user", prompt), Turn("assistant", " upon")))


def test_prompt_and_completion_of_messages_train_the_completion():
    earlier = [message("system", "Be terse."), QUESTION, ANSWER, QUESTION]
    later = [message("assistant", "So."), QUESTION, ANSWER | {"weight": 0}]
    parsed = parse_row({"prompt": earlier, "completion": later, "tools": [{"name": "add"}]})
    assert (parsed.kind, parsed.tools) == ("chat", '[{"name":"add"}]')
    assert [turn.content for turn in parsed.turns] == [m["content"] for m in earlier + later]
    assert [turn.is_trained for turn in parsed.turns if turn.role == "assistant"] == [False, True, False]


def test_text_is_one_turn():
    assert parse_row({"text": " Once.\n"}) == Parsed("text", (Turn("assistant", " Once.\n"),))
    assert read_reason({"text": "\n"}) == "text: blank"


def test_tokens_have_no_turns():
    parsed = parse_row(TOKENS)
    assert (parsed.kind, parsed.turns) == ("tokens", ())
    assert parsed.tokens is not None
    assert parsed.tokens.is_response.tolist() == [False, True]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [], "prompt": "x", "prompt_id": 3}, "messages"),
        ({"conversations": [], "id": "x"}, "sharegpt"),
        (ALPACA, "alpaca"),
        (ALPACA | {"messages": None}, "alpaca"),
        ({"instruction": "Add.", "output": None, "response": "3"}, "alpaca"),
        (PROMPT | {"instruction": "Add.", "output": None}, "prompt_completion"),
        (TOKENS, "tokens"),
        (TEXT, "text"),
        (TEXT | ALPACA, "alpaca"),
        (TEXT | {"messages": []}, "messages"),
        (TEXT | {"input_ids": [1]}, "text"),
    ],
)
def test_detect_format_goes_by_keys_with_a_value(row, name):
    assert detect_format(row) == name


def test_detect_format_lists_what_was_found_and_what_is_needed():
    reason = read_reason({"stories": "x", "prompt": None})
    assert "found 'stories', 'prompt' (null)" in reason
    for need in ("messages needs messages", "alpaca needs instruction and output or response", "text needs text"):
        assert need in reason


def test_detect_format_describes_any_row():
    assert "found no key" in read_reason({})
    assert "and 5 more" in read_reason({f"key{i}": i for i in range(15)})
    read_reason({"\ud800": 1}).encode()


def test_detect_format_never_guesses():
    assert "alpaca and prompt_completion: name the format" in read_reason(ALPACA | PROMPT)
    assert "messages and tokens: name the format" in read_reason(TOKENS | TEXT | {"messages": [QUESTION, ANSWER]})
    assert parse_row(ALPACA | PROMPT, "alpaca").turns == parse_row(ALPACA).turns
    assert parse_row(ALPACA | PROMPT, "prompt_completion").turns == parse_row(PROMPT).turns


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"output": "3"}, "instruction: missing"),
        (ALPACA | {"instruction": 3}, "instruction: expected text, found number"),
        (ALPACA | {"instruction": " ", "input": ""}, "instruction: blank, and there is no input either"),
        (ALPACA | {"input": {}}, "input: expected text, found object"),
        (ALPACA | {"input": "\udc00"}, "input: lone surrogate at character 1"),
        (ALPACA | {"input": "x", "context": "y"}, "input: given, and so is context; expected one of them"),
        ({"instruction": "Add."}, "output: missing, and so is response; expected one of them"),
        (ALPACA | {"response": "3"}, "output: given, and so is response; expected one of them"),
        (ALPACA | {"output": ""}, "output: blank response"),
        ({"instruction": "Add.", "response": "\t"}, "response: blank response"),
        (ALPACA | {"system": 3}, "system: expected text, found number"),
        (ALPACA | {"history": {}}, "history: expected a list, found object"),
        (ALPACA | {"history": ["x"]}, "history[0]: expected a list of a question and its answer, found text"),
        (ALPACA | {"history": [["x"]]}, "history[0]: expected a list of a question and its answer, found 1 entries"),
        (ALPACA | {"history": [["x", None]]}, "history[0][1]: expected text, found null"),
        (ALPACA | {"history": [["", "y"]]}, "history[0][0]: blank user turn"),
        (ALPACA | {"history": [["x", " "]]}, "history[0][1]: blank response"),
    ],
)
def test_faults_of_alpaca(row, reason):
    assert read_reason(row, "alpaca") == reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"completion": "x"}, "prompt: missing"),
        ({"prompt": [QUESTION]}, "completion: expected text or a list of messages, found null"),
        (PROMPT | {"completion": [3]}, "completion[0]: expected an object, found number"),
        (PROMPT | {"completion": None}, "completion: missing"),
        (PROMPT | {"completion": 1.5}, "completion: expected text, found number"),
        (PROMPT | {"completion": " "}, "completion: blank response"),
        (
            {"prompt": [QUESTION, ANSWER], "completion": [QUESTION]},
            "completion: no assistant turn, so there is no response to train on",
        ),
        (
            {"prompt": [QUESTION, ANSWER], "completion": [ANSWER | {"train": False}]},
            "completion: every assistant turn is marked as not trained, so there is no response to train on",
        ),
    ],
)
def test_faults_of_prompt_completion(row, reason):
    assert read_reason(row, "prompt_completion") == reason


def test_a_named_format_misses_its_key():
    assert read_reason(ALPACA, "messages") == "messages: missing"


def test_unknown_format_is_the_callers_fault():
    with pytest.raises(RecipeError, match="format: expected one of auto, messages, sharegpt"):
        source_from({"path": "a.jsonl", "format": "mesages"})
