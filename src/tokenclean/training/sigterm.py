"""SIGTERM, heard and kept until the step at hand is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM (as a cluster sends before it kills) is only noted; the function given tells of it.

    Outside the main thread nothing can be heard, and the function always says no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGTERM, before)
