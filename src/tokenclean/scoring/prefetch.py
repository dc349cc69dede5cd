"""Work done ahead of its use, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")

DEPTH = 2

_LOOK_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 10.0
_END: Any = object()


class _StoppedError(Exception):
    """Nobody wants the items any more."""


@contextmanager
def read_ahead(start: Callable[[Callable[[], None]], Iterable[Item]], depth: int = DEPTH) -> Iterator[Iterator[Item]]:
    """Items that a thread makes while the block works on earlier ones; at most ``depth`` of them wait.

    ``start(check)`` gives the items, in the thread. It calls ``check`` wherever it can stop, since that raises once
    the block has ended; the block's end waits for it. What ``start`` raises is raised in the block as it is, at once:
    items that still wait are not given out.
    """
    waiting: Queue[Item] = Queue(depth)
    failures: list[BaseException] = []
    has_ended = Event()

    def check() -> None:
        if has_ended.is_set():
            raise _StoppedError

    def put(item: Item) -> None:
        while True:
            check()
            with suppress(Full):
                return waiting.put(item, timeout=_LOOK_SECONDS)

    def work() -> None:
        try:
            for item in start(check):
                put(item)
            put(_END)
        except _StoppedError:
            pass
        except BaseException as error:
            failures.append(error)

    def items() -> Iterator[Item]:
        while True:
            item = _next(waiting, failures)
            if item is _END:
                return
            yield item

    thread = Thread(target=work, name="read ahead", daemon=True)
    thread.start()
    try:
        yield items()
    finally:
        has_ended.set()
        thread.join(_LONGEST_WAIT_SECONDS)


def _next(waiting: Queue, failures: list[BaseException]) -> Any:
    while True:
        if failures:
            raise failures[0]
        with suppress(Empty):
            return waiting.get(timeout=_LOOK_SECONDS)
