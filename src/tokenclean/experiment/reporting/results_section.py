"""The report's sections on results: tables, held-out differences, benchmarks and sweeps."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import combinations

from tokenclean.experiment.finished.finished_run import FinishedRun
from tokenclean.experiment.reporting.runs_section import block_name, labelled, table_blocks
from tokenclean.experiment.run_files import CELLS, MeasuredModel
from tokenclean.recipe.strategies import STRATEGY_NAMES
from tokenclean.report.plots.sweeps import sweep_plots
from tokenclean.report.plots.trainings import forest
from tokenclean.report.report_page import Block, TableBlock
from tokenclean.report.selection_statistics import SelectionSummary, overlap
from tokenclean.report.tables import Cell, Table


def results(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    """Each run's tables; for several runs, first the models side by side."""
    blocks: list[Block] = []
    if sum(run.results is not None for run in runs) > 1:
        blocks += [_side_by_side(runs), *_overlaps(summaries)]
    for run in runs:
        if run.results is not None:
            blocks += table_blocks("table", run.tables(run.results), run)
    return blocks


def _side_by_side(runs: Sequence[FinishedRun]) -> Block:
    """Every run's final models on held-out rows."""
    # Names that begin with a blank are those of intermediate models.
    measured = [{m["name"]: m for m in run.measured if not m["name"].startswith(" ")} for run in runs]
    names = list(dict.fromkeys(name for lines in measured for name in lines))
    rows = tuple((name, *(_loss_cell(lines.get(name)) for lines in measured)) for name in names)
    same = len({tuple(run.result.get("heldout_rows", ())) for run in runs}) == 1
    note = "nats a held-out response token, and below against full tokens (or the base) of the same run, ± 95 %" + (
        "; all runs have the same held-out rows" if same else "; THE HELD-OUT ROWS DIFFER, so losses do not compare"
    )
    columns = ("model", *(run.name for run in runs))
    return TableBlock("side-by-side", Table("Held-out loss, run beside run", columns, rows, note))


def _loss_cell(model: MeasuredModel | None) -> str | Cell:
    if model is None:
        return "–"
    difference = model["against_full"] or model["against_base"]
    if difference is None:
        return f"{model['loss']:.4f}"
    control = "full" if model["against_full"] else "base"
    half = (difference["high"] - difference["low"]) / 2
    return Cell(f"{model['loss']:.4f}", small=f"{difference['difference']:+.4f} ± {half:.4f} to {control}")


def _overlaps(summaries: Sequence[SelectionSummary]) -> list[Block]:
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


def heldout_differences(run: FinishedRun) -> list[Block]:
    """Every model's held-out difference from full tokens, else from the base, with its interval."""
    has_full = any(model["against_full"] for model in run.measured)
    key, control = ("against_full", "full tokens") if has_full else ("against_base", "the base")
    lines = [(m["name"].strip(), d) for m in run.measured if (d := m[key]) and m["name"] != "base"]
    if not lines:
        return []
    best, lowest = min(lines, key=lambda line: line[1]["difference"])
    better = [label for label, d in lines if d["high"] < 0]
    count = f"{len(better)} of {len(lines)} models" if better else "No model"
    real = f"{count} {'are' if len(better) > 1 else 'is'} better than {control} by a real difference"
    title = f"{real}; {best} comes first with {lowest['difference']:+.4f} nats" if better else real
    note = (
        f"Nats a held-out response token minus {control}; left of 0 is better. Bars: 95 % intervals over "
        "conversations, each as if it were the only one compared."
    )
    columns = ("model", "difference", "low", "high")
    rows = [(label, d["difference"], d["low"], d["high"]) for label, d in lines]
    axis = f"held-out loss minus {control} (nats)"
    return [forest(block_name("held-out", run), title, note, columns, rows, axis)]


def comparison(run: FinishedRun) -> list[Block]:
    """The sentences of a run's last comparison, its differences on average as a plot, and its tables."""
    if run.comparison is None:
        return []
    sentences = run.document(run.comparison, "comparison.json")["sentences"]
    blocks: list[Block] = [labelled(run, sentence) for sentence in sentences]
    with (run.comparison / "values.csv").open(encoding="utf-8", newline="") as file:
        values = [line for line in csv.DictReader(file) if line["task"] == "average" and line["difference"]]
    blocks += _average_differences(block_name("averages", run), values)
    return [*blocks, *table_blocks("comparison", run.tables(run.comparison), run)]


def _average_differences(name: str, values: Sequence[dict[str, str]]) -> list[Block]:
    if not values:
        return []
    control = STRATEGY_NAMES.get(values[0]["minus"], values[0]["minus"])
    strategies = [STRATEGY_NAMES.get(line["strategy"], line["strategy"]) for line in values]
    alone = {s: float(line["holm_p"]) for s, line in zip(strategies, values, strict=True) if line["is_real"] == "1"}
    settled = [strategy for strategy, p in alone.items() if p < 0.05]
    if settled:
        title = f"On average over the tasks the difference from {control} is real: {', '.join(settled)}"
    elif alone:
        would = f"Compared alone {' and '.join(alone)} would differ from {control} on average"
        title = f"{would}; after Holm's correction for {len(values)} comparisons none does"
    else:
        title = f"No strategy differs from {control} on average over the tasks by a real difference"
    note = "Points (score × 100), right of 0 is better. Bars: 95 % intervals, each as if it were the only one compared."
    rows = [
        (strategy, 100 * float(line["difference"]), 100 * float(line["low_95"]), 100 * float(line["high_95"]))
        for strategy, line in zip(strategies, values, strict=True)
    ]
    columns = ("strategy", "difference_points", "low", "high")
    return [forest(name, title, note, columns, rows, f"average minus {control} (points)")]


def last_sweep(run: FinishedRun) -> list[Block]:
    """The cells of a run's last sweep as plots, and its tables."""
    if run.sweep is None:
        return []
    plots = sweep_plots(block_name("sweep", run), **run.document(run.sweep, CELLS))
    return [*plots, *table_blocks("sweep-table", run.tables(run.sweep), run)]
