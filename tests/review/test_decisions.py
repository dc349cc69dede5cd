"""Decisions as lines, and which of them are in force."""

from __future__ import annotations

import json

import pytest
from reviewing import phrase, row, signed, span, undo

from tokenclean.review.decisions import LineError, TokenDecision, from_line, in_force, people_of, to_line

HOSTILE = '</script>\u202e‮\x00 👨‍👩‍👧 \u2028 \\ " \r\n é'


def test_every_kind_of_decision_comes_back_from_its_line():
    of = row(HOSTILE, original_id="7")
    decisions = [
        span(of, 0, len(HOSTILE)),
        span(of, 3, 4, 1.0),
        span(of, len(HOSTILE), len(HOSTILE) + 1, 0.25, who="Ωmega 王"),
        TokenDecision(signed(), "drop", of.id, "", 2, 4, 0.0, (17, 18)),
        phrase(HOSTILE),
    ]
    decisions.append(undo(decisions[0]))
    for decision in decisions:
        line = to_line(decision)
        assert "\n" not in line
        assert from_line(line) == decision
    assert json.loads(to_line(decisions[0]))["message"] == 1
    assert json.loads(to_line(decisions[3])).keys() >= {"token_start", "token_end", "input_ids"}
    assert json.loads(to_line(decisions[4])) == {
        "kind": "drop_everywhere",
        "decision": decisions[4].signature.decision,
        "who": "Ann",
        "when": "2026-11-30T10:00:00Z",
        "phrase": HOSTILE,
    }


GOOD = json.loads(to_line(span(row("An answer."), 0, 2)))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"kind": "like"}, "kind: expected keep, drop"),
        ({"who": " "}, "who: expected a text that is not blank"),
        ({"who": "\ud800"}, "who: expected text that is valid UTF-8"),
        ({"weight": 0.5}, "weight: expected 0, since the kind is drop"),
        ({"weight": True, "kind": "keep"}, "weight: expected 1"),
        ({"weight": float("nan"), "kind": "weight"}, "weight: expected a number from 0 to 1"),
        ({"weight": 10**400, "kind": "weight"}, "weight: expected a number from 0 to 1"),
        ({"weight": -0.1, "kind": "weight"}, "weight: expected a number from 0 to 1"),
        ({"start": 2}, "0 <= start < end"),
        ({"start": -1}, "0 <= start < end"),
        ({"end": "3"}, "0 <= start < end"),
        ({"message": -1}, "message: expected the number"),
        ({"message": True}, "message: expected the number"),
        ({"text": None}, "text: expected a text"),
        ({"token_start": 0, "token_end": 2, "input_ids": [1]}, "input_ids: expected the 2 token ids"),
        ({"token_start": 0, "token_end": 1, "input_ids": [1.5]}, "input_ids: expected the 1 token ids"),
        ({"kind": "undo"}, "undoes: expected"),
        ({"kind": "drop_everywhere"}, "phrase: expected"),
    ],
)
def test_a_line_with_a_fault_names_the_key(change, fault):
    with pytest.raises(LineError, match=fault.replace("(", r"\(")):
        from_line(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize("line", ["", "{", "[]", "null", "1", '"x"', "[" * 100_000, "{}", '{"kind": 1}'])
def test_a_line_that_is_no_object_of_ours_is_refused(line):
    with pytest.raises(LineError):
        from_line(line)


def test_what_is_undone_or_given_twice_does_not_count():
    of = row("An answer.")
    first, second, third = span(of, 0, 2), span(of, 3, 5, 1.0), phrase("answer")
    assert in_force([first, second, third, undo(second), first]) == [first, third]
    assert in_force([undo(first), first]) == []  # files are merged in any order
    assert people_of([first, span(of, 0, 1, who="Bob"), second]) == ["Ann", "Bob"]
