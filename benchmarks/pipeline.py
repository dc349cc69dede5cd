"""A whole self-evolving run of the command line against the same pipeline on naive passes and trainings.

Both read the same file with the same recipe, each in a process of its own: ``tokenclean run`` into an empty folder, and
``naive_pipeline``. Printed too: how much of the time passes and trainings take, and what ``tokenclean plan`` said.

    python -m benchmarks.pipeline [--pool FILE] [--rows 120] [--repeats 1] [--without-naive] [--markdown] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks import machine
from benchmarks.plan import planned

SPLITS = 3
MODEL_STAGES = {"losses": "passes", "training": "trainings"}


@dataclass(frozen=True)
class Run:
    """Of one run: seconds and peak bytes of its process, seconds of its passes and trainings, and its last held-out
    loss, nats."""

    seconds: float
    peak_bytes: int
    inside: dict[str, float]
    loss: float


def recipe_of(pool: Path | None, rows: int) -> dict[str, object]:
    """What ``tokenclean run POOL --strategy self_evolving`` does, on so many rows in 3 splits; ``pool``: None for the
    demo's."""
    from tokenclean.experiment.demo import pool_path
    from tokenclean.models.loading.convert import smollm2_folder
    from tokenclean.recipe.for_data import data_values

    place = str((pool or pool_path()).resolve())
    values = data_values([place])
    values["pool"] = {"sources": [{"path": place}], "max_rows": rows, "heldout": {"rows": rows // 6}}
    values["model"] = {"base": str(smollm2_folder())}
    values["cleaning"] = {"strategy": "self_evolving", "splits": SPLITS, "allow_weak_reference": True}
    values["training"] = {"minimum_steps": 3}
    return values


def ours(recipe: Path) -> Run:
    """The command, as a user would call it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tokenclean", "run", str(recipe), "--set", f"output={folder}"]
        seconds, peak = machine.watched_command(command)
        [run] = [path.parent for path in Path(folder).glob("*/stages")]
        inside = dict.fromkeys(MODEL_STAGES.values(), 0.0)
        for path in run.glob("stages/*/manifest.json"):
            manifest = json.loads(path.read_text())
            if kind := MODEL_STAGES.get(manifest["stage"]):
                inside[kind] += manifest["seconds"]
        [result] = run.glob("results/*/result.json")
        loss = json.loads(result.read_text())["measured"][-1]["loss"]
    return Run(seconds, peak, inside, loss)


def naive(recipe: Path) -> Run:
    """The same strategies on naive passes and trainings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "naive.json"
        command = [sys.executable, "-m", "benchmarks.naive_pipeline", str(recipe), str(file)]
        seconds, peak = machine.watched_command(command)
        said = json.loads(file.read_text())
    return Run(seconds, peak, said["inside"], said["loss"])


def table(ours: list[Run], naive: list[Run], planned_seconds: float, *, markdown: bool) -> str:
    """Medians of all repeats."""
    rows = []
    for name, runs in (("naive", naive), ("tokenclean run", ours)):
        if runs:
            seconds = statistics.median(run.seconds for run in runs)
            inside = {kind: statistics.median(run.inside[kind] for run in runs) for kind in runs[0].inside}
            share = statistics.median(sum(run.inside.values()) / run.seconds for run in runs)
            peak = statistics.median(run.peak_bytes for run in runs) / 2**30
            ratio = [n.seconds / o.seconds for n, o in zip(naive, runs, strict=True)] if naive else []
            rows.append(
                [
                    name,
                    f"{seconds:.0f}",
                    *(f"{inside[kind]:.0f}" for kind in inside),
                    f"{share:.0%}",
                    f"{statistics.median(ratio):.2f}" if ratio else "–",
                    f"{peak:.2f}",
                    f"{runs[-1].loss:.4f}",
                ]
            )
    header = ["", "s", "s in passes", "s in trainings", "inside both", "times as fast", "peak GiB", "held-out loss"]
    said = statistics.median(planned_seconds / run.seconds for run in ours)
    return (
        machine.table(header, rows, markdown=markdown)
        + f"\n\n`plan` said {planned_seconds:.0f} s: {said:.2f} of the run"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.pipeline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pool", type=Path, default=None, help="data file (default: the demo's)")
    parser.add_argument("--rows", type=int, default=120, help="rows of the pool, a sixth of them held out")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without-naive", action="store_true", help="time the run alone, and what plan said")
    machine.add_options(parser)
    arguments = parser.parse_args()
    if min(arguments.rows // 6, arguments.repeats) < 1:
        raise SystemExit("--rows must be at least 6, --repeats at least 1")
    busy = machine.refuse_if_busy(allow=arguments.allow_busy)
    where = machine.in_fresh_process(machine.describe, "cpu")  # this process stays small, see watched_command
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(machine.in_fresh_process(recipe_of, arguments.pool, arguments.rows)))
        said = machine.in_fresh_process(planned, str(recipe), [])
        runs: dict[str, list[Run]] = {"ours": [], "naive": []}
        for _ in range(arguments.repeats):
            if not arguments.without_naive:
                runs["naive"].append(naive(recipe))
            runs["ours"].append(ours(recipe))
    figures = {name: [vars(run) for run in made] for name, made in runs.items()} | {"planned_seconds": said.seconds}
    text = table(runs["ours"], runs["naive"], said.seconds, markdown=arguments.markdown)
    machine.report("pipeline", where, [busy] if busy else [], figures, text, arguments)


if __name__ == "__main__":
    main()
