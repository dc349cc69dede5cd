"""What the commands share: the consoles, progress, warnings, and quiet third-party libraries."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from tokenclean.redaction import redact

_PLAIN_REPORT_SECONDS = 30.0
_PLAIN_WIDTH = 120


def _console(*, stderr: bool) -> Console:
    """A console that shows texts as they are, since a path may hold [brackets] and a row's id :100:."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH  # a file has no edge at which to fold a table, and rich would take 80
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def quiet_libraries() -> None:
    """Silence what transformers, peft and bitsandbytes say on loading (imports transformers)."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses kernels that nothing here calls
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\..*")


class _WarningLines(logging.Handler):
    """Our warnings, each one line of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(redact(f"warning: {record.getMessage()}"), style="yellow", soft_wrap=True)


def show_warnings() -> None:
    """Print the library's warnings to the error console."""
    logger = logging.getLogger("tokenclean")
    logger.handlers = [_WarningLines(logging.WARNING)]


def note(text: str) -> None:
    """One line about what is going on."""
    err.print(redact(text), style="dim" if err.is_terminal else None, soft_wrap=True)


def fail(text: str) -> None:
    """The one message of a command that cannot go on."""
    err.print(Text.assemble(("error: ", "bold red"), redact(text)), soft_wrap=True)


def progress(label: str, unit: str) -> Callable[[int, int], None]:
    """A function (done, total) that shows speed and time left; plain lines every 30 s when not a terminal."""
    started = last = time.monotonic()
    bar: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar, last
        now = time.monotonic()
        speed = done / max(now - started, 1e-9)
        text = f"{speed:,.0f} {unit}s/s" if speed >= 10 else f"{speed:.2f} {unit}s/s"
        if err.is_terminal:
            if bar is None:
                columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
                bar = Progress(*columns, TextColumn("{task.fields[speed]}"), TimeRemainingColumn(), console=err)
                bar.add_task(label, total=total, speed="")
                bar.start()
            bar.update(bar.task_ids[0], completed=done, total=total, speed=text)
            if done >= total:
                bar.stop()
        elif done >= total or now - last >= _PLAIN_REPORT_SECONDS:
            last = now
            left = (total - done) / speed if speed else 0.0
            err.print(f"  {label}: {done:,} of {total:,} {unit}s, {text}, {left:.0f} s left", soft_wrap=True)

    return show
