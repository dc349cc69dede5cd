"""Measure the cells of a scale, each once: a finished one is a small file in RESULTS, a stopped one resumes.

    python -m evidence.run --data DIR [--scale cpu|gpu] [--cells 'smollm2-*,…'] [--list] [--gemma FOLDER]

``--scale gpu`` without ``--cells`` prints parts of a few minutes, each a command line that runs alone.
``python -m evidence.render`` then writes docs/evidence.md and what other pages quote.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

from evidence.cells import Cell, all_cells
from evidence.pool import EMBEDDING
from evidence.scales import SCALES
from evidence.setup import Setup, chosen
from tokenclean.errors import TokencleanError
from tokenclean.store import write_json

RESULTS = Path(__file__).parent / "results"
PART_SECONDS = 480.0


def finish(cells: Sequence[Cell], setup: Setup, results: Path) -> list[dict[str, Any]]:
    """The document of each cell, found or measured. Cells whose model is missing are named and left out. Raises
    SystemExit for a finished cell of another pool, model or setting, and at the end where cells failed, naming them."""
    write_pool(setup, results)
    documents, failed = [], []
    for number, cell in enumerate(cells, start=1):
        if (reason := setup.missing(cell)) is not None:
            print(f"skipped {cell.name}: {reason}", flush=True)
            continue
        title = f"cell {number} of {len(cells)}: {cell.name}"
        file = results / setup.scale.name / f"{cell.name}.json"
        try:
            documents.append(machine.found_or_measured(file, setup.expected(cell), title, measure_cell, cell, setup))
        except TokencleanError as error:
            print(f"failed {cell.name}: {error}", flush=True)
            failed.append(cell.name)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(cells)} cells failed, for the reasons above: {', '.join(failed)}")
    return documents


def measure_cell(cell: Cell, setup: Setup) -> Mapping[str, Any]:
    """A cell's figures; in a process of its own."""
    if cell.strategy == "cost":
        from evidence.cost import measure_cost

        return measure_cost(setup.pool.folder / "training.jsonl", setup.scale.cost_rows, setup.models[cell.model])
    from evidence.measure import measure

    return measure(cell, setup)


def write_pool(setup: Setup, results: Path) -> None:
    """What the pool is made of, without its rows."""
    counts = ("identity", "sources", "heldout", "trusted", "rated_candidates", "pairs")
    write_json(results / setup.scale.name / "pool.json", {key: setup.pool.document[key] for key in counts})


def listed(cells: Sequence[Cell], setup: Setup, results: Path, gflops: float | None = None) -> Iterator[str]:
    """A line a cell: its state, and the minutes that are estimated, alone and after the cells above it."""
    from evidence.estimates import estimate

    times = machine.in_fresh_process(estimate, all_cells(setup.scale), setup, gflops)
    for cell in cells:
        is_done = (results / setup.scale.name / f"{cell.name}.json").exists()
        state = "finished" if is_done else setup.missing(cell) or "to be measured"
        found = times.get(cell.name)
        minutes = f"{found.after / 60:5.1f} min, alone {found.alone / 60:5.1f}" if found else "    –"
        print_name = cell.name.ljust(max(len(one.name) for one in cells))
        yield f"{print_name}  {minutes}  {state}"


def parts(cells: Sequence[Cell], times: Mapping[str, float], options: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Command lines of at most ``PART_SECONDS`` each by the estimate ``times``, and their seconds. Cells stay in their
    order; a part starts with an empty run folder, so a cell counts with all that it needs."""
    open_cells: list[str] = []
    seconds = 0.0
    for cell in cells:
        if open_cells and seconds + times[cell.name] > PART_SECONDS:
            yield _command(open_cells, options), seconds
            open_cells, seconds = [], 0.0
        open_cells.append(cell.name)
        seconds += times[cell.name]
    if open_cells:
        yield _command(open_cells, options), seconds


def _command(names: Sequence[str], options: Sequence[str]) -> str:
    return f"python -m evidence.run {shlex.join(options)} --cells {shlex.quote(','.join(names))}"


def print_parts(cells: Sequence[Cell], setup: Setup, options: Sequence[str]) -> None:
    """The parts of the cells whose models are there."""
    from evidence.estimates import estimate

    known = [cell for cell in cells if setup.missing(cell) is None]
    for cell in cells:
        if (reason := setup.missing(cell)) is not None:
            print(f"# left out {cell.name}: {reason}")
    times = {name: found.alone for name, found in machine.in_fresh_process(estimate, known, setup).items()}
    for number, (command, seconds) in enumerate(parts(known, times, options), start=1):
        long = "" if seconds <= PART_SECONDS else ", MORE THAN A PART"
        print(f"# part {number}: about {seconds / 60:.1f} minutes{long}\n{command}")


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="evidence.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="folder with sft/, ratings/, noise/ and eval/")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--cells", default=None, metavar="NAME,…", help="only these cells, * for anything")
    parser.add_argument("--list", action="store_true", help="name the cells, their state and the time, and stop")
    parser.add_argument("--gflops", type=float, help="useful GFLOP/s to estimate by (default: measured, or a GPU's)")
    parser.add_argument("--smollm2", default="demo", metavar="MODEL", help="SmolLM2-135M-Instruct (default: demo)")
    parser.add_argument("--smollm2-larger", metavar="MODEL", help="larger model with the same tokenizer, as reference")
    parser.add_argument("--gemma", metavar="FOLDER", help="Gemma 3 270M, base, as safetensors")
    parser.add_argument("--gemma-larger", metavar="MODEL", help="larger model with the same tokenizer, as reference")
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"), help="pool and run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="files of finished cells")
    parser.add_argument("--embedding", default=EMBEDDING, metavar="MODEL", help="of DS²: package, folder or Hub id")
    parser.add_argument("--divide", type=int, default=1, metavar="N", help="N times fewer rows, for a smoke test")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change every recipe")
    arguments = parser.parse_args(words)
    if arguments.divide < 1:
        parser.error(f"--divide: expected a whole number from 1, found {arguments.divide}")
    if (arguments.divide > 1 or arguments.set) and arguments.results == RESULTS:
        parser.error("--divide and --set change what is measured; give other --results than the committed ones")
    return arguments


def setup_of(arguments: argparse.Namespace) -> Setup:
    """The setup that a command line says."""
    names = ("smollm2", "gemma")
    models = {name: getattr(arguments, name) for name in names}
    larger = {name: getattr(arguments, f"{name}_larger") for name in names}
    return Setup(
        scale_name=arguments.scale,
        output=arguments.output,
        data=arguments.data,
        models={name: model for name, model in models.items() if model},
        larger={name: model for name, model in larger.items() if model},
        divide=arguments.divide,
        embedding=arguments.embedding,
        overrides=tuple(arguments.set),
    )


def main() -> None:
    arguments = read_arguments()
    setup = setup_of(arguments)
    cells = chosen(all_cells(setup.scale), arguments.cells)
    if arguments.list:
        print("\n".join(listed(cells, setup, arguments.results, arguments.gflops)))
    elif arguments.scale == "gpu" and arguments.cells is None:
        print_parts(cells, setup, sys.argv[1:])
    else:
        finish(cells, setup, arguments.results)


if __name__ == "__main__":
    main()
