from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsing import parse_row

from tokenclean.pool import Turn
from tokenclean.pool.conversation import ToolCall
from tokenclean.pool.formats import RowError
from tokenclean.pool.formats.row_options import ROLE_NAMES


def message(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def call(arguments: object, name: object = "add") -> dict[str, object]:
    return {"name": name, "arguments": arguments}


QUESTION = message("user", "Why?")
ANSWER = message("assistant", "Because.")


def parse(*messages: object, **row: object) -> tuple[Turn, ...]:
    return parse_row({"messages": list(messages), **row}, "messages").turns


def read_reason(messages: object, **row: object) -> str:
    with pytest.raises(RowError) as caught:
        parse_row({"messages": messages, **row}, "messages")
    return str(caught.value)


def test_texts_and_order_are_kept():
    turns = parse(message("system", "Be terse."), message("user", " Why?\n"), ANSWER, QUESTION, ANSWER, QUESTION)
    assert turns[:3] == (Turn("system", "Be terse."), Turn("user", " Why?\n"), Turn("assistant", "Because."))
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]


def test_a_system_turn_may_be_blank_or_late():
    turns = parse(message("system", ""), QUESTION, message("system", "New rules."), ANSWER)
    assert [turn.role for turn in turns] == ["system", "user", "system", "assistant"]


def test_either_spelling_stands_under_either_key():
    spelled = [{"from": "human", "value": "Why?", "weight": None}, {"from": "gpt", "value": "Because.", "role": None}]
    rows = [{key: value} for key in ("messages", "conversations") for value in (spelled, [QUESTION, ANSWER])]
    assert len({parse_row(row) for row in rows}) == 1


@pytest.mark.parametrize(("name", "role"), ROLE_NAMES.items())
def test_other_names_of_the_roles(name, role):
    content = json.dumps(call({})) if name in ("function_call", "tool_call") else "x"
    assert parse(QUESTION, ANSWER, QUESTION, message(name, content))[3].role == role


def test_the_rows_own_system_text_comes_first():
    assert parse(QUESTION, ANSWER, system="Be terse.")[0] == Turn("system", "Be terse.")
    assert parse(QUESTION, ANSWER, system=" ") == parse(message("system", ""), QUESTION, ANSWER)[1:]
    reason = read_reason([message("system", ""), QUESTION, ANSWER], system="Be terse.")
    assert reason == "system: given, and messages[0] is a system turn too; expected one of them"


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_parts_of_text_are_joined_as_they_stand(texts):
    parts = [{"type": "text", "text": text, "image_url": None} for text in ["So ", *texts]]
    assert parse(QUESTION, message("assistant", parts))[1].content == "So " + "".join(texts)


def test_a_list_may_be_json_text():
    assert parse_row({"messages": json.dumps([QUESTION, ANSWER])}) == parse_row({"messages": [QUESTION, ANSWER]})


OPENAI = {"id": "c1", "type": "function", "function": call('{"b": 2, "a": "ü"}')}
STORED = ToolCall("add", '{"b": 2, "a": "ü"}')


def test_tool_calls_in_every_form():
    asked = ToolCall("add", '{"b": 2, "a": "ü"}', "c1")
    flat = call({"b": 2, "a": "ü"}, "add")
    for content in (None, "", "Let me add."):
        turn = parse(QUESTION, message("assistant", content, tool_calls=[OPENAI, flat]))[1]
        assert turn == Turn("assistant", content or "", tool_calls=(asked, STORED))


@pytest.mark.parametrize("count", [None, 1, 2])
def test_a_function_call_turn_holds_its_calls_as_json(count):
    value = call({"b": 2, "a": "ü"})
    text = json.dumps(value if count is None else [value] * count)
    turns = parse_row(
        {
            "conversations": [
                {"from": "human", "value": "2 + ü?"},
                {"from": "function_call", "value": text},
                {"from": "observation", "value": ""},
                {"from": "gpt", "value": "2ü"},
            ]
        }
    ).turns
    assert turns[1] == Turn("assistant", "", tool_calls=(STORED,) * (count or 1))
    assert turns[2] == Turn("tool", "")


def test_a_tool_turn_says_which_call_it_answers():
    asked = message("assistant", None, tool_calls=[OPENAI])
    turns = parse(QUESTION, asked, message("tool", "4", name="add", tool_call_id="c1"), ANSWER)
    assert turns[2] == Turn("tool", "4", name="add", call_id="c1")


