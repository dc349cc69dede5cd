"""How long work reports what it does and how far it has come."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called now and then with (done, total), in one unit; the last call has ``done == total``."""

ShowProgress = Callable[[str, str], Progress]
"""Given a label and a unit, the ``Progress`` of one piece of work."""


def no_progress(label: str, unit: str) -> Progress:
    """Progress that nobody watches."""
    return lambda done, total: None


@dataclass(frozen=True)
class Observer:
    """``note``: shows a line of text; ``progress``: shows how far a pass or a training has come."""

    note: Callable[[str], None] = logger.info
    progress: ShowProgress = no_progress
