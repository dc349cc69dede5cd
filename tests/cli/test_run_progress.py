"""Overall progress: which part of the plan runs, what was skipped, and how much time is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tokenclean.cli import run_progress
from tokenclean.cli.run_progress import RunProgress, duration
from tokenclean.experiment.planning.work import Work

PLAN = [Work("score D0 with base", 100), Work("train warm-up", 300), Work("score D0 with warm-up", 100)]


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(run_progress, "time", clock)
    return clock


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(run_progress, "err", Console(file=stream, width=200))
    return stream


def test_a_line_soon_then_at_most_one_a_minute_with_share_and_time_left(clock, printed):
    with RunProgress() as shown:
        shown.plan(PLAN)
        show = shown.observer.progress("score D0 with base", "token")
        for second in range(1, 101):
            clock.now = second
            show(second, 100)
        train = shown.observer.progress("train warm-up", "step")
        clock.now = 130
        train(0, 10)
        clock.now = 150
        train(1, 10)
        clock.now = 195
        train(2, 10)
    lines = printed.getvalue().splitlines()
    assert lines == [
        "  2%, 1 of 3, 8 min left: score D0 with base: 10 of 100 tokens, 1.0 tokens/s",
        "  14%, 1 of 3, 7 min left: score D0 with base: 70 of 100 tokens, 1.0 tokens/s",
        "  19%, 2 of 3, 9 min left: train warm-up: 0 of 10 steps",
        "  31%, 2 of 3, 7 min left: train warm-up: 2 of 10 steps, 32 s a step",
    ]


def test_a_run_is_not_whole_before_its_end(clock, printed):
    with RunProgress() as shown:
        shown.plan(PLAN)
        show = shown.observer.progress("score D0 with warm-up", "token")
        clock.now = 11
        show(100, 100)
    assert printed.getvalue().startswith("  99%, 3 of 3")


def test_what_was_found_in_the_store_counts_as_done_but_not_as_speed(clock, printed):
    with RunProgress() as shown:
        shown.plan(PLAN)
        show = shown.observer.progress("score D0 with warm-up", "token")
        clock.now = 61
        show(50, 100)
    assert printed.getvalue().startswith("  90%, 3 of 3, 61 s left: score D0 with warm-up: 50 of 100")


def test_a_stage_that_no_plan_names_is_shown_by_itself(clock, printed):
    with RunProgress() as shown:
        show = shown.observer.progress("embed", "row")
        clock.now = 61
        show(1, 2)
    assert printed.getvalue() == "  embed: 1 of 2 rows, 61 s a row\n"


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    monkeypatch.setattr(run_progress, "err", Console(file=stream, width=160, force_terminal=True))
    with RunProgress() as shown:
        shown.plan(PLAN)
        show = shown.observer.progress("score D0 with base", "token")
        show(50, 100)
        show(100, 100)
        shown.observer.progress("train warm-up", "step")(5, 10)
    assert "2 of 3" in stream.getvalue()
    assert "train warm-up" in stream.getvalue()


def test_durations():
    assert [duration(s) for s in (0.4, 89, 600, 7200)] == ["0 s", "89 s", "10 min", "2.0 h"]
