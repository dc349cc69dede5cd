"""What two readings make of a row, by hand, and the file of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tokenclean.asking.prompts import first_characters
from tokenclean.critic.critic_file import CriticRow, NamedSpan, judged_row, read_named, unread_row, write_critic
from tokenclean.critic.reading import Named, ShownRow, shown_of
from tokenclean.errors import PoolError, TableError
from tokenclean.pool import Conversation, Turn
from tokenclean.tokens.weight_spans import WeightSpan

ROW = Conversation(
    "p:1:0",
    "p",
    (Turn("user", "?"), Turn("assistant", "One. Two. Six."), Turn("user", "?"), Turn("assistant", "Ten.")),
    original_id="own",
)


def shown(row: Conversation = ROW) -> ShownRow:
    return shown_of(row, first_characters())


def reading(**reasons: str) -> tuple[Named, ...]:
    """``n0="false"``: the first sentence is named, being false."""
    return tuple(Named(int(name[1:]), reason) for name, reason in reasons.items())


def test_only_what_both_readings_name_is_masked():
    found = judged_row(shown(), [reading(n0="false", n1=""), reading(n1="odd", n3="long")])
    assert found.state == "read"
    assert found.spans == (WeightSpan(1, 5, 9, 0.0),)
    assert found.named == (NamedSpan(1, 0, 4, 1, "false"), NamedSpan(1, 5, 9, 2, "odd"), NamedSpan(3, 0, 4, 1, "long"))
    assert (found.id, found.original_id, found.sentences, found.shown) == ("p:1:0", "own", 4, 4)
    assert judged_row(shown(), [(), reading(n0="x")]).spans == ()


def test_a_row_is_dropped_above_half_of_its_sentences_and_not_at_half():
    two, three = reading(n0="a", n3="b"), reading(n0="a", n1="c", n3="b")
    at_half = judged_row(shown(), [two, three])
    assert (at_half.state, len(at_half.spans)) == ("read", 2)
    above = judged_row(shown(), [three, three])
    assert above.state == "dropped"
    assert above.spans == (WeightSpan(1, 0, 15, 0.0), WeightSpan(3, 0, 5, 0.0))  # with the end tokens
    assert [named.times for named in above.named] == [2, 2, 2]
    single = replace(ROW, turns=ROW.turns[2:])
    assert judged_row(shown(single), [reading(n0="a")] * 2).state == "dropped"
    # Of a row that was read in part all sentences count.
    part = ShownRow(ROW, shown().sentences, 2)
    assert judged_row(part, [reading(n0="a", n1="c")] * 2).state == "read"


def test_a_row_with_an_unreadable_reading_is_kept_whole():
    for readings in ([None, reading(n0="a")], [reading(n0="a"), None], [None, None]):
        assert judged_row(shown(), readings) == CriticRow("p:1:0", "own", "unreadable", 4, 0)


def test_the_file_has_every_row_and_gives_back_what_was_named(tmp_path):
    named = judged_row(shown(), [reading(n0="false"), reading(n0="", n1="„odd“")])
    dropped = replace(judged_row(shown(), [reading(n0="", n1="", n2="")] * 2), id="p:2:0")
    path = tmp_path / "critic.jsonl"
    write_critic(
        path, [named, dropped, unread_row(replace(shown(), conversation=replace(ROW, id="p:3:0")), "not_asked")]
    )
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["state"], line["dropped"]) for line in lines] == [
        ("p:1:0", "read", False),
        ("p:2:0", "dropped", True),
        ("p:3:0", "not_asked", False),
    ]
    assert lines[0]["spans"] == [{"message": 1, "start": 0, "end": 4, "weight": 0.0}]
    assert lines[2]["spans"] == []
    assert read_named(path) == {"p:1:0": named.named, "p:2:0": dropped.named}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "a", "spans": []}', "critic.jsonl:1: expected id"),
        ('{"id": 3, "named": []}', "expected id"),
        ('{"id": "a", "named": [{"message": 1, "start": 0, "end": 4}]}', "expected whole numbers message"),
        ('{"id": "a", "named": [{"message": 1, "start": -1, "end": 4, "times": 2}]}', "expected whole numbers message"),
        ('{"id": "a", "named": [7]}', "found 7"),
        ("{", "critic.jsonl:1: "),
    ],
)
def test_a_file_of_something_else_is_refused(line, words, tmp_path):
    path = tmp_path / "critic.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises((TableError, PoolError), match=words):
        read_named(path)
