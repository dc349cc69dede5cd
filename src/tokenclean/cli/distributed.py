"""A command run by several processes, as ``torchrun`` and ``accelerate launch`` start them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from tokenclean.cli.console import fail
from tokenclean.errors import TokencleanError

if TYPE_CHECKING:
    from tokenclean.processes import Processes


@contextmanager
def sharing(processes: Processes) -> Iterator[None]:
    """Run a block as one of several processes: errors name the rank, and only the first process prints warnings."""
    if processes.count == 1:
        yield
        return
    if not processes.is_first:
        logging.getLogger("tokenclean").setLevel(logging.ERROR)
    with processes.together():
        try:
            yield
        except TokencleanError as error:
            fail(f"rank {processes.rank}: {error}")
            raise typer.Exit(error.exit_code) from error
