"""Where a command is run: here, by several processes of ``torchrun`` or ``accelerate launch``, or with Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from tokenclean.cli.console import fail
from tokenclean.errors import RecipeError, TokencleanError

if TYPE_CHECKING:
    from tokenclean.executors import Executor
    from tokenclean.processes import Processes
    from tokenclean.recipe import ExecutorSettings


@contextmanager
def executing(settings: ExecutorSettings, note: Callable[[str], None]) -> Iterator[Executor]:
    """The executor of a command, which is run as one of several processes where they were started so.

    Raises RecipeError for Ray among several processes, and as ``RayExecutor`` does.
    """
    from tokenclean.processes import Processes

    processes = Processes.from_environment()
    if processes.count == 1:
        with executing_alone(settings, note) as executor:
            yield executor
        return
    if settings.is_ray:
        raise RecipeError(
            f"--on {settings.kind}: Ray starts processes by itself, but {processes.count} were started; give the "
            "command without torchrun and accelerate launch",
            "options",
        )
    from tokenclean.executors import TorchrunExecutor

    with sharing(processes):
        yield TorchrunExecutor(processes)


@contextmanager
def executing_alone(settings: ExecutorSettings, note: Callable[[str], None]) -> Iterator[Executor]:
    """The executor of a command that several processes cannot share. Raises as ``RayExecutor`` does."""
    if not settings.is_ray:
        from tokenclean.executors import LOCAL

        yield LOCAL
        return
    from tokenclean.executors.ray_executor import RayExecutor

    with RayExecutor(settings, note) as executor:
        yield executor


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
