from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from tokenclean.pool.formats.oasst import read_threads
from tokenclean.pool.reading import Record


def message(id: str, parent: str | None, text: str = "", role: str = "", **further: Any) -> dict[str, Any]:
    """A message whose id begins with p for a prompter and a for an assistant, unless said otherwise."""
    role = role or ("prompter" if id.startswith("p") else "assistant")
    return {"message_id": id, "parent_id": parent, "text": text or f"{id}.", "role": role, **further}


def threads(rows: Iterable[Any]) -> list[Record]:
    return list(read_threads(Record(n, n, row) for n, row in enumerate(rows, start=1)))


def said(record: Record) -> list[str]:
    assert record.row is not None, record.fault
    return [turn["content"] for turn in record.row["messages"]]


TREE = [
    message("p0", None),
    message("a1", "p0", rank=1),
    message("a0", "p0", rank=0),
    message("a2", "p0", rank=2),
    message("p1", "a0", rank=1),
    message("p2", "a0", rank=0),
    message("a3", "p2", rank=0),
    message("p3", "a3", rank=0),
    message("p4", "a1", rank=0),
    message("a5", "p4", rank=0),
]


def test_the_best_ranked_replies_make_the_thread_and_it_ends_with_an_answer():
    [record] = threads(TREE)
    assert said(record) == ["p0.", "a0.", "p2.", "a3."]
    assert record.row is not None
    assert [turn["role"] for turn in record.row["messages"]] == ["user", "assistant"] * 2
    assert (record.number, record.line) == (1, 1)


def test_the_order_of_the_messages_does_not_matter():
    generator = random.Random(0)
    for _ in range(20):
        rows = generator.sample(TREE, len(TREE))
        [record] = threads(rows)
        assert said(record) == ["p0.", "a0.", "p2.", "a3."]
        assert record.line == rows.index(TREE[0]) + 1


def test_without_ranks_the_first_counts_and_a_rank_goes_before_none():
    assert said(threads([message("p", None), message("a1", "p"), message("a2", "p")])[0]) == ["p.", "a1."]
    ranked = [message("p", None), message("a1", "p", rank=None), message("a2", "p", rank=3), message("a3", "p", rank=3)]
    assert said(threads(ranked)[0]) == ["p.", "a2."]
    assert (
        said(threads([message("p", None), message("a1", "p", rank=1.0), message("a2", "p", rank=0.0)])[0])[1] == "a2."
    )


def test_deleted_and_blank_replies_and_those_of_the_same_role_are_passed_over():
    rows = [
        message("p", None),
        message("a1", "p", rank=0, deleted=True),
        message("p1", "a1", rank=0),
        message("a2", "p", " \n", rank=1),
        message("p2", "p", rank=2),
        message("a3", "p", rank=3, deleted=False),
    ]
    [record] = threads(rows)
    assert said(record) == ["p.", "a3."]


def test_several_trees_come_in_the_order_of_their_first_messages():
    rows = [message("p1", None), message("p2", None), message("a2", "p2"), message("a1", "p1")]
    assert [(record.line, said(record)) for record in threads(rows)] == [(1, ["p1.", "a1."]), (2, ["p2.", "a2."])]


@pytest.mark.parametrize(
    ("rows", "line", "fault"),
    [
        ([message("p", None)], 1, "the tree holds no answer to its first message"),
        ([message("p", None), message("a", "p", deleted=True)], 1, "the tree holds no answer to its first message"),
        ([message("a", None)], 1, "role: expected a tree to begin with a prompter, found 'assistant'"),
        ([message("p", None, deleted=True), message("a", "p")], 1, "deleted: the first message of the tree"),
        ([message("p", None, "  "), message("a", "p")], 1, "text: the first message of the tree is blank"),
        ([message("a", "gone")], 1, "parent_id: the message 'gone' is not in the source"),
        ([{"message_id": "p", "role": "prompter"}], 1, "text: missing"),
        ([message("p", None, role="user")], 1, "role: expected prompter or assistant, found 'user'"),
        ([message("p", None, rank=-1)], 1, "rank: expected a number from 0, found -1"),
        ([message("p", None, rank=0.5)], 1, "rank: expected a number from 0, found 0.5"),
        ([message("p", None, rank=float("nan"))], 1, "rank: expected a number from 0, found nan"),
        ([message("p", None, rank=True)], 1, "rank: expected a number from 0, found true"),
        ([message("p", None, deleted="no")], 1, "deleted: expected true or false, found text"),
        ([message("p", 3)], 1, "parent_id: expected text, found number"),  # type: ignore[arg-type]
        ([message("p", None, "\ud800")], 1, "text: lone surrogate at character 1"),
    ],
)
def test_what_gives_no_thread_is_at_fault(rows, line, fault):
    [record] = threads(rows)
    assert (record.line, record.row, record.fault) == (line, None, fault)


def test_a_second_message_of_an_id_a_circle_and_an_unreadable_record_are_at_fault_alone():
    rows = [message("p", None), message("a", "p"), message("a", "p"), message("a7", "p7"), message("p7", "a7")]
    records = [*(Record(n, n, row) for n, row in enumerate(rows, start=1)), Record(6, 6, None, "broken JSON", b"{")]
    found = list(read_threads(records))
    assert [(r.line, r.fault) for r in found] == [
        (1, ""),
        (3, "message_id: 'a' is given twice"),
        (6, "broken JSON"),
        (4, "parent_id: the message 'p7' leads to no first message"),
        (5, "parent_id: the message 'a7' leads to no first message"),
    ]
    assert found[2].origin == b"{"
