"""Items made ahead by a thread: in order, bounded, with their errors, and no longer than they are wanted."""

from __future__ import annotations

import threading
import time

import pytest

from tokenclean.scoring.prefetch import read_ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read ahead"]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_items_come_in_order_from_another_thread():
    def start(check):
        yield from range(7)
        yield threading.current_thread()

    with read_ahead(start) as items:
        *numbers, maker = items
    assert numbers == list(range(7))
    assert maker is not threading.current_thread()
    assert threads() == []


def test_no_more_items_than_the_depth_are_made_ahead():
    made = []

    def start(check):
        for number in range(9):
            made.append(number)
            yield number

    with read_ahead(start, depth=2) as items:
        wait_until(lambda: len(made) == 3)  # two wait, and one has no place yet
        time.sleep(0.15)
        assert len(made) == 3
        assert next(items) == 0
        wait_until(lambda: len(made) == 4)
        assert list(items) == list(range(1, 9))


def test_an_error_is_raised_as_it_is_and_at_once():
    error = ValueError("of the thread")

    def start(check):
        yield 1
        yield 2
        raise error

    with read_ahead(start) as items:
        wait_until(lambda: not threads())
        with pytest.raises(ValueError, match="of the thread") as raised:
            next(items)  # not 1 and 2, which still wait
    assert raised.value is error
    assert "start" in [entry.name for entry in raised.traceback]


def test_the_end_of_the_block_ends_the_thread_wherever_it_checks():
    steps = []

    def start(check):
        yield 0
        while True:
            check()
            steps.append(1)
            time.sleep(0.001)

    def stop_while_it_works():
        with read_ahead(start) as items:
            next(items)
            wait_until(lambda: steps)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_while_it_works()
    assert threads() == []


def test_the_end_of_the_block_ends_a_thread_that_waits_for_room():
    def start(check):
        yield from iter(int, 1)

    started = time.monotonic()
    with read_ahead(start, depth=1) as items:
        next(items)
    assert threads() == []
    assert time.monotonic() - started < 5
