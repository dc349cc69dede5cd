from __future__ import annotations

from typing import Any

import pytest
from parsing import parse_row

from tokenclean.pool import Turn
from tokenclean.pool.formats import RowError
from tokenclean.pool.formats.unread_keys import MEDIA, PREFERENCE, SECOND_TEXT, TEMPLATE, TOOLS, WEIGHT

QUESTION = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
CHAT: dict[str, Any] = {"messages": [QUESTION, ANSWER]}
ALPACA = {"instruction": "Add.", "output": "3"}


def refusal(row: dict[str, Any], **options: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        parse_row(row, **options)
    return caught.value


@pytest.mark.parametrize("row", [CHAT, ALPACA, {"prompt": "a", "completion": "b"}, {"text": "a"}])
def test_every_other_key_that_holds_something_is_counted(row):
    more = {"score": 4, "category": "x", "empty": "", "none": None, "nothing": [], "nan": float("nan")}
    assert parse_row(row | more).unread == ("score", "category")
    assert parse_row(row | {"id": 3, "source": "web", "original_id": "x"}).unread == ()


def test_keys_of_messages_are_counted_too():
    messages = [QUESTION | {"name": "Ann", "time": 3}, ANSWER | {"model": "x", "time": 4}]
    assert parse_row({"messages": messages}).unread == ("messages[].time", "messages[].name", "messages[].model")
    parts = [{"type": "text", "text": "Why?", "cache_control": {"type": "ephemeral"}}]
    assert parse_row({"messages": [QUESTION | {"content": parts}, ANSWER]}).unread == (
        "messages[].content[].cache_control",
    )


@pytest.mark.parametrize(
    ("key", "value", "meaning"),
    [
        ("label", True, PREFERENCE),
        ("label", "false", PREFERENCE),
        ("label", 0, PREFERENCE),
        ("kto_tag", True, PREFERENCE),
        ("rejected", "no", PREFERENCE),
        ("rejected_response", "no", PREFERENCE),
        ("chosen", [ANSWER], PREFERENCE),
        ("image", "a.png", MEDIA),
        ("images", ["a.png"], MEDIA),
        ("videos", ["a.mp4"], MEDIA),
        ("audio_path", "a.wav", MEDIA),
        ("Image-URL", "http://x", MEDIA),
        ("loss_mask", [0, 1], WEIGHT),
        ("assistant_masks", [1], WEIGHT),
        ("mask", "assistant", WEIGHT),
        ("train_on_input", True, WEIGHT),
        ("question", "And what is 2 + 2?", SECOND_TEXT),
        ("context", "The sky is green.", SECOND_TEXT),
        ("history", [["a", "b"]], SECOND_TEXT),
        ("tool_definitions", [{"name": "add"}], TOOLS),
        ("available_tools", '[{"name": "add"}]', TOOLS),
        ("documents", [{"text": "x"}], SECOND_TEXT),
        ("chat_template_kwargs", {"enable_thinking": True}, TEMPLATE),
        ("audio_filepath", "a.wav", MEDIA),
        ("imageUrl", "x", MEDIA),
        ("image_0", "x", MEDIA),
        ("is_masked", True, WEIGHT),
    ],
)
def test_keys_that_change_what_is_trained_are_refused_by_name_and_may_be_ignored(key, value, meaning):
    error = refusal(CHAT | {key: value})
    assert str(error) == f"{key}: {meaning}"
    assert f"--ignore {key}" in error.remedy
    assert ("--preferences chosen" in error.remedy) == (meaning == PREFERENCE)
    assert parse_row(CHAT | {key: value}, ignore=(key,)).unread == (key,)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label", "positive"),
        ("label", 3),
        ("chosen_rating", 4.5),
        ("rejected_score", 1),
        ("preferred_language", "en"),
        ("image_caption", "x"),
        ("special_tokens_mask", [1, 0]),
        ("question_id", "q1"),
        ("prompt_id", "p1"),
        ("weighting", 3),
        ("loss", 1.7),
        ("images", []),
        ("tool_count", 2),
        ("function", "sort"),
        ("label", "yes"),
    ],
)
def test_keys_that_only_resemble_those_are_counted(key, value):
    assert set(parse_row(CHAT | {key: value}).unread) <= {key}


@pytest.mark.parametrize("key", ["trainable", "masked", "compute_loss", "no_loss", "content_mask", "is_target"])
def test_masks_of_messages_under_other_names_are_refused(key):
    error = refusal({"messages": [QUESTION, ANSWER | {key: False}]})
    assert str(error) == f"messages[1].{key}: {WEIGHT}"


