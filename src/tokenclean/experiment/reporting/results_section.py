"""A report's results: tables, held-out differences, benchmarks and sweeps."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from tokenclean.experiment.comparing.sweep import CELLS
from tokenclean.experiment.comparing.table_1 import STRATEGY_NAMES
from tokenclean.experiment.finished.finished_run import FinishedRun
from tokenclean.experiment.reporting.runs_section import name_of, prefix_of, table_blocks
from tokenclean.report.plots.sweeps import sweep_plots
from tokenclean.report.plots.trainings import forest, heldout_differences
from tokenclean.report.report_page import Block, PlotBlock, TableBlock, Text
from tokenclean.report.selection_statistics import SelectionSummary, overlap
from tokenclean.report.tables import Cell, Table


def results(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    """The tables of each run, and every model's held-out difference; of several runs first the models side by side."""
    blocks: list[Block] = []
    if sum(run.results is not None for run in runs) > 1:
        blocks += [_side_by_side(runs), *_overlaps(runs, summaries)]
    for run in runs:
        if run.results is None:
            continue
        first, *others = table_blocks("table", run.tables(run.results), run, runs)
        blocks += [first, *_heldout(run, runs), *others]
    return blocks


def _side_by_side(runs: Sequence[FinishedRun]) -> Block:
    """Every run's final models on held-out rows."""
    measured = [{m["name"]: m for m in run.result.get("measured", []) if not m["name"].startswith(" ")} for run in runs]
    names = list(dict.fromkeys(name for lines in measured for name in lines))

    def cell(line: Mapping[str, Any] | None) -> str | Cell:
        if line is None:
            return "–"
        difference = line["against_full"] or line["against_base"]
        if difference is None:
            return f"{line['loss']:.4f}"
        control = "full" if line["against_full"] else "base"
        half = (difference["high"] - difference["low"]) / 2
        return Cell(f"{line['loss']:.4f}", small=f"{difference['difference']:+.4f} ± {half:.4f} to {control}")

    rows = tuple((name, *(cell(lines.get(name)) for lines in measured)) for name in names)
    same = len({tuple(run.result.get("heldout_rows", ())) for run in runs}) == 1
    note = "nats a held-out response token, and below against full tokens (or the base) of the same run, ± 95 %" + (
        "; all runs have the same held-out rows" if same else "; THE HELD-OUT ROWS DIFFER, so losses do not compare"
    )
    columns = ("model", *(run.name for run in runs))
    return TableBlock("side-by-side", Table("Held-out loss, run beside run", columns, rows, note))


def _overlaps(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    """Kept sets of the same strategy in two runs over the same tokens."""
    rows = []
    for one, other in combinations([s for s in summaries if s.is_selecting], 2):
        if one.run != other.run and one.strategy == other.strategy and (shared := overlap(one, other)) is not None:
            rows.append((one.strategy, one.run, other.run, f"{shared:.3f}"))
    if not rows:
        return []
    columns = ("strategy", "run", "other run", "Jaccard")
    table = Table("Overlap of the kept sets between runs", columns, tuple(sorted(rows)), text_columns=(0, 1, 2))
    return [TableBlock("overlap-of-runs", table)]


def _heldout(run: FinishedRun, runs: Sequence[FinishedRun]) -> list[Block]:
    measured = run.result["measured"]
    has_full = any(m["against_full"] for m in measured)
    key, control = ("against_full", "full tokens") if has_full else ("against_base", "the base")
    lines = [(m["name"].strip(), m[key]) for m in measured if m[key] and m["name"] != "base"]
    if not lines:
        return []
    best, difference = min(lines, key=lambda line: line[1]["difference"])
    better = [label for label, d in lines if d["high"] < 0]
    count = f"{len(better)} of {len(lines)} models" if better else "No model"
    real = f"{count} {'are' if len(better) > 1 else 'is'} better than {control} by a real difference"
    title = f"{real}; {best} comes first with {difference['difference']:+.4f} nats"
    name = name_of("held-out", run, runs)
    return [PlotBlock(heldout_differences(name, title, lines, control))]


def comparisons(runs: Sequence[FinishedRun]) -> list[Block]:
    """What the last comparison of each run says, with its differences on average as a plot, and its tables."""
    blocks: list[Block] = []
    for run in runs:
        if run.comparison is None:
            continue
        prefix = prefix_of(run, runs)
        document = run.document(run.comparison, "comparison.json")
        blocks += [Text(f"{prefix}{sentence}") for sentence in document["sentences"]]
        blocks += _average_differences(run, runs)
        blocks += table_blocks("comparison", run.tables(run.comparison), run, runs)
    return blocks


def _average_differences(run: FinishedRun, runs: Sequence[FinishedRun]) -> list[Block]:
    assert run.comparison is not None
    with (run.comparison / "values.csv").open(encoding="utf-8", newline="") as file:
        values = [line for line in csv.DictReader(file) if line["task"] == "average" and line["difference"]]
    if not values:
        return []
    control = STRATEGY_NAMES.get(values[0]["minus"], values[0]["minus"])
    rows = [
        (
            STRATEGY_NAMES.get(line["strategy"], line["strategy"]),
            100 * float(line["difference"]),
            100 * float(line["low_95"]),
            100 * float(line["high_95"]),
        )
        for line in values
    ]
    alone = {row[0]: float(line["holm_p"]) for row, line in zip(rows, values, strict=True) if line["is_real"] == "1"}
    settled = [name for name, p in alone.items() if p < 0.05]
    if settled:
        title = f"On average over the tasks the difference from {control} is real: {', '.join(settled)}"
    elif alone:
        would = f"Compared alone {' and '.join(alone)} would differ from {control} on average"
        title = f"{would}; after Holm's correction for {len(values)} comparisons none does"
    else:
        title = f"No strategy differs from {control} on average over the tasks by a real difference"
    note = "Points (score × 100), right of 0 is better. Bars: 95 % intervals, each as if it were the only one compared."
    columns = ("strategy", "difference_points", "low", "high")
    name = name_of("averages", run, runs)
    return [PlotBlock(forest(name, title, note, columns, rows, f"average minus {control} (points)"))]


def sweeps(runs: Sequence[FinishedRun]) -> list[Block]:
    """The last sweep of each run: its cells as plots, and its tables."""
    blocks: list[Block] = []
    for run in runs:
        if run.sweep is None:
            continue
        tables = table_blocks("sweep-table", run.tables(run.sweep), run, runs)
        plots = sweep_plots(name_of("sweep", run, runs), **run.document(run.sweep, CELLS))
        blocks += [*map(PlotBlock, plots), *tables]
    return blocks
