from __future__ import annotations

from typing import Any

import pytest
from parsing import parse_row

from tokenclean.pool import Turn
from tokenclean.pool.formats import Parsed, RowError


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [said("user", "Q1"), said("assistant", "A1"), said("user", "Q2")]
GOOD, BAD = said("assistant", "good"), said("assistant", "bad")
THREAD = (Turn("user", "Q1"), Turn("assistant", "A1", is_trained=False), Turn("user", "Q2"), Turn("assistant", "good"))


def chosen(row: dict[str, Any]) -> Parsed:
    return parse_row(row, preferences="chosen")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ASKED, "chosen": GOOD, "rejected": BAD},
        {"messages": [*ASKED, said("assistant", "draft")], "chosen": GOOD, "rejected": BAD},
        {"messages": [*ASKED, GOOD], "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD], "label": 0},
        {"prompt": "Q2", "messages": [*ASKED, BAD], "chosen": "good", "rejected": "bad"},
        {"messages": ASKED, "chosen": "good", "rejected": "bad"},
        {"conversations": ASKED, "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": ASKED, "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": ASKED, "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
        {"chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
        {"chosen": [*ASKED, GOOD], "rejected": "bad", "score_chosen": 4.0},
        {"messages": [*ASKED, GOOD], "rejected_response": "bad"},
        {"input": {"messages": ASKED}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"instruction": "Q2", "history": [["Q1", "A1"]], "chosen": "good", "rejected": "bad"},
        {"prompt": "Q2", "messages": [*ASKED, GOOD], "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
    ],
)
def test_the_chosen_answer_alone_is_trained(row):
    with pytest.raises(RowError, match="a preference label"):
        parse_row(row)
    parsed = chosen(row)
    assert parsed.turns == THREAD
    assert parsed.notes == ("preference row: the chosen answer trained",)
    assert not {"chosen", "rejected", "rejected_response"} & set(parsed.unread)


def test_texts_stay_texts():
    assert chosen({"prompt": "Q", "chosen": " good", "rejected": " bad"}) == Parsed(
        "completion",
        (Turn("user", "Q"), Turn("assistant", " good")),
        notes=("preference row: the chosen answer trained",),
    )
    parsed = chosen({"instruction": "Q", "input": "x", "chosen": "good", "rejected": "bad"})
    assert [turn.content for turn in parsed.turns] == ["Q\nx", "good"]


@pytest.mark.parametrize("good", [True, 1, "True", "true"])
@pytest.mark.parametrize("row", [{"messages": [*ASKED, GOOD]}, {"prompt": "Q", "completion": "good"}])
def test_a_label_chooses_whole_rows(row, good):
    assert chosen(row | {"label": good}).turns == parse_row(row).turns
    bad = good.replace("rue", "alse").replace("T", "F").replace("t", "f") if isinstance(good, str) else not good
    with pytest.raises(RowError, match="label: a rejected answer") as left_out:
        chosen(row | {"label": bad})
    assert left_out.value.is_chosen


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("label", "1", "0.0"),
        ("label", "good", "bad"),
        ("label", 1, -1),
        ("kto_tag", "True", "False"),
        ("is_rejected", False, True),
        ("preferred", True, False),
        ("thumbs_up", 1, 0),
    ],
)
def test_labels_in_other_words(key, good, bad):
    row = {"prompt": "Q", "completion": "A"}
    for value in (good, bad):
        with pytest.raises(RowError, match="a preference label"):
            parse_row(row | {key: value})
    assert chosen(row | {key: good}).turns == parse_row(row).turns
    with pytest.raises(RowError, match="a rejected answer"):
        chosen(row | {key: bad})
    mapped = {"q": "Q", "a": "A", key: good}
    columns = {"instruction": "q", "output": "a"}
    assert parse_row(mapped, columns=columns, preferences="chosen").turns[1] == Turn("assistant", "A")


def test_an_answer_that_repeats_its_prompt_is_taken_without_it():
    row = {"prompt": "Human: Hi?", "chosen": "Human: Hi? Assistant: good", "rejected": "Human: Hi? Assistant: bad"}
    assert [turn.content for turn in chosen(row).turns] == ["Human: Hi?", " Assistant: good"]


@pytest.mark.parametrize("key", ["response_rejected", "reject", "loser", "worse_response", "conversation_b"])
def test_preferences_under_other_names_are_refused_even_then(key):
    with pytest.raises(RowError, match="a preference label"):
        chosen({"messages": [*ASKED, GOOD], key: "bad"})


def test_rows_without_a_preference_are_read_as_ever():
    row = {"messages": [*ASKED, GOOD], "rating": "news"}
    assert chosen(row) == parse_row(row)
    with pytest.raises(RowError, match="label: 'news' says neither good nor rejected"):
        chosen(row | {"label": "news"})
    for word, is_good in (("yes", True), ("negative", False), ("unsafe", False)):
        if is_good:
            assert chosen(row | {"label": word}).turns == parse_row(row).turns
        else:
            with pytest.raises(RowError, match="a rejected answer"):
                chosen(row | {"label": word})


def test_a_chosen_answer_that_cannot_be_told_is_refused():
    for value in (3, [1]):
        with pytest.raises(RowError, match="chosen: expected text, a message or a list of messages"):
            chosen({"messages": ASKED, "chosen": value, "rejected": "bad"})