def test_ignored_keys_of_messages_count_for_nothing_and_are_counted():
    messages = [QUESTION | {"weight": 1}, ANSWER | {"loss": 0.3, "weight": 1}]
    assert refusal({"messages": messages}).remedy.startswith("--ignore weight")
    parsed = parse_row({"messages": messages}, ignore=("weight", "loss"))
    assert parsed.turns[1] == Turn("assistant", "Because.")
    assert set(parsed.unread) == {"messages[].weight", "messages[].loss"}


def test_keys_of_calls_are_accounted_for():
    def call(**function: Any) -> dict[str, Any]:
        answer = {"role": "assistant", "tool_calls": [{"function": {"name": "f", **function}, "note": "x"}]}
        return {"messages": [QUESTION, answer]}

    for key in ("arguments", "parameters", "args", "input"):
        parsed = parse_row(call(**{key: {"a": 1}}))
        assert parsed.turns[1].tool_calls[0].arguments == '{"a": 1}'
        assert parsed.unread == ("tool_calls[].note",)
    assert "function.args are given" in str(refusal(call(arguments={"a": 1}, args={"a": 2})))
    beside = [{"function": {"name": "f"}, "arguments": {"a": 1}}]
    turn = parse_row({"messages": [QUESTION, {"role": "assistant", "tool_calls": beside}]}).turns[1]
    assert turn.tool_calls[0].arguments == '{"a": 1}'


def test_a_thought_stands_in_one_place():
    def thinks(content: str, reasoning: str) -> dict[str, Any]:
        return {"messages": [QUESTION, {"role": "assistant", "content": content, "reasoning_content": reasoning}]}

    twice = parse_row(thinks("<think>\nHm.\n</think>\n\nSo.", "Hm."))
    assert twice.turns[1] == Turn("assistant", "<think>\nHm.\n</think>\n\nSo.")
    assert twice.notes == ("thought given in the content and as reasoning, taken once",)
    assert "another one as reasoning" in str(refusal(thinks("<think>A</think>So.", "B")))
    assert "holds the tag </think>" in str(refusal(thinks("So.", "Hm.</think>")))
    assert parse_row(thinks("So.", "on")).turns[1].reasoning == ""


@pytest.mark.parametrize("blank", ["\u2800", "\u3164\ufe0f", "<think>\n\n</think>\n", "\ufffc "])
def test_answers_that_say_nothing(blank):
    assert str(refusal({"messages": [QUESTION, ANSWER | {"content": blank}]})) == "messages[1].content: blank response"
    assert str(refusal(ALPACA | {"output": blank})) == "output: blank response"


def test_texts_that_came_rendered_or_stand_for_pictures_are_noted():
    for text, note in (("[INST] Why? [/INST]", "is it rendered"), ("<image>\nWhat?", "placeholder")):
        (found,) = parse_row({"messages": [{"role": "user", "content": text}, ANSWER]}).notes
        assert note in found
    assert parse_row({"messages": [QUESTION, ANSWER | {"content": "Because.</s>"}]}).notes


def test_both_spellings_of_a_content_may_not_differ():
    assert "content and value are given" in str(refusal({"messages": [QUESTION, ANSWER | {"value": "No."}]}))
    assert parse_row({"messages": [QUESTION, ANSWER | {"value": "Because."}]}).turns[1].content == "Because."


def test_a_second_prompt_that_repeats_what_is_read_is_counted():
    assert parse_row(CHAT | {"prompt": "Why?", "prompt_id": 3}).unread == ("prompt", "prompt_id")
    rendered = "### Instruction:\nBecause.\n### Response:"
    assert parse_row(CHAT | {"prompt": rendered}).unread == ("prompt",)
    assert str(refusal(CHAT | {"prompt": "Hi"})).startswith("prompt: ")
    assert str(refusal(CHAT | {"System": "y"})).startswith("System: ")  # a letter of what is read is no repetition


def test_a_format_named_by_the_user_leaves_the_keys_of_the_other_formats_out():
    both = ALPACA | {"prompt": "x", "completion": "y"}
    assert parse_row(both, "alpaca").unread == ("prompt", "completion")


def test_of_text_and_of_tokens_a_label_and_a_prompt_mean_nothing():
    assert parse_row({"text": "A film.", "label": 1, "question": "Good?"}).unread == ("label", "question")
    tokens = {"input_ids": [5, 6], "labels": [-100, 6], "messages": None, "prompt": "x"}
    assert parse_row(tokens).unread == ("prompt",)


