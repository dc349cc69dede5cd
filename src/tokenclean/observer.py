"""How long work reports what it does: notes for its user, and progress."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (units done, units in all)."""

ShowProgress = Callable[[str, str], Progress]
"""Called with a label and the name of a unit; gives the function to call as the work goes on."""


def no_progress(label: str, unit: str) -> Progress:
    """Progress that nobody watches."""
    return lambda done, total: None


@dataclass(frozen=True)
class Observer:
    """``note``: shows a line of text; ``progress``: shows how far a pass or a training has come."""

    note: Callable[[str], None] = logger.info
    progress: ShowProgress = no_progress
