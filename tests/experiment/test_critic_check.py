"""A critic on rows with known faults: what counts as truth, and its figures by hand."""

from __future__ import annotations

import math

import pytest

from tokenclean.asking.prompts import first_characters
from tokenclean.critic.reading import Named, Reading, shown_of
from tokenclean.critic.sentences import sentences_of
from tokenclean.errors import PoolError
from tokenclean.experiment.critic_check import (
    PLANTED,
    PLANTED_KINDS,
    CheckResult,
    CheckRows,
    check_lines,
    check_result,
    check_table,
    planted_rows,
    reviewed_rows,
    verdict,
)
from tokenclean.experiment.demo import pool_path
from tokenclean.pool import Conversation, Turn, load_pool
from tokenclean.review.decisions import Signature, SpanDecision
from tokenclean.review.review_file import append_decisions, read_review


def row_of(answer: str, number: int) -> Conversation:
    return Conversation(f"p:{number}:0", "p", (Turn("user", "Why?"), Turn("assistant", answer)))


def named(*sentences: int) -> Reading:
    return tuple(Named(sentence, "") for sentence in sentences)


def result_of(truth: list[tuple[str | None, ...]], readings: list[Reading | None], shown=None) -> CheckResult:
    rows = tuple(row_of("One. " * len(kinds), number) for number, kinds in enumerate(truth))
    shown = [len(kinds) for kinds in truth] if shown is None else shown
    return check_result(CheckRows(rows, tuple(truth), PLANTED), shown, readings)


def test_figures_by_hand():
    truth = [("numbers", "", "", None), ("swapped", "swapped"), ("", ""), ("numbers", "")]
    readings = [
        *(named(0, 1, 3), named(0, 3)),  # 0 masked, rightly; 3 is not known
        *(named(0, 1), named(0, 1)),  # both, rightly; the row is dropped
        *(named(0), named(0)),  # wrongly
        *(None, named(0)),  # nothing
    ]
    found = result_of(truth, readings)
    assert (found.precision.hits, found.precision.total) == (3, 4)
    assert (found.recall.hits, found.recall.total) == (3, 4)
    assert (found.false_alarms.hits, found.false_alarms.total) == (1, 5)
    assert {kind: (share.hits, share.total) for kind, share in found.by_kind.items()} == {
        "numbers": (1, 2),
        "swapped": (2, 2),
    }
    assert (found.rows, found.unreadable, found.dropped) == (4, 1, 1)
    # Of the first three rows' 8 sentences, 7 have the same label; 6 and 5 of the 8 are named.
    assert found.agreement == pytest.approx(7 / 8)
    chance = 6 / 8 * 5 / 8 + 2 / 8 * 3 / 8
    assert found.kappa == pytest.approx((7 / 8 - chance) / (1 - chance))
    assert found.bad_share == pytest.approx(4 / 9)
    assert found.precision_at(0.05) == pytest.approx(0.75 * 0.05 / (0.75 * 0.05 + 0.2 * 0.95))
    assert found.precision_at(found.bad_share) == pytest.approx(found.precision.share)
    lines = "\n".join(check_lines(found))
    assert "agree on 87.5% of the sentences; Cohen's kappa 0.71" in lines
    assert "1 of the 4 rows have an unreadable reading" in lines
    text = check_table(found).to_markdown()
    assert "3 of 4" in text
    assert "swapped" in text


def test_sentences_that_were_not_shown_do_not_count():
    found = result_of([("", "numbers"), ("numbers", "")], [named(), named(), named(0), named(0)], shown=[1, 2])
    assert (found.recall.total, found.false_alarms.total, found.recall.hits) == (1, 2, 1)
    with pytest.raises(PoolError, match="no sentence of the check's rows could be shown"):
        result_of([("numbers",)], [named(), named()], shown=[0])


