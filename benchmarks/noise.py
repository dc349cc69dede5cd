"""When does cleaning help? Oracles against full tokens on noise whose place is known, cell by cell.

Each cell trains on full tokens, on a mask of the true noise (oracle A), on a random mask of as many tokens and on
corrected rows (oracle B), and measures all models on the same held-out rows. ``docs/log.md`` (2026-11-30) registers
sets, cells, measures and what counts. A finished cell is a file in OUTPUT/cells and is not measured again; one that was
stopped resumes from its run folder. Without ``--cells``: the three quick ones.

    python -m benchmarks.noise --data DIR [--cells 'ru_en-*'] [--list] [--model demo] [--output runs/noise] [--plot DIR]
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.noise_measures import measure_cell
from benchmarks.noise_sets import Cell, all_cells, quick_cells, small_cells
from benchmarks.noise_tables import curve_plots, curve_table, effect_table


def finish_cells(
    cells: list[Cell], data: Path, output: Path, model: str, overrides: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The document of each cell, found or measured. Raises SystemExit for a finished cell of another model or other
    overrides."""
    return [
        machine.found_or_measured(
            output / "cells" / f"{cell.name}.json",
            {"model": model, "overrides": list(overrides), "cell": document_of(cell)},
            f"cell {number} of {len(cells)}: {cell.name}",
            measure_cell,
            *(cell, data, output / "runs", model, overrides),
        )
        for number, cell in enumerate(cells, start=1)
    ]


def document_of(cell: Cell) -> dict[str, Any]:
    """The cell as its file states it."""
    return {**vars(cell), "name": cell.name}


def chosen_cells(pattern: str | None) -> list[Cell]:
    """Cells whose name fits the pattern; the quick ones for None. Raises SystemExit where none does."""
    if pattern is None:
        return quick_cells()
    cells = [cell for cell in (*small_cells(), *all_cells()) if fnmatch(cell.name, pattern)]
    if not cells:
        raise SystemExit(f"--cells: no cell is called {pattern!r}; --list shows all names")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.noise", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with noise/*.jsonl and sft/*.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs/noise"), help="finished cells and run folders")
    parser.add_argument("--model", default="demo", help="base model")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--cells", default=None, metavar="PATTERN", help="cells by name, * for anything")
    size.add_argument("--quick", action="store_true", help="the three quick cells, as without --cells")
    parser.add_argument("--list", action="store_true", help="name the cells and whether they are finished, and stop")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--plot", type=Path, default=None, metavar="DIR", help="write the curve as SVG and CSV")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write every figure")
    arguments = parser.parse_args()
    cells = (
        [*small_cells(), *all_cells()] if arguments.list and arguments.cells is None else chosen_cells(arguments.cells)
    )
    if arguments.list:
        for cell in cells:
            is_done = (arguments.output / "cells" / f"{cell.name}.json").exists()
            print(f"{cell.name}{'  finished' if is_done else ''}")
        return
    where = machine.in_fresh_process(machine.describe, "cpu")
    documents = finish_cells(cells, arguments.data, arguments.output, arguments.model, tuple(arguments.set))
    tables = [effect_table(documents, markdown=arguments.markdown), curve_table(documents, markdown=arguments.markdown)]
    if arguments.plot is not None:
        arguments.plot.mkdir(parents=True, exist_ok=True)
        for plot in curve_plots(documents):
            for name, text in plot.files.items():
                (arguments.plot / name).write_text(text, encoding="utf-8")
    machine.report("noise", where, [], {"cells": documents}, "\n\n".join(tables), arguments)


if __name__ == "__main__":
    main()
