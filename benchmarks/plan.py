"""What ``tokenclean plan`` says of a run, and what the run then takes: peak memory and time.

    python -m benchmarks.plan RECIPE [--set KEY=VALUE ...] [--keep FOLDER] [--markdown] [--json FILE]

The run is ``tokenclean run`` of the same recipe in a process of its own, into an empty folder (``--keep``: this one,
which stays); its peak is what the system tells of it at its end. On a GPU the peak is of the device's memory, which
this does not see: a CPU is needed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass

from benchmarks import machine

GIB = 1 << 30


@dataclass(frozen=True)
class Cost:
    """Of a run: its peak memory, and the time it takes."""

    memory_bytes: int
    seconds: float


def planned(recipe_path: str, settings: list[str]) -> Cost:
    """What the plan says; in a process of its own, as the command has."""
    from tokenclean.cli.console import quiet_libraries
    from tokenclean.experiment.planning.plan import plan
    from tokenclean.recipe import load_recipe

    quiet_libraries()
    found = plan(load_recipe(recipe_path, settings))
    return Cost(found.memory_bytes, found.seconds)


def run(recipe_path: str, settings: list[str], keep: str | None = None) -> Cost:
    """What the run takes, into the folder ``keep`` or one for the moment.

    Raises SystemExit where ``keep`` is not empty, and with what the run said where it fails.
    """
    if keep is not None and os.path.isdir(keep) and os.listdir(keep):
        raise SystemExit(f"{keep} is not empty; the run would find what it made before")
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or temporary
        options = [part for setting in [*settings, f"output={folder}"] for part in ("--set", setting)]
        command = [sys.executable, "-m", "tokenclean", "run", recipe_path, *options]
        seconds, peak_bytes = machine.watched_command(command)
    return Cost(peak_bytes, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.plan", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--keep", metavar="FOLDER", help="run into this folder and leave it there")
    machine.add_options(parser)
    arguments = parser.parse_args()
    busy = machine.refuse_if_busy(allow=arguments.allow_busy)
    # This process stays small, see watched_command.
    where = machine.in_fresh_process(machine.describe, "cpu")
    said = machine.in_fresh_process(planned, arguments.recipe, arguments.set)
    took = run(arguments.recipe, arguments.set, arguments.keep)
    rows = [
        ("peak memory, GiB", f"{said.memory_bytes / GIB:.2f}", f"{took.memory_bytes / GIB:.2f}"),
        ("minutes", f"{said.seconds / 60:.1f}", f"{took.seconds / 60:.1f}"),
    ]
    ratios = (said.memory_bytes / took.memory_bytes, said.seconds / took.seconds)
    lines = [[*row, f"{ratio:.2f}"] for row, ratio in zip(rows, ratios, strict=True)]
    figures = {"planned": vars(said), "run": vars(took)}
    text = machine.table(["", "planned", "run", "planned / run"], lines, markdown=arguments.markdown)
    machine.report("plan", where, [busy] if busy else [], figures, text, arguments)


if __name__ == "__main__":
    main()
