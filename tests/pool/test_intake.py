from __future__ import annotations

import pytest

from tokenclean.errors import PoolError
from tokenclean.pool import Conversation, Intake, RejectedRow, RenderedRows, Turn, check_usable
from tokenclean.pool.intake import group_key

TURNS = (Turn("user", "a"), Turn("assistant", "b"))


def usable(number: int, **more) -> Conversation:
    return Conversation(f"s:{number}:x", "s", TURNS, file="a.jsonl", line=number, **more)


def rejected(number: int, reason: str = "output: missing", **more) -> RejectedRow:
    return RejectedRow("a.jsonl", number, reason, **more)


def test_reasons_of_one_kind_are_one_group_with_count_first_place_and_option():
    rows = [rejected(n, f"messages[{n}].role: unknown role 'bot'", remedy="--role bot=assistant") for n in range(2, 9)]
    rows.append(rejected(9, "messages[1].role: unknown role 'x'"))
    lines = list(Intake.of([usable(1), *rows]).lines())
    assert lines[0] == "8 of 9 rows set aside:"
    assert lines[1] == "  7 × messages[2].role: unknown role 'bot' (first: a.jsonl:2)"
    assert lines[2] == "      try: --role bot=assistant"
    assert lines[3] == "  1 × messages[1].role: unknown role 'x' (first: a.jsonl:9)"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("messages[1].content: blank", "messages[12].content: blank", True),
        ("NUL at character 3", "NUL at character 1,204", True),
        ("found 'a1'", "found 'a2'", False),
        ("output: missing", "input: missing", False),
    ],
)
def test_what_groups(one, other, is_same):
    assert (group_key(one) == group_key(other)) == is_same


def test_keys_that_were_not_used_are_counted_by_source_and_notes_by_row():
    rows = [usable(n, unread=("score", "messages[].name"), notes=("repaired",)) for n in range(3)]
    rows.append(usable(3, unread=("score", "score")))
    lines = list(Intake.of(rows).lines())
    assert lines == ["not used in s: score (4 rows), messages[].name (3 rows)", "3 rows: repaired"]


@pytest.mark.parametrize(
    ("bad", "good", "share", "passes"),
    [(5, 95, 0.05, True), (6, 94, 0.05, False), (0, 1, 0.0, True), (1, 0, 1.0, False), (0, 0, 0.0, True)],
)
def test_the_share_of_rows_at_fault_decides(bad, good, share, passes):
    intake = Intake.of([*map(usable, range(good)), *map(rejected, range(bad))])
    if passes:
        check_usable(intake, share)
    else:
        with pytest.raises(PoolError, match="output: missing"):
            check_usable(intake, share)


def test_rows_left_out_by_choice_do_not_count():
    chosen = [rejected(n, "label: a rejected answer", is_chosen=True) for n in range(50)]
    intake = Intake.of([*map(usable, range(50)), *chosen])
    check_usable(intake, 0.0)
    assert "50 × left out by choice, label" in "\n".join(intake.lines())


def test_rows_that_cannot_be_rendered_count_like_rows_that_cannot_be_read():
    intake = Intake.of(map(usable, range(100)))
    after = intake.after_rendering(RenderedRows(100, tuple(rejected(n, "no target") for n in range(6)), {"x": 2}, 9))
    assert (after.rows, after.usable, after.set_aside) == (100, 94, 6)
    assert after.notes == {"x": 2}
    assert intake.usable == 100
    with pytest.raises(PoolError, match=r"6 of 100 rows cannot be used \(6.0%\)"):
        check_usable(after, 0.05)


def test_of_a_drawn_pool_the_share_is_that_of_the_rows_rendered():
    intake = Intake.of([*map(usable, range(90)), *map(rejected, range(10))])
    after = intake.after_rendering(RenderedRows(10, (rejected(1, "no target"),), {}, 9))
    assert after.faulty_share == pytest.approx(0.1 + 0.9 * 0.1)


def test_a_pool_without_a_token_to_train_is_not_usable():
    intake = Intake.of(map(usable, range(3))).after_rendering(RenderedRows(3, (), {}, 0))
    with pytest.raises(PoolError, match="no row has a token to train on"):
        check_usable(intake, 1.0)


def test_reasons_and_keys_of_every_row_do_not_fill_the_memory():
    intake = Intake()
    for number in range(3000):
        intake.add(rejected(number, f"messages[0].role: unknown role 'r{number}'"))
        intake.add(usable(number, unread=(f"key-{number}", "score")))
    assert len(intake.reasons) <= 501
    assert intake.set_aside == 3000
    assert len(intake.unread["s"]) <= 501
    assert intake.unread["s"]["score"] == 3000
