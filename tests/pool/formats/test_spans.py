"""Rows whose ``spans`` weigh characters of their messages."""

from __future__ import annotations

from typing import Any

import pytest
from parsing import parse_row

from tokenclean.pool import Conversation, Turn
from tokenclean.pool.formats import RowError
from tokenclean.pool.formats.row_parser import write_row

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Für 🙂 so."},
]


def span(start: int, end: int, weight: float, message: int = 2) -> dict[str, Any]:
    return {"message": message, "start": start, "end": end, "weight": weight}


def test_spans_weigh_characters_and_the_end_token():
    parsed = parse_row(
        {"messages": MESSAGES, "spans": [span(6, 10, -0.5), span(0, 3, 0), span(3, 4, 1)], "weight": 0.5}
    )
    assert (parsed.turns[2].weight, parsed.turns[2].spans) == (0.5, ((0, 3, 0.0), (3, 4, 1.0), (6, 10, -0.5)))
    assert parsed.unread == ()
    assert parse_row({"messages": MESSAGES, "spans": [span(9, 10, 0)]}).turns[2].spans == ((9, 10, 0.0),)


def test_a_prompt_and_a_completion_and_a_text_have_spans_too():
    parsed = parse_row({"prompt": "a", "completion": "bcd", "spans": [span(1, 4, 0, 1)]})
    assert parsed.turns[1].spans == ((1, 4, 0.0),)
    assert parse_row({"text": "abc", "spans": [span(0, 1, 0, 0)]}).turns[0].spans == ((0, 1, 0.0),)


def test_messages_of_a_prompt_and_a_completion_are_counted_on():
    prompt = [{"role": "user", "content": "a"}]
    for completion in ("bcd", [{"role": "assistant", "content": "bcd"}]):
        row = {"prompt": prompt, "completion": completion, "spans": [span(1, 4, 0, 1)]}
        assert parse_row(row).turns[1].spans == ((1, 4, 0.0),)


def test_spans_of_another_kind_are_only_counted():
    for spans in ([{"start": 0, "end": 3, "label": "PER"}], [[0, 3]], "some", {"message": 1, "weight": 1}):
        parsed = parse_row({"messages": MESSAGES, "spans": spans})
        assert (parsed.turns[2].spans, parsed.unread) == ((), ("spans",))
    assert parse_row({"messages": MESSAGES, "spans": [span(0, 1, 0)]}, ignore=("spans",)).turns[2].spans == ()


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ([span(0, 1, 0, 1)], "spans[0].message: expected an answer, number 2, found 1"),
        ([span(0, 1, 0, 7)], "spans[0].message: expected an answer, number 2, found 7"),
        ([span(0, 11, 0)], "spans[0]: expected 0 <= start < end <= 10, the content's length and one for the end token"),
        ([span(2, 2, 0)], "spans[0]: expected 0 <= start < end <= 10"),
        ([span(-1, 2, 0)], "spans[0].start: expected a whole number of at least 0, found -1"),
        ([span(0, 1, 0) | {"end": 1.5}], "spans[0].end: expected a whole number of at least 0, found 1.5"),
        ([span(0, 1, 2)], "spans[0].weight: expected a number from -1 to 1, found 2"),
        ([span(0, 1, 0) | {"weight": None}], "spans[0].weight: missing"),
        ([span(0, 1, 0), "x"], "spans[1]: expected an object, found text"),
        ([span(0, 3, 0), span(2, 4, 1)], "spans: two spans of message 2 overlap"),
    ],
)
def test_spans_that_are_no_weights_of_an_answer_are_refused(spans, reason):
    with pytest.raises(RowError) as caught:
        parse_row({"messages": MESSAGES, "spans": spans})
    assert str(caught.value).startswith(reason)


def test_rows_in_which_a_span_would_be_ambiguous_are_refused():
    def reason(row: dict[str, Any], **options) -> str:
        with pytest.raises(RowError) as caught:
            parse_row(row, **options)
        return str(caught.value)

    spans = [span(0, 1, 0, 1)]
    assert "2 messages are read as 3 turns" in reason({"messages": MESSAGES[1:], "system": "x", "spans": spans})
    assert "repair_thoughts" in reason({"messages": MESSAGES, "spans": spans}, repair_thoughts=True)
    parts = [*MESSAGES[:2], {"role": "assistant", "content": ["a", {"type": "text", "text": "b", "weight": 0.5}]}]
    assert "message 2 has parts" in reason({"messages": parts, "spans": [span(0, 1, 0)]})
    context = [*MESSAGES[:2], MESSAGES[2] | {"train": False}, MESSAGES[1], MESSAGES[2]]
    assert "marked as not trained" in reason({"messages": context, "spans": [span(0, 1, 0.5)]})
    assert (
        parse_row({"messages": context, "spans": [span(0, 10, 0)]}).turns[2]
        == parse_row({"messages": context}).turns[2]
    )


@pytest.mark.parametrize("kind", ["chat", "completion", "text"])
def test_a_row_with_spans_is_written_as_it_is_read(kind):
    answer = Turn("assistant", "abcdef", weight=0.5, spans=((0, 2, -1.0), (5, 7, 0.0)))
    turns = (answer,) if kind == "text" else (Turn("user", "ask"), answer)
    row = write_row(Conversation("s:1:x", "s", turns, kind))
    assert len(row["spans"]) == 2
    assert parse_row(row).turns == turns
