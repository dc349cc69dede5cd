"""One strategy under many recipes: each cell of a grid trained and evaluated once, in one run folder.

With ``cleaning.proportion`` it is the paper's Figure 2 and Tables 6 and 7, with ``model.reference`` Tables 3 and 8.
Cells share every stage that does not depend on what is swept, and finished cells are not computed again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from tokenclean.cleaning import run_strategy
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import OpenRun
from tokenclean.errors import EvaluationError, RecipeError, TokencleanError, needs_extra
from tokenclean.evaluation.comparison import Comparison
from tokenclean.evaluation.comparison import compare as compare_scores
from tokenclean.evaluation.task_data import load_benchmarks
from tokenclean.experiment.comparing.table_1 import table_1, table_1_values
from tokenclean.experiment.comparing.task_scores import BenchmarkScores, benchmark_scores, gather_scores, identities
from tokenclean.experiment.result_files import kept_share
from tokenclean.experiment.run_files import CELLS, TABLES
from tokenclean.recipe import Recipe
from tokenclean.report.plots.sweeps import sweep_plots
from tokenclean.report.tables import Table, difference_text, share_text
from tokenclean.scoring import PairedDifference
from tokenclean.store import write_json

BASE = "base"
PLOT_SUFFIXES = (".png", ".svg", ".pdf")

_CELLS_NOTE = (
    "loss: nats a held-out response token; ± half the 95 % interval over conversations, of Avg the standard error"
)


@dataclass(frozen=True)
class Axis:
    """A recipe key and its values, as they are written in a recipe."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """``settings``: key=value of each axis. ``failure``: why it has no figures, else empty."""

    settings: tuple[str, ...]
    model: Model | None = None
    kept_share: float | None = None
    heldout: PairedDifference | None = None
    scores: Mapping[str, BenchmarkScores] | None = None
    failure: str = ""

    @property
    def name(self) -> str:
        """The last part of each key and its value: ``proportion=0.6``."""
        return ", ".join(map(_short, self.settings))


def _short(setting: str) -> str:
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def parse_axis(text: str) -> Axis:
    """``key=0.3:1.0:0.1`` (from, to, step; both ends taken) or ``key=a,b,c``. Raises RecipeError for anything else."""
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise RecipeError([f"--over {text}: expected key=value,value or key=from:to:step"], "sweep")
    parts = values.split(":")
    if len(parts) != 3:
        return Axis(key, tuple(value.strip() for value in values.split(",")))
    try:
        start, stop, step = map(Decimal, parts)
    except InvalidOperation:
        return Axis(key, (values,))
    if step <= 0 or stop < start:
        raise RecipeError([f"--over {text}: expected from <= to and a step above 0"], "sweep")
    count = int((stop - start) / step) + 1
    return Axis(key, tuple(str(start + number * step) for number in range(count)))


def grid(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """The settings of every cell, the last axis running fastest."""
    return list(itertools.product(*([f"{axis.key}={value}" for value in axis.values] for axis in axes)))


@dataclass(frozen=True)
class SweepResult:
    """``comparison``: of the cells that have figures, against the base; None where none has. ``tables``: a line a cell,
    then Table 1 of them."""

    folder: Path
    cells: tuple[Cell, ...]
    comparison: Comparison | None
    tables: tuple[Table, ...]
    stages_made: int
    stages_reused: int


def sweep(
    recipes: Mapping[tuple[str, ...], Recipe | TokencleanError],
    open_cell: Callable[[Recipe], OpenRun],
) -> SweepResult:
    """Run ``cleaning.strategy`` of every cell's recipe, and evaluate its model on the benchmarks and held-out rows.

    ``recipes``: settings of a cell -> its recipe, or what is wrong with it. A cell that fails is shown as failed and
    the others go on. Raises RecipeError where no cell has a recipe, EvaluationError where the benchmarks' data cannot
    be had.
    """
    good = [recipe for recipe in recipes.values() if isinstance(recipe, Recipe)]
    if not good:
        raise RecipeError([str(error) for error in recipes.values()], "sweep")
    first = open_cell(good[0])
    loaded = load_benchmarks(good[0].evaluation, first.context.data.tokenizer, good[0].tokens)
    cells, runs = [], []
    for settings, recipe in recipes.items():
        if isinstance(recipe, TokencleanError):
            cells.append(Cell(settings, failure=str(recipe)))
            continue
        try:
            opened = first if recipe is good[0] else open_cell(recipe)
            runs.append(opened)
            opened.observer.note(f"cell {', '.join(settings)}")
            context = opened.context
            result = run_strategy(context, recipe.cleaning.strategy)
            scores = benchmark_scores(opened, result.model, loaded)
            against = None if result.model.key == context.base.key else context.against(result.model, context.base)
        except TokencleanError as error:
            cells.append(Cell(settings, failure=str(error)))
            first.observer.note(f"cell {', '.join(settings)} failed: {error}")
            continue
        opened.models.clear()
        cells.append(Cell(settings, result.model, kept_share(result, context), against, scores))
    scores = {cell.name: {0: cell.scores} for cell in cells if cell.scores is not None}
    base = benchmark_scores(first, first.context.base, loaded)
    comparison = compare_scores(gather_scores({BASE: {0: base}, **scores}), BASE) if scores and loaded else None
    tables = [cells_table(cells, comparison)] + ([] if comparison is None else [table_1(comparison)])
    inputs = {
        "cells": {", ".join(c.settings): c.model.identity if c.model else c.failure for c in cells},
        "recipe": good[0].result_inputs(),
        "benchmarks": identities(loaded),
    }

    def make(folder: Path) -> dict[str, object]:
        (folder / "tables.md").write_text("\n".join(table.to_markdown() for table in tables), encoding="utf-8")
        write_json(folder / TABLES, [table.to_document() for table in tables])
        write_json(folder / CELLS, cells_document(cells, comparison))
        for number, table in enumerate(tables, start=1):
            (folder / f"table-{number}.csv").write_text(table.to_csv(), encoding="utf-8")
            (folder / f"table-{number}.tex").write_text(table.to_latex(f"tab:sweep-{number}"), encoding="utf-8")
        if comparison is not None:
            (folder / "values.csv").write_text(table_1_values(comparison), encoding="utf-8")
        (folder / "recipe.yaml").write_text(good[0].to_yaml(), encoding="utf-8")
        write_json(folder / "sweep.json", inputs)
        return {"what": f"sweep of {len(cells)} cells"}

    folder = first.stages.stage("sweep", inputs, make).path
    made = len({name for opened in runs for name in opened.stages.computed})
    reused = len({name for opened in runs for name in opened.stages.reused})
    return SweepResult(folder, tuple(cells), comparison, tuple(tables), made, reused)


def cells_table(cells: Sequence[Cell], comparison: Comparison | None) -> Table:
    """A line a cell: kept share, held-out loss against the base, average of the benchmarks; why a failed one failed."""
    averages = comparison.averages if comparison else {}
    rows, notes = [], [_CELLS_NOTE]
    for cell in cells:
        if cell.failure:
            notes.append(f"{cell.name} failed: {' '.join(cell.failure.split())}")
            rows.append((cell.name, "failed", "–", "–", "–"))
            continue
        losses = (f"{cell.heldout.loss:.4f}", difference_text(cell.heldout)) if cell.heldout else ("–", "–")
        average = averages.get(cell.name)
        score = f"{100 * average.value:.2f} ±{100 * average.error:.2f}" if average else "–"
        rows.append((cell.name, share_text(cell.kept_share), *losses, score))
    columns = ("cell", "kept", "loss", "minus base ± 95%", "Avg × 100")
    return Table("Cells of the sweep", columns, tuple(rows), ". ".join(notes))


def cells_document(cells: Sequence[Cell], comparison: Comparison | None) -> dict[str, Any]:
    """Every cell's figures, unrounded, for a report, of a failed one only why; and the base's average."""
    averages = {name: asdict(score) for name, score in comparison.averages.items()} if comparison else {}
    document = [
        {
            "name": cell.name,
            "settings": list(cell.settings),
            "failure": cell.failure,
            "kept_share": cell.kept_share,
            "heldout": cell.heldout and asdict(cell.heldout),
            "average": averages.get(cell.name),
        }
        for cell in cells
    ]
    return {"base": averages.get(BASE), "cells": document}


def check_plot(axes: Sequence[Axis], file: Path) -> None:
    """Before any cell is run: raise RecipeError where ``plot_sweep`` cannot draw these axes into such a file,
    MissingExtraError without matplotlib."""
    if file.suffix.lower() not in PLOT_SUFFIXES:
        raise RecipeError([f"--plot {file}: expected a file ending in {', '.join(PLOT_SUFFIXES)}"], "sweep")
    if len(axes) != 1 or not all(isinstance(yaml.safe_load(value), (int, float)) for value in axes[0].values):
        raise RecipeError(["--plot: expected one axis, of numbers"], "sweep")
    with needs_extra("matplotlib", "report", "sweep --plot"):
        import matplotlib  # noqa: F401


def plot_sweep(result: SweepResult, file: Path) -> None:
    """The paper's Figure 2: the benchmarks' average over the values of one axis, with standard errors.

    For axes that ``check_plot`` passes. Raises EvaluationError where no cell has figures on benchmarks.
    """
    if result.comparison is None:
        raise EvaluationError("--plot: there is nothing to draw, since no cell has figures on benchmarks")
    plots = {plot.name: plot for plot in sweep_plots("sweep", **cells_document(result.cells, result.comparison))}
    plots["sweep-average"].save(file)