def test_verdicts():
    rows = 20
    clean, mixed = [("", "", "")] * rows, [("numbers", "", "")] * rows
    nothing = result_of(mixed, [named()] * 2 * rows)
    assert "masks nothing" in verdict(nothing)
    assert math.isnan(nothing.precision_at(0.05))
    everything = result_of(mixed, [named(0, 1, 2)] * 2 * rows)
    assert "better than masking at random" in verdict(everything)
    assert "better than masking at random" in verdict(result_of(clean, [named(0)] * 2 * rows))
    right = result_of(mixed, [named(0)] * 2 * rows)
    assert verdict(right) == "it finds 100% of the bad sentences, and 100% of what it masks is bad"
    # Of two that it masks in the faulty rows, among many clean ones, one is good.
    more = result_of([("numbers", *[""] * 9)] * rows, [named(0, 1, 2)] * 2 * rows)
    assert "more of what it masks is good than bad" in verdict(more)
    loose = [reading for _ in range(rows) for reading in (named(0, 1), named(0, 2))][: 2 * rows]
    assert "its readings agree little" in verdict(result_of([("numbers", "", "")] * rows, loose))


@pytest.fixture(scope="module")
def demo_rows() -> tuple[Conversation, ...]:
    return load_pool(pool_path()).conversations[:120]


def test_planted_noise_is_where_the_texts_differ(demo_rows):
    check = planted_rows(demo_rows, 40, seed=3)
    before = {row.id: row for row in demo_rows}
    assert len(check.conversations) == len(check.truth) == 40
    changed = 0
    for row, truth in zip(check.conversations, check.truth, strict=True):
        sentences = sentences_of(row)
        assert len(sentences) == len(truth)
        contents = [turn.content for turn in before[row.id].turns]
        for sentence, kind in zip(sentences, truth, strict=True):
            text = row.turns[sentence.message].content[sentence.start : sentence.end]
            if not kind:
                assert text in contents[sentence.message]
            elif kind in ("corrupted", "numbers", "names", "other_language"):
                assert text not in contents[sentence.message]
        changed += row != before[row.id]
        assert any(truth) == (row != before[row.id])
    assert changed == 3 * len(PLANTED_KINDS)
    kinds = [{kind for kind in truth if kind} for truth in check.truth if any(truth)]
    assert sorted(kind for (kind,) in kinds) == sorted(3 * PLANTED_KINDS)
    assert planted_rows(demo_rows, 40, seed=3) == check
    assert planted_rows(demo_rows, 40, seed=4) != check
    assert len(planted_rows(demo_rows[:7], 40, seed=0).conversations) == 7
    with pytest.raises(PoolError, match="--check-rows 0 for no check"):
        planted_rows(demo_rows[:1], 40, seed=0)


def test_what_people_decided_is_the_truth(tmp_path):
    answer = "The first one. The second one. The third one. The last."
    rows = [row_of(answer, 1), row_of(answer, 2), row_of("Nothing here.", 3)]

    def decide(row: Conversation, start: int, end: int, weight: float, name: str) -> SpanDecision:
        kind = {0.0: "drop", 1.0: "keep"}.get(weight, "weight")
        text = answer[start:end]
        return SpanDecision(Signature(name, "Ann", "2026"), kind, row.id, "", 1, start, end, weight, text)

    path = tmp_path / "review.jsonl"
    append_decisions(
        path,
        [
            decide(rows[0], 4, 9, 0.0, "a"),  # a word of the first
            decide(rows[0], 15, 30, 1.0, "b"),  # all of the second
            decide(rows[0], 31, 36, 0.5, "c"),  # less than half of the third
            decide(rows[0], 45, 46, 0.0, "d"),  # a blank
        ],
    )
    check = reviewed_rows(rows, read_review(path))
    assert (check.conversations, check.truth) == ((rows[0],), (("dropped", "", None, None),))
    assert check.source == str(path)
    found = check_result(check, [shown_of(rows[0], first_characters()).shown], [named(0, 1), named(0, 1)])
    assert (found.precision.hits, found.precision.total, found.by_kind) == (1, 2, {})
    with pytest.raises(PoolError, match="decides no sentence of these rows \\(4 decisions, 4 of them fit no row"):
        reviewed_rows(rows[1:], read_review(path))