def test_under_a_map_of_columns_what_is_not_mapped_is_counted_but_labels_images_and_masks():
    row = {"q": "Why?", "a": "Because.", "context": "x", "meta": {"n": 1}}
    columns = {"instruction": "q", "output": "a"}
    assert parse_row(row, columns=columns).unread == ("context", "meta")
    for key, value in (("label", False), ("images", ["x"]), ("loss_mask", [1])):
        assert str(refusal(row | {key: value}, columns=columns)).startswith(f"{key}: ")
    chosen = {"question": "Why?", "chosen": "Because.", "rejected": "No."}
    parsed = parse_row(chosen, columns={"instruction": "question", "output": "chosen"})
    assert parsed.unread == ("rejected",)


def test_keys_beside_a_mapped_column_are_accounted_for_too():
    inside = {"messages": [QUESTION, ANSWER], "score": 3}
    columns = {"messages": "data.messages"}
    assert parse_row({"data": inside}, columns=columns).unread == ("data.score",)
    for key, value in (("label", False), ("images", ["x"]), ("rejected", "no"), ("loss_mask", [0])):
        assert str(refusal({"data": inside | {key: value}}, columns=columns)).startswith(f"data.{key}: ")
    for key, ours in (("tools", "tools"), ("system", "system")):
        error = refusal({"data": inside | {key: [{"name": "f"}] if key == "tools" else "Be terse."}}, columns=columns)
        assert error.remedy.startswith(f"--column {ours}=data.{key}")


def test_harmless_keys_are_no_alarm():
    row = CHAT | {
        "target": "4",
        "image": False,
        "images": 0,
        "media": "newspaper",
        "chat_template_kwargs": {"custom_instructions": "", "xml_tools": []},
        "best_answer": "x",
        "turn_2": "y",
        "is_train": "no",
    }
    assert {"target", "best_answer", "turn_2"} <= set(parse_row(row).unread)
    question = {"instruction": "Write a function", "input": "for lists", "output": "def f(): ..."}
    rendered = "Below is an instruction.\n### Instruction:\nWrite a function\n### Input:\nfor lists\n### Output:"
    assert parse_row(question | {"prompt": rendered}).unread == ("prompt",)
    assert parse_row({"instruction": "a", "input": "", "context": "doc", "output": "b"}).turns[0].content == "a\ndoc"


def test_what_is_ignored_is_ignored_before_anything_is_read():
    row = {"messages": [{"role": "system", "content": "A"}, QUESTION, ANSWER], "system": "B"}
    assert refusal(row).remedy == "--ignore system"
    assert parse_row(row, ignore=("system",)).unread == ("system",)
    assert parse_row(ALPACA | {"response": "4"}, ignore=("response",)).turns[1].content == "3"


@pytest.mark.slow
def test_a_long_repeated_prompt_costs_no_time():
    text = "word " * 200_000
    row = {"messages": [{"role": "user", "content": text}, ANSWER], "prompt": text.strip(), "question": text[5:]}
    assert parse_row(row).unread == ("prompt", "question")


def test_older_and_other_keys_are_obeyed():
    functions = [{"name": "add", "parameters": {"type": "object"}}]
    parsed = parse_row(CHAT | {"functions": functions})
    assert parsed.tools == '[{"type":"function","function":{"name":"add","parameters":{"type":"object"}}}]'
    assert parsed.notes == ("functions read as tools",)
    assert str(refusal(CHAT | {"functions": functions, "tools": functions})).startswith("functions: given, and so is")
    assert parse_row({"instruction": "Teach.", "query": "What?", "response": "This."}).turns[0] == Turn(
        "user", "Teach.\nWhat?"
    )
    assert parse_row(CHAT | {"system_prompt": "Be terse."}).turns[0] == Turn("system", "Be terse.")
    assert parse_row(ALPACA | {"reasoning": "Hm."}).turns[1] == Turn("assistant", "3", reasoning="Hm.")


def test_texts_with_a_system_or_tools_are_no_completion():
    for key, value in (("system", "Be terse."), ("tools", [{"name": "add"}])):
        row = {"prompt": "a", "completion": "b", key: value}
        error = refusal(row)
        assert str(error).startswith(f"{key}: given beside a prompt")
        columns = dict(part.split("=") for part in error.remedy.split() if "=" in part)
        assert parse_row(row, columns=columns).kind == "chat"


def test_a_rows_own_id_is_kept_as_text():
    assert [parse_row(CHAT | {"id": value}).original_id for value in (7, "7", "x", None, "")] == ["7", "7", "x", "", ""]
    assert parse_row(CHAT | {"id": {"$oid": "3"}}).unread == ("id",)
    assert parse_row(CHAT | {"id": "a", "original_id": "b"}).original_id == "b"
    assert (
        parse_row({"q": "x", "a": "y", "key": 5}, columns={"instruction": "q", "output": "a", "id": "key"}).original_id
        == "5"
    )
    assert parse_row(CHAT | {"source": ["a", "b"]}).unread == ("source",)
