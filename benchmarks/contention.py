"""How much longer training steps take when equal runs share the cores, by how OpenMP's threads wait for each other.

Each run is a process of its own that trains a LoRA on SmolLM2 with rows of the shipped demo pool; all begin their timed
steps together. Threads that spin while they wait are quickest alone, and keep the cores from those they wait for; by
default they spin alone and sleep beside others (``models/cpu_contention.py``).

    python -m benchmarks.contention [--runs 2] [--steps 3] [--repeats 2] [--waits spin default] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine

WAITS: dict[str, dict[str, str]] = {
    "spin": {"GOMP_SPINCOUNT": "300000"},  # what libgomp does where nothing is set
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BATCH = 8
LIMIT = 5
"""Times the first run alone that any further runs may take."""


@dataclass(frozen=True)
class Measured:
    """Seconds of the timed steps, the slowest of the runs, one value a repeat; inf beyond LIMIT."""

    alone: list[float]
    together: list[float]


def work(number: int, runs: int, folder: Path, steps: int) -> float:
    """One run: a step to warm up, then, once all are ready, the timed ones; their seconds."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tokenclean import load_pool, tokenize_pool
    from tokenclean.cli.console import quiet_libraries
    from tokenclean.experiment.demo import pool_path
    from tokenclean.models.loading.convert import smollm2_folder
    from tokenclean.recipe import TrainingSettings
    from tokenclean.training.adapters import add_fresh_lora
    from tokenclean.training.train_step import TrainingStep

    quiet_libraries()
    model = str(smollm2_folder())
    tokens = tokenize_pool(load_pool(pool_path()), AutoTokenizer.from_pretrained(model))
    settings = TrainingSettings(precision="mixed")
    wrapped = add_fresh_lora(AutoModelForCausalLM.from_pretrained(model), settings.lora, None)
    step = TrainingStep(wrapped, settings, longest_row=int(tokens.input_ids.lengths.max()))
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-5)
    weights = tokens.is_response.map_values(lambda values: values.astype(np.float32))
    random = np.random.default_rng(0)

    def train() -> None:
        step(tokens.input_ids, weights, random.choice(len(tokens), BATCH, replace=False).tolist())
        optimizer.step()
        optimizer.zero_grad()

    train()
    (folder / str(number)).touch()
    while len(list(folder.iterdir())) < runs:
        time.sleep(0.02)
    started = time.perf_counter()
    for _ in range(steps):
        train()
    return time.perf_counter() - started


def seconds(runs: int, steps: int, environment: dict[str, str], limit: float | None = None) -> float:
    """The slowest of equal runs side by side; inf where they are not done within ``limit`` seconds, start included.
    Raises SystemExit with what a run said where it fails."""
    with tempfile.TemporaryDirectory() as name:
        base = [
            sys.executable,
            "-m",
            "benchmarks.contention",
            "--work",
            name,
            "--steps",
            str(steps),
            "--runs",
            str(runs),
        ]
        started = [
            subprocess.Popen(
                [*base, "--number", str(number)],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(runs)
        ]
        try:
            said = [process.communicate(timeout=limit) for process in started]
        except subprocess.TimeoutExpired:
            return float("inf")
        finally:
            for process in started:
                process.kill()
        if failed := [err for process, (_, err) in zip(started, said, strict=True) if process.returncode]:
            raise SystemExit(f"a run failed:\n{failed[0]}")
    return max(float(out.splitlines()[-1]) for out, _ in said)


def measure(waits: list[str], runs: int, steps: int, repeats: int) -> dict[str, Measured]:
    """Every way of waiting, alone and together, in turn."""
    found = {name: Measured([], []) for name in waits}
    limit = None
    for _ in range(repeats):
        for name, measured in found.items():
            began = time.perf_counter()
            measured.alone.append(seconds(1, steps, WAITS[name], limit))
            limit = limit or LIMIT * (time.perf_counter() - began)
            measured.together.append(seconds(runs, steps, WAITS[name], limit))
    return found


def table(found: dict[str, Measured], runs: int, *, markdown: bool) -> str:
    first = statistics.median(next(iter(found.values())).alone)
    rows = []
    for name, measured in found.items():
        alone, together = statistics.median(measured.alone), statistics.median(measured.together)
        rows.append([name, f"{alone:.1f}", f"{alone / first:.2f}", f"{together:.1f}", f"{together / first:.2f}"])
    header = ["threads wait", "s alone", "x first alone", f"s of {runs}", "x first alone"]
    return machine.table(header, rows, markdown=markdown)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.contention", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2, help="equal runs side by side")
    parser.add_argument("--steps", type=int, default=3, help="timed optimizer steps of a run")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--waits", nargs="+", choices=tuple(WAITS), default=["spin", "default"])
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    machine.add_options(parser)
    arguments = parser.parse_args()
    if arguments.work is not None:
        print(work(arguments.number, arguments.runs, arguments.work, arguments.steps))
        return
    if min(arguments.runs, arguments.steps, arguments.repeats) < 1:
        raise SystemExit("--runs, --steps and --repeats must be at least 1")
    busy = machine.refuse_if_busy(allow=arguments.allow_busy)
    where = machine.in_fresh_process(machine.describe, "cpu")
    found = measure(arguments.waits, arguments.runs, arguments.steps, arguments.repeats)
    figures = {"ways": {name: {"alone": m.alone, "together": m.together} for name, m in found.items()}}
    text = table(found, arguments.runs, markdown=arguments.markdown)
    machine.report("contention", where, [busy] if busy else [], figures, text, arguments)


if __name__ == "__main__":
    main()
