"""How long work reports what it has done."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called now and then with (done, total), in one unit; the last call has ``done == total``."""

ShowProgress = Callable[[str, str], Progress]
"""Given a label and a unit, the ``Progress`` of one piece of work."""