def test_tools_are_compact_json_in_their_own_order():
    tools = [{"type": "function", "function": {"name": "add", "description": "ü"}}]
    compact = '[{"type":"function","function":{"name":"add","description":"ü"}}]'
    for given_tools in (tools, json.dumps(tools)):
        assert parse_row({"messages": [QUESTION, ANSWER], "tools": given_tools}).tools == compact
    for nothing in (None, [], "[]", ""):
        assert parse_row({"messages": [QUESTION, ANSWER], "tools": nothing}).tools == ""


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning(key):
    turn = parse(QUESTION, ANSWER | {"reasoning_content": "", key: "Hm.\n"})[1]
    assert turn == Turn("assistant", "Because.", reasoning="Hm.\n")


def test_two_spellings_of_the_same_reasoning():
    assert parse(QUESTION, ANSWER | {"reasoning": "Hm.", "thinking": "Hm."})[1].reasoning == "Hm."


@pytest.mark.parametrize(
    ("flags", "is_trained"),
    [
        ({}, True),
        ({"train": None, "weight": None}, True),
        ({"train": False}, False),
        ({"training": False}, False),
        ({"loss": False}, False),
        ({"weight": 0}, False),
        ({"weight": 0.0, "train": False}, False),
        ({"weight": 1, "train": True, "loss": True}, True),
    ],
)
def test_flags(flags, is_trained):
    turns = parse(QUESTION | {"train": False, "weight": 0}, ANSWER | flags, QUESTION, ANSWER)
    assert [turn.is_trained for turn in turns] == [True, is_trained, True, True]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "messages: missing"),
        ("hi", "messages: text is not JSON at character 1: Expecting value"),
        ("{}", "messages: expected a list, found object"),
        ("[" * 100_000, "messages: JSON nested too deeply"),
        ({"role": "user"}, "messages: expected a list, found object"),
        ([], "messages: no assistant turn, so there is no response to train on"),
        ([message("system", "x"), QUESTION], "messages: no assistant turn, so there is no response to train on"),
        ([QUESTION, "hi"], "messages[1]: expected an object, found text"),
        ([{"content": "x"}], "messages[0].role: missing, and so is from; found 'content'"),
        ([QUESTION | {"from": "human"}], "messages[0].role: given, and so is from; expected one of them"),
        ([{"role": "user", "value": "x"}], "messages[0].content: missing"),
        ([QUESTION, message("assistant", None)], "messages[1].content: missing"),
        ([QUESTION, message("assistant", None, tool_calls=[])], "messages[1].content: missing"),
        ([message("user", 3)], "messages[0].content: expected text, found number"),
        ([{"role": 1, "content": "x"}], "messages[0].role: expected text, found number"),
        ([message("user", [3])], "messages[0].content[0]: expected an object, found number"),
        (
            [message("user", [{"type": "image_url", "image_url": "file:///etc/passwd"}])],
            "messages[0].content[0]: expected a part of type 'text', found 'image_url'; only text is read",
        ),
        ([message("user", [])], "messages[0].content: blank user turn"),
        ([message("user", " ")], "messages[0].content: blank user turn"),
        ([QUESTION, message("assistant", "\n")], "messages[1].content: blank response"),
        ([QUESTION, message("assistant", "\u200b\u2060")], "messages[1].content: blank response"),
        ([message("user", "\ufeff"), ANSWER], "messages[0].content: blank user turn"),
        (
            [QUESTION, message("assistant", "a\0b")],
            "messages[1].content: NUL (U+0000) at character 2; remove it",
        ),
        (
            [message("tool", "x"), QUESTION, ANSWER],
            "messages: a tool turn is before the first assistant turn; expected a call before its result",
        ),
        ([QUESTION, message("assistant", "ab\ud800")], "messages[1].content: lone surrogate at character 3"),
    ],
)
def test_faults_of_turns(messages, reason):
    assert read_reason(messages) == reason


