"""What the commands share: the console, progress, and quiet third-party libraries."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tokenclean.redaction import redact

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_PLAIN_REPORT_SECONDS = 30.0


def quiet_libraries() -> None:
    """Show our warnings through rich, and silence what transformers and peft say on loading (imports transformers)."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\..*")
    handler = RichHandler(console=err, show_time=False, show_path=False, markup=False)
    logging.getLogger("tokenclean").handlers = [handler]
    logging.getLogger("tokenclean").setLevel(logging.WARNING)


def note(text: str) -> None:
    """One line about what is going on."""
    err.print(redact(text), style="dim" if err.is_terminal else None, markup=False, soft_wrap=True)


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
            err.print(
                f"  {label}: {done:,} of {total:,} {unit}s, {text}, {left:.0f} s left", markup=False, soft_wrap=True
            )

    return show
