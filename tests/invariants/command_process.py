"""The command line in processes that start at once, under conditions of their own: environment, limits, watches."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

LONGEST_SECONDS = 120

# What a run imports, loaded once by the server that the processes are forked from: seconds a process otherwise.
PRELOADED = [
    "tokenclean.cli.main",
    "tokenclean.experiment.run",
    "tokenclean.training.fine_tune",
    "transformers.models.llama.modeling_llama",
    "peft",
    "accelerate",
]


def run_command(
    arguments: list[str], log: str, environment: Mapping[str, str], file_bytes: int | None, connections: str | None
) -> None:
    """The command line with all output appended to ``log``; ends the process with its exit code.

    ``file_bytes``: no file may grow larger. ``connections``: a file that gets a line for each attempt to connect.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    sys.argv = ["tokenclean", *arguments]
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if connections is not None:
        record_connections(Path(connections))
    import torch

    from tokenclean.cli.main import main

    torch.set_num_threads(1)
    main()


def record_connections(path: Path) -> None:
    """Write a line for each address that this process looks up or connects to."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            with path.open("a") as file:
                file.write(f"{event} {arguments[-1 if event == 'socket.connect' else 0]}\n")

    sys.addaudithook(hook)


def start(
    arguments: list[object],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    file_bytes: int | None = None,
    connections: Path | None = None,
) -> BaseProcess:
    """Start the command line (see ``run_command``) and return its process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    watched = str(connections) if connections else None
    process = context.Process(
        target=run_command, args=([*map(str, arguments)], str(log), environment or {}, file_bytes, watched)
    )
    process.start()
    return process


def finish(arguments: list[object], log: Path, **conditions: object) -> tuple[int | None, str]:
    """Run the command line to its end; its exit code and what it said, which is also appended to ``log``."""
    said = log.stat().st_size if log.exists() else 0
    process = start(arguments, log, **conditions)  # pyright: ignore[reportArgumentType]
    process.join(LONGEST_SECONDS)
    return process.exitcode, log.read_bytes()[said:].decode()
