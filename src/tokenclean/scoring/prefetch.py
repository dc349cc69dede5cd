"""Items prepared in a thread while earlier ones are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")

DEPTH = 2

_POLL_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 10.0


class _End:
    """Put in the queue after the last item."""


class _StoppedError(Exception):
    """The block that uses the items has ended."""


@contextmanager
def read_ahead(start: Callable[[Callable[[], None]], Iterable[Item]], depth: int = DEPTH) -> Iterator[Iterator[Item]]:
    """Items that a thread makes while the block works on earlier ones; at most ``depth`` of them wait.

    ``start(check)`` yields the items, in the thread. It must call ``check`` often: that raises once the block has
    ended, and the block's end waits for the thread. An error of ``start`` is raised in the block at once, before items
    that still wait.
    """
    waiting: Queue[Item | _End] = Queue(depth)
    failures: list[BaseException] = []
    has_ended = Event()

    def check() -> None:
        if has_ended.is_set():
            raise _StoppedError

    def put(item: Item | _End) -> None:
        while True:
            check()
            with suppress(Full):
                return waiting.put(item, timeout=_POLL_SECONDS)

    def work() -> None:
        try:
            for item in start(check):
                put(item)
            put(_End())
        except _StoppedError:
            pass
        except BaseException as error:
            failures.append(error)

    def items() -> Iterator[Item]:
        while True:
            if failures:
                raise failures[0]
            try:
                item = waiting.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if isinstance(item, _End):
                return
            yield item

    thread = Thread(target=work, name="read ahead", daemon=True)
    thread.start()
    try:
        yield items()
    finally:
        has_ended.set()
        thread.join(_LONGEST_WAIT_SECONDS)
