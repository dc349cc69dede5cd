"""In five minutes: are the ratios still those stored for this kind of machine?

Runs the benchmarks of scoring, training and selection on few rows, compares how many times as fast as the naive way
each of our ways is with ``benchmarks/quick.json``, and names what fell by more than 15 %. Exits with 1 if anything
did. A tool for people: on a busy or virtual machine single ratios move by a tenth.

    python -m benchmarks.quick [--store] [--allow-busy]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from tokenclean.models.device import cpu_flags
from tokenclean.store import write_json

STORED = Path(__file__).with_name("quick.json")
"""Kind of machine -> date, torch, and the ratios measured there."""

TOLERATED = 0.85
_BASELINES = ("naive", "naive bf16", "naive tuples")
_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bf16", "avx512f": "AVX-512", "avx2": "AVX2"}
_COMMANDS = {
    "scoring": ("--rows", "8", "--reference", "none", "--compile", "off", "--without-memory"),
    "training": ("--rows", "2", "--precisions", "mixed", "--without-memory"),
    "selection": ("--scores", "1e7", "--naive-scores", "1e6"),
}


def kind_of_machine(cpu_flags: Iterable[str], cores: int) -> str:
    """Cores and the widest of the instructions that our kernels use: what the ratios depend on most."""
    flags = set(cpu_flags)
    widest = next((name for flag, name in _FLAGS.items() if flag in flags), "other")
    return f"{cores} cores, {widest}"


def ratios_of(benchmark: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and value of each ratio in what a benchmark wrote: how many times as fast as the naive way."""
    for name, way in figures["ways"].items():
        found = {"naive": way["times_naive"]} if "times_naive" in way else way["times_as_fast"]
        if name not in _BASELINES and "naive" in found:
            yield f"{benchmark}: {name}", found["naive"]["median"]


def measure(repeats: int, *, allow_busy: bool) -> dict[str, float]:
    """Run the benchmarks, each in a process of its own. Raises SystemExit where one fails."""
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for benchmark, options in _COMMANDS.items():
            file = Path(folder) / f"{benchmark}.json"
            command = [sys.executable, "-m", f"benchmarks.{benchmark}", *options, "--repeats", str(repeats)]
            command += ["--json", str(file), *(["--allow-busy"] if allow_busy else [])]
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                raise SystemExit(f"{' '.join(command[1:])} failed")
            ratios |= ratios_of(benchmark, json.loads(file.read_text()))
    return ratios


def compare(found: Mapping[str, float], stored: Mapping[str, float]) -> tuple[list[list[str]], list[str]]:
    """Lines of a table, and the names of what fell by more than 15 % or is gone."""
    lines, fallen = [], []
    for name in dict.fromkeys([*stored, *found]):
        now, before = found.get(name), stored.get(name)
        change = "" if now is None or before is None else f"{now / before - 1:+.0%}"
        lines.append([name, *("–" if value is None else f"{value:.2f}" for value in (before, now)), change])
        if before is not None and (now is None or now < TOLERATED * before):
            fallen.append(name)
    return lines, fallen


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quick", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", action="store_true", help="store the ratios as those of this kind of machine")
    machine.add_options(parser)
    arguments = parser.parse_args()
    busy = machine.refuse_if_busy(allow=arguments.allow_busy)
    where = machine.in_fresh_process(machine.describe, "cpu")
    kind = kind_of_machine(cpu_flags(), where.cores)
    known = json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}
    found = measure(arguments.repeats, allow_busy=arguments.allow_busy)
    stored = known.get(kind)
    lines, fallen = compare(found, stored["ratios"] if stored else {})
    text = machine.table(["times as fast as naive", "stored", "now", "change"], lines, markdown=arguments.markdown)
    text = f"{kind}; stored {stored['date']} with torch {stored['torch']}\n{text}" if stored else f"{kind}\n{text}"
    if stored is None and not arguments.store:
        text += "\nnothing is stored for this kind of machine; --store does it"
    if fallen:
        text += f"\nfell by more than {1 - TOLERATED:.0%}: {', '.join(fallen)}"
    machine.report("quick", where, [busy] if busy else [], {"kind": kind, "ratios": found}, text, arguments)
    if arguments.store:
        known[kind] = {"date": where.date, "torch": where.torch, "ratios": found}
        write_json(STORED, dict(sorted(known.items())))
    sys.exit(bool(fallen) and not arguments.store)


if __name__ == "__main__":
    main()
