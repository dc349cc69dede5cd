"""Progress of a whole run: pass or training i of n with the time left, and below it that pass or training alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from tokenclean.cli.console import err, note
from tokenclean.observer import Observer

if TYPE_CHECKING:
    from tokenclean.experiment.planning.work import Work

_LINE_SECONDS = 60.0
_FIRST_LINE_SECONDS = 10.0


class RunProgress:
    """Shows how far a run is: two bars on a terminal, else at most one line a minute.

    Stages that are found, not computed, are never reported: a stage that begins says that all before it in the plan
    are done. ``note``: shows a line of text.
    """

    def __init__(self, note: Callable[[str], None] = note) -> None:
        self.observer = Observer(note, self._stage)
        self._works: Sequence[Work] = ()
        self._current = -1
        self._part = 0.0
        self._computed_units = 0.0
        self._started = time.monotonic()
        self._next_line = self._started + _FIRST_LINE_SECONDS
        self._bars: Progress | None = None
        self._tasks: list[TaskID] = []

    def plan(self, works: Sequence[Work]) -> None:
        """What the run will compute, in its order; until then only the single stage is shown."""
        self._works = works
        self._started = time.monotonic()

    def __enter__(self) -> RunProgress:
        if err.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bars = Progress(*columns, console=err, transient=True)
            self._tasks = [self._bars.add_task(name, total=1.0, text="", visible=False) for name in ("run", "stage")]
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def _stage(self, label: str, unit: str) -> Callable[[int, int], None]:
        started = time.monotonic()
        first_done = 0

        def show(done: int, total: int) -> None:
            nonlocal started, first_done
            if self._find(label):
                started, first_done = time.monotonic(), done
            self._count(done / total if total else 1.0)
            seconds = max(time.monotonic() - started, 1e-9)
            speed = _speed((done - first_done) / seconds, unit)
            self._show(label, done / total if total else 1.0, f"{done:,} of {total:,} {unit}s{speed}")

        return show

    def _find(self, label: str) -> bool:
        """Whether the stage of this label begins now, as the next one of the plan that is called so."""
        if self._current >= 0 and self._works[self._current].label == label and self._part < 1:
            return False
        for number in range(self._current + 1, len(self._works)):
            if self._works[number].label == label:
                self._current, self._part = number, 0.0
                return True
        return False

    def _count(self, part: float) -> None:
        if self._current >= 0:
            self._computed_units += max(part - self._part, 0.0) * self._works[self._current].units
            self._part = part

    def _left(self) -> tuple[float, str]:
        """The share of the run that is done, and the time left in words."""
        total = sum(work.units for work in self._works)
        before = sum(work.units for work in self._works[: self._current])
        left = total - before - self._part * self._works[self._current].units
        elapsed = time.monotonic() - self._started
        if not self._computed_units or elapsed < 1:
            return 1 - left / total, ""
        return 1 - left / total, f", {duration(left * elapsed / self._computed_units)} left"

    def _show(self, label: str, share: float, text: str) -> None:
        now = time.monotonic()
        if self._bars is not None:
            run, stage = self._tasks
            if self._current >= 0:
                done, left = self._left()
                where = f"{self._current + 1} of {len(self._works)}{left}"
                self._bars.update(run, completed=done, description="run", text=where, visible=True)
            self._bars.update(stage, completed=share, description=label, text=text, visible=True)
        elif now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            done, left = self._left() if self._current >= 0 else (0.0, "")
            percent = min(int(100 * done), 99)
            where = f"{percent}%, {self._current + 1} of {len(self._works)}{left}: " if self._current >= 0 else ""
            err.print(f"  {where}{label}: {text}", soft_wrap=True)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _speed(speed: float, unit: str) -> str:
    """In units a second, or seconds a unit; nothing while it is unknown."""
    if speed <= 0:
        return ""
    if speed < 0.5:
        return f", {1 / speed:.0f} s a {unit}"
    return f", {speed:,.0f} {unit}s/s" if speed >= 10 else f", {speed:.1f} {unit}s/s"