def test_an_unknown_role_lists_the_known_ones():
    reason = read_reason([message("narrator", "x")])
    assert reason.startswith(
        "messages[0].role: unknown role 'narrator'; known are system, user, assistant, tool, devel"
    )


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"train": "yes"}, ".train: expected true or false, found 'yes'"),
        ({"loss": "no"}, ".loss: expected true or false, found 'no'"),
        (
            {"loss": 0.3},
            ".loss: expected true or false, found 0.3; a weight is named loss_weight, a measured loss can be ignored",
        ),
        ({"weight": 1.5}, ".weight: expected a number from -1 to 1, found 1.5"),
        ({"loss_weight": -1.5}, ".loss_weight: expected a number from -1 to 1, found -1.5"),
        ({"mask": 1}, ".mask: expected true (not trained) or false (trained), found 1"),
        ({"train": True, "weight": 0}, ": train and weight disagree on whether the text is trained"),
        ({"weight": 0.5, "loss_scale": 0.2}, ": weight and loss_scale disagree on the weight of the text"),
        ({"train": True, "mask": True}, ": train and mask disagree on the weight of the text"),
        ({"thinking": "a", "reasoning": "b"}, ": reasoning and thinking differ; expected one of them"),
        ({"thinking": True}, ".thinking: expected text, found true or false"),
        ({"tool_calls": {"x": 1}}, ".tool_calls.name: missing"),
        ({"tool_calls": 3}, ".tool_calls: expected a call (name, arguments) or a list of calls, found number"),
        ({"tool_calls": ["x"]}, ".tool_calls[0]: expected an object, found text"),
        ({"tool_calls": [OPENAI | {"type": "code"}]}, ".tool_calls[0].type: expected 'function', found 'code'"),
        ({"tool_calls": [OPENAI | {"id": 3}]}, ".tool_calls[0].id: expected text, found number"),
        ({"tool_calls": [{"function": []}]}, ".tool_calls[0].function: expected an object, found list"),
        ({"tool_calls": [call({}, " ")]}, ".tool_calls[0].name: blank"),
        ({"tool_calls": [call([])]}, ".tool_calls[0].arguments: expected an object, found list"),
        ({"tool_calls": [call("a=1")]}, ".tool_calls[0].arguments: text is not JSON at character 1: Expecting value"),
        ({"tool_calls": [call('{"a": "\\ud800"}')]}, ".tool_calls[0].arguments: lone surrogate at character 8"),
        ({"tool_calls": [{"function": call({}, 3)}]}, ".tool_calls[0].function.name: expected text, found number"),
    ],
)
def test_faults_of_an_assistants_turn(more, reason):
    assert read_reason([QUESTION, ANSWER | more]) == "messages[1]" + reason


@pytest.mark.parametrize("number", [float("nan"), 10**5000], ids=["NaN", "huge"])
def test_arguments_that_json_cannot_hold(number):
    reason = read_reason([QUESTION, ANSWER | {"tool_calls": [call({"a": number})]}])
    assert reason.startswith("messages[1].tool_calls[0].arguments: cannot be written as JSON: ")


def test_only_an_assistant_is_trained_calls_and_reasons():
    assert read_reason([QUESTION | {"weight": 1}, ANSWER]).startswith("messages[0]: marked as trained; only an assist")
    for more in ({"tool_calls": [OPENAI]}, {"thinking": "Hm."}):
        assert "only an assistant's turn has it" in read_reason([QUESTION | more, ANSWER])
    assert parse(QUESTION | {"tool_calls": [], "thinking": ""}, ANSWER) == parse(QUESTION, ANSWER)


def test_one_assistant_turn_is_left_to_train():
    reason = read_reason([QUESTION, ANSWER | {"train": False}])
    assert reason == "messages: every assistant turn is marked as not trained, so there is no response to train on"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("add(1)", "text is not JSON at character 1: Expecting value"),
        (None, "expected a call (name, arguments) or a list of calls, found null"),
        ("[]", "expected at least one call, found none"),
    ],
)
def test_faults_of_a_function_call_turn(value, reason):
    assert read_reason([QUESTION, message("function_call", value)]) == f"messages[1].content: {reason}"


def test_a_function_call_turn_has_no_other_calls():
    twice = message("function_call", json.dumps(call({})), tool_calls=[OPENAI])
    assert read_reason([QUESTION, twice]).startswith(
        "messages[1].tool_calls: given, and the content of a function_call"
    )


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        (3, "tools: expected a list, found number"),
        ("add", "tools: text is not JSON at character 1: Expecting value"),
        ([3], "tools[0]: expected an object, found number"),
        (["add"], "tools[0]: text is not JSON at character 1: Expecting value"),
        ([{"name": "\ud800"}], "tools: lone surrogate at character 11"),
    ],
)
def test_faults_of_tools(tools, reason):
    assert read_reason([QUESTION, ANSWER], tools=tools) == reason


def test_the_older_function_call_of_a_message_is_a_tool_call():
    call = {"name": "weather", "arguments": '{"city": "Paris"}'}
    answer = {"role": "assistant", "content": None, "function_call": call}
    question = {"role": "user", "content": "a"}
    (_, turn) = parse_row({"messages": [question, answer]}).turns
    assert turn.tool_calls == (ToolCall("weather", '{"city": "Paris"}'),)
    assert turn.content == ""
    with pytest.raises(RowError, match=r"function_call: given, and so is tool_calls"):
        parse_row({"messages": [question, answer | {"tool_calls": [call]}]})
    with pytest.raises(RowError, match=r"function_call: found object in a user turn"):
        parse_row({"messages": [question | {"function_call": call}, answer]})
