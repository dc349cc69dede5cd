"""What the commands share: the consoles, progress, warnings, and quiet third-party libraries."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from tokenclean.redaction import redact

if TYPE_CHECKING:
    from tokenclean.observer import Observer
    from tokenclean.report.tables import Table
    from tokenclean.store import Store

_PLAIN_REPORT_SECONDS = 30.0
_PLAIN_WIDTH = 120


def _console(*, stderr: bool) -> Console:
    """A console that interprets nothing in a text: a path may contain [brackets], a row's id :100:."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH  # rich would fold tables at 80, but a file has no edge
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def quiet_libraries() -> None:
    """Silence what transformers, peft and bitsandbytes print while loading (imports transformers)."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of missing kernels that nothing here calls
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\..*")


class _WarningLines(logging.Handler):
    """Our warnings, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def show_warnings() -> None:
    """Print the library's warnings to the error console."""
    logger = logging.getLogger("tokenclean")
    logger.handlers = [_WarningLines(logging.WARNING)]


def say(text: str | Text, style: str | None = None) -> None:
    """Print one line, which nothing folds or cuts."""
    out.print(text, style=style, soft_wrap=True)


def say_tables(tables: Iterable[Table]) -> None:
    """Print tables, an empty line after each."""
    for table in tables:
        out.print(table.to_rich())
        out.print()


def note(text: str) -> None:
    """Print one line about what is going on, to standard error."""
    err.print(redact(text), style="dim", soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning, to standard error."""
    err.print(redact(f"warning: {text}"), style="yellow", soft_wrap=True)


def fail(text: str) -> None:
    """Print the one error message of a command that stops."""
    err.print(Text.assemble(("error: ", "bold red"), redact(text)), soft_wrap=True)


def progress(label: str, unit: str) -> Callable[[int, int], None]:
    """A function (done, total) that shows speed and time left: a bar on a terminal, else a line every 30 s."""
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


@contextmanager
def locked_folder(folder: Path) -> Iterator[tuple[Store, Observer]]:
    """A run folder that no other command may write meanwhile, and an observer that shows lines and progress.

    The lock comes first, so that a second command is refused before torch is loaded. Raises as ``Store.lock``.
    """
    from tokenclean.observer import Observer
    from tokenclean.store import Store

    store = Store(folder, note=note)
    with store.lock():
        quiet_libraries()
        yield store, Observer(note, progress)
