"""The report of finished runs: what was run, the pool, the results, what was kept, and how the models came about."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import yaml

from tokenclean.errors import RecipeError
from tokenclean.experiment.curate import CURATION
from tokenclean.experiment.finished_run import FinishedRun
from tokenclean.experiment.sweep import CELLS
from tokenclean.experiment.table_1 import STRATEGY_NAMES
from tokenclean.report.curation_plots import ratings_plot, transition_plot
from tokenclean.report.pool_tables import statistics_table
from tokenclean.report.report_page import Block, Folded, PlotBlock, Report, Section, TableBlock, Text, TokensBlock, slug
from tokenclean.report.selection_plots import (
    score_histogram,
    shares_by_position,
    shares_by_source,
    shares_by_turn,
    source_histograms,
)
from tokenclean.report.selection_summary import SelectionSummary, overlap, summarize
from tokenclean.report.sweep_plots import sweep_plots
from tokenclean.report.tables import Cell, Table, share_text
from tokenclean.report.token_spans import SpanDecoder
from tokenclean.report.training_plots import agreement_plot, forest, heldout_differences, loss_curves, rounds_plot
from tokenclean.store import MANIFEST, STAGES, read_manifest
from tokenclean.training.journal import JOURNAL, read_journal

EXAMPLES = 15
"""Tokens told on either side of those that stand out."""

_SELF_EVOLVING = "self_evolving"


def make_report(
    runs: Sequence[FinishedRun],
    *,
    title: str,
    decoder: Callable[[FinishedRun], SpanDecoder | None],
    strategies: Sequence[str] | None = None,
) -> Report:
    """Everything that the runs' folders tell. ``decoder``: of a run's tokens; None leaves the tokens out.

    ``strategies``: whose selections are shown, all by default. Raises RunFolderError as ``FinishedRun.tables``,
    RecipeError for a strategy that no run has, MissingExtraError without matplotlib.
    """
    known = {name for run in runs for name in run.kept_tables()}
    if unknown := sorted(set(strategies or ()) - known):
        has = f"they have {', '.join(sorted(known))}" if known else "no strategy of theirs selects tokens"
        raise RecipeError(f"--strategies: no run has {', '.join(unknown)}; {has}", "report")
    summaries: dict[str, list[SelectionSummary]] = {}
    for run in runs:
        tables = {name: path for name, path in run.kept_tables().items() if strategies is None or name in strategies}
        scored = _first_scored(run, list(tables))
        for name, path in tables.items():
            of_tokens = decoder(run) if name == scored else None
            found = summarize(path, run.name, name, of_tokens, examples=EXAMPLES)
            summaries.setdefault(run.name, []).append(found)
    everything = [summary for found in summaries.values() for summary in found]
    sections = (
        Section("run", "What was run" if len(runs) == 1 else "The runs", tuple(_what_was_run(runs))),
        Section("pool", "The pool", tuple(_pool(runs, summaries))),
        Section("results", "Results", tuple(_results(runs, everything))),
        Section("benchmarks", "On benchmarks", tuple(_comparisons(runs))),
        Section("sweeps", "Sweeps", tuple(_sweeps(runs))),
        Section("scores", "Scores and cuts", tuple(_scores(runs, everything))),
        Section("kept", "What was kept", tuple(_kept(runs, everything))),
        Section("tokens", "Tokens that stand out", tuple(_tokens(runs, everything))),
        Section("training", "Training", tuple(_training(runs))),
        Section("rounds", "Self-evolving, round by round", tuple(_rounds(runs))),
        Section("ratings", "Ratings, corrected", tuple(_curation(runs))),
    )
    return Report(title, tuple(_lead(runs)), sections)


def _first_scored(run: FinishedRun, names: Sequence[str]) -> str | None:
    """The strategy whose tokens are told: the recipe's own, unless it keeps everything."""
    selecting = [name for name in names if name not in ("full_tokens", "full_tokens_from_warmup")]
    own = run.recipe.get("cleaning", {}).get("strategy")
    if own in selecting:
        return own
    return next((name for name in selecting if name not in ("random", "ds2")), selecting[0] if selecting else None)


def _label(run: FinishedRun, runs: Sequence[FinishedRun], strategy: str) -> str:
    return strategy if len(runs) == 1 else f"{run.name}: {strategy}"


def _name(kind: str, run: FinishedRun, runs: Sequence[FinishedRun], *parts: str) -> str:
    """Of a plot or table: for files and links."""
    return slug("-".join([kind, *([run.name] if len(runs) > 1 else []), *parts]))


def _lead(runs: Sequence[FinishedRun]) -> list[str]:
    sentences = []
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        own = run.recipe.get("cleaning", {}).get("strategy")
        measured = {m["name"]: m for m in run.result.get("measured", [])}
        line = measured.get(own)
        if line is None:
            continue
        kept = (
            "" if line["kept_share"] is None else f" keeps {share_text(line['kept_share'])} of the response tokens and"
        )
        said = f"{prefix}{own}{kept} has a held-out loss of {line['loss']:.4f} nats a token"
        against = [("base", line["against_base"]), ("full tokens", line["against_full"])]
        told = [f"{_verdict(difference)} {control}" for control, difference in against if difference]
        sentences.append(f"{said}: {' and '.join(told)}." if told else f"{said}.")
    return sentences


def _verdict(difference: Mapping[str, float]) -> str:
    value = abs(difference["difference"])
    if difference["high"] < 0:
        return f"better by {value:.4f} than"
    if difference["low"] > 0:
        return f"worse by {value:.4f} than"
    return "not to be told from"


def _what_was_run(runs: Sequence[FinishedRun]) -> list[Block]:
    facts = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for found in facts for name in found))
    rows = tuple((name, *(found.get(name, "–") for found in facts)) for name in names)
    columns = ("", *(run.name for run in runs))
    texts = tuple(range(len(columns)))
    blocks: list[Block] = [TableBlock("runs", Table("Recipe, machine and time", columns, rows, text_columns=texts))]
    if len(runs) > 1:
        blocks += _differing_keys(runs)
    for run in runs:
        recipe = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)
        blocks.append(Folded(f"The whole recipe{f' of {run.name}' if len(runs) > 1 else ''}", recipe))
    return blocks


def _facts(run: FinishedRun) -> dict[str, str]:
    recipe, result = run.recipe, run.result
    cleaning, training = recipe.get("cleaning", {}), recipe.get("training", {})
    place = run.results or run.comparison or run.sweep
    assert place is not None
    manifest = run.manifest(place)
    packages = manifest["packages"]
    platform = manifest["platform"]
    facts = {
        "finished": manifest["finished"],
        "took": f"{result['seconds'] / 60:.1f} minutes; stages found ready take none" if result else "",
        "base": str(recipe.get("model", {}).get("base", "")),
        "reference": str(recipe.get("model", {}).get("reference") or ""),
        "strategy": str(cleaning.get("strategy", "")),
        "measured": ", ".join(m["name"].strip() for m in result.get("measured", [])),
        "kept proportion k": f"{cleaning['proportion']:g}" if "proportion" in cleaning else "",
        "level": str(cleaning.get("level", "")),
        "seed": str(recipe.get("seed", "")),
        "learning rate": f"{training['learning_rate']:g}" if "learning_rate" in training else "",
        "batch": str(training.get("batch_size", "")),
        "epochs": str(training.get("epochs", "")),
        "precision of scores": str(recipe.get("scoring", {}).get("precision", "")),
        "precision of training": str(training.get("precision", "")),
        "machine": f"{platform['system']} {platform['machine']}, {platform['processors']} processors",
        "software": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
    return {name: value for name, value in facts.items() if value}


def _differing_keys(runs: Sequence[FinishedRun]) -> list[Block]:
    flat = [dict(_flattened(run.recipe)) for run in runs]
    keys = list(dict.fromkeys(key for recipe in flat for key in recipe))
    differing = [key for key in keys if len({recipe.get(key) for recipe in flat}) > 1]
    rows = tuple((key, *(recipe.get(key, "–") for recipe in flat)) for key in differing)
    if not rows:
        return [Text("The runs have the same recipe.")]
    columns = ("key", *(run.name for run in runs))
    table = Table("Keys in which the recipes differ", columns, rows, text_columns=tuple(range(len(columns))))
    return [TableBlock("differing-keys", table)]


def _flattened(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(values, Mapping) and values:
        return [pair for key, value in values.items() for pair in _flattened(value, f"{prefix}{key}.")]
    return [(prefix.removesuffix("."), yaml.safe_dump(values, default_flow_style=True).strip().removesuffix("\n..."))]


def _times(run: FinishedRun, runs: Sequence[FinishedRun]) -> list[Block]:
    """Where the time went, by the stages that the results used and that are still there."""
    if run.results is None:
        return []
    stages = run.results.parent.parent / STAGES
    used = [*run.result["stages"]["made"], *run.result["stages"]["reused"]]
    seconds: dict[str, list[float]] = {}
    for name in used:
        if (stages / name / MANIFEST).is_file():
            manifest = read_manifest(stages / name)
            what = manifest["results"].get("what", "")
            kind = f"training {what}" if manifest["stage"] == "training" else manifest["stage"]
            seconds.setdefault(kind, []).append(manifest["seconds"])
    rows = tuple(
        (kind, str(len(found)), f"{sum(found) / 60:.1f}")
        for kind, found in sorted(seconds.items(), key=lambda pair: -sum(pair[1]))
    )
    if not rows:
        return []
    title = f"Where the time went{f', {run.name}' if len(runs) > 1 else ''}"
    note = "Of every stage that these results rest on, whenever it was made; losses: passes of a model over a split."
    return [TableBlock(_name("times", run, runs), Table(title, ("stage", "stages", "minutes"), rows, note))]


def _pool(runs: Sequence[FinishedRun], summaries: Mapping[str, Sequence[SelectionSummary]]) -> list[Block]:
    blocks: list[Block] = []
    told: list[Any] = []
    for run in runs:
        found = summaries.get(run.name, ())
        if found and found[0].statistics not in told:
            told.append(found[0].statistics)
            base = run.recipe.get("model", {}).get("base", "the base")
            table = statistics_table(found[0].statistics, str(base).rstrip("/").rpartition("/")[2])
            blocks.append(TableBlock(_name("pool", run, runs), table))
        counts = run.result.get("counts")
        if counts:
            prefix = f"{run.name}: " if len(runs) > 1 else ""
            blocks.append(
                Text(
                    f"{prefix}{counts['training_rows']:,} training rows and {counts['heldout_rows']:,} held-out ones; "
                    f"{counts['rejected_rows']:,} rows set aside as unusable (rejected.jsonl lists them), "
                    f"{counts['removed_rows']:,} left out by filters, {counts['truncated_rows']:,} cut at "
                    f"{run.recipe.get('tokens', {}).get('max_length', 'the maximum')} tokens."
                )
            )
    return blocks


def _results(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    blocks: list[Block] = []
    if sum(run.results is not None for run in runs) > 1:
        blocks += [_side_by_side(runs), *_overlaps(runs, summaries)]
    for run in runs:
        if run.results is None:
            continue
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        for number, table in enumerate(run.tables(run.results), start=1):
            blocks.append(TableBlock(_name("table", run, runs, str(number)), _titled(table, prefix)))
            if number == 1:
                blocks += _heldout(run, runs)
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
    name = _name("held-out", run, runs)
    return [PlotBlock(heldout_differences(name, title, lines, control))]


def _titled(table: Table, prefix: str) -> Table:
    return Table(f"{prefix}{table.title}", table.columns, table.rows, table.note, table.text_columns, table.sections)


def _comparisons(runs: Sequence[FinishedRun]) -> list[Block]:
    blocks: list[Block] = []
    for run in runs:
        if run.comparison is None:
            continue
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        document = run.document(run.comparison, "comparison.json")
        blocks += [Text(f"{prefix}{sentence}") for sentence in document["sentences"]]
        blocks += _average_differences(run, runs)
        for number, table in enumerate(run.tables(run.comparison), start=1):
            blocks.append(TableBlock(_name("comparison", run, runs, str(number)), _titled(table, prefix)))
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
    real = [row[0] for row, line in zip(rows, values, strict=True) if line["is_real"] == "1"]
    title = (
        f"Differences from {control} on average over the tasks: {', '.join(real)} real"
        if real
        else f"No strategy differs from {control} on average over the tasks by a real difference"
    )
    note = "Points (accuracy × 100), right of 0 is better. Bars: 95 % intervals over items and seeds."
    columns = ("strategy", "difference_points", "low", "high")
    name = _name("averages", run, runs)
    return [PlotBlock(forest(name, title, note, columns, rows, f"average minus {control} (points)"))]


def _sweeps(runs: Sequence[FinishedRun]) -> list[Block]:
    blocks: list[Block] = []
    for run in runs:
        if run.sweep is None:
            continue
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        tables = run.tables(run.sweep)
        blocks += [PlotBlock(plot) for plot in sweep_plots(_name("sweep", run, runs), **run.document(run.sweep, CELLS))]
        for number, table in enumerate(tables, start=1):
            blocks.append(TableBlock(_name("sweep-table", run, runs, str(number)), _titled(table, prefix)))
    return blocks


def _scores(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    blocks: list[Block] = []
    for summary in summaries:
        if summary.histogram is None:
            continue
        run = next(run for run in runs if run.name == summary.run)
        label, thresholds = _label(run, runs, summary.strategy), _thresholds(run, summary)
        name = _name("scores", run, runs, summary.strategy)
        blocks.append(PlotBlock(score_histogram(name, label, summary, thresholds)))
        by_source = source_histograms(f"{name}-by-source", label, summary, thresholds)
        blocks += [PlotBlock(by_source)] if by_source is not None else []
    return blocks


def _thresholds(run: FinishedRun, summary: SelectionSummary) -> list[float]:
    """The lowest kept scores of a selection that cuts the whole pool, or each of its splits, at one place."""
    selection = summary.metadata.get("selection") or {}
    if selection.get("level", "global") != "global":
        return []
    if summary.strategy == _SELF_EVOLVING and run.result.get("rounds"):
        lines = run.result["rounds"]["lines"]
        return sorted({line["threshold_nats"] for line in lines if line.get("threshold_nats") is not None})
    threshold = selection.get("threshold")
    return [] if threshold is None else [float(threshold)]


def _kept(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    shown = [s for s in summaries if s.is_selecting]
    if not shown:
        return []
    labelled = [(_label(next(r for r in runs if r.name == s.run), runs, s.strategy), s) for s in shown]
    rows = tuple(
        (
            label,
            f"{s.total.tokens:,}",
            f"{s.total.kept:,}",
            share_text(s.total.value),
            f"{s.emptied_rows:,}",
            *_source_range(s),
        )
        for label, s in labelled
    )
    columns = ("selection", "response tokens", "kept", "share", "rows left empty", "lowest source", "highest source")
    note = ""
    if any(s.strategy == _SELF_EVOLVING for s in shown):
        note = "self_evolving keeps its warm-up split whole, which has no scores; the shares below count it too"
    table = Table("What each selection keeps", columns, rows, note, text_columns=(0, 5, 6))
    plots = [shares_by_source("kept-by-source", labelled)] if any(len(s.by_source) > 1 for s in shown) else []
    plots += [shares_by_position("kept-by-position", labelled)]
    plots += [plot for plot in [shares_by_turn("kept-by-turn", labelled)] if plot is not None]
    return [TableBlock("selections", table), *map(PlotBlock, plots)]


def _source_range(summary: SelectionSummary) -> tuple[str, str]:
    if len(summary.by_source) < 2:
        return "–", "–"
    ordered = sorted(summary.by_source.items(), key=lambda pair: pair[1].value)
    lowest, highest = (f"{name} {share_text(share.value)}" for name, share in (ordered[0], ordered[-1]))
    return lowest, highest


def _tokens(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    blocks: list[Block] = []
    for summary in summaries:
        run = next(run for run in runs if run.name == summary.run)
        label = _label(run, runs, summary.strategy)
        overall = share_text(summary.total.value)
        for tokens, is_kept in ((summary.dropped, False), (summary.kept, True)):
            if tokens:
                word = "kept" if is_kept else "dropped"
                note = (
                    f"Those {word} more often, by the most times, than if every token were kept as often as all are "
                    f"({overall}). Times: as a response token. The example: of the places where it is {word} the one "
                    "with the median score, or without scores the middle one."
                )
                blocks.append(TokensBlock(f"{label}: most often {word}", note, tokens, is_kept))
    return blocks


def _training(runs: Sequence[FinishedRun]) -> list[Block]:
    journals: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.results is None:
            continue
        for path in sorted(run.results.glob(f"*/*/{JOURNAL}")):
            strategy, model = path.parent.parent.name, path.parent.name
            lines = [line for line in read_journal(path) if _is_number(line.get("loss"))]
            if lines and (model == "model" or strategy == _SELF_EVOLVING):
                label = strategy if model == "model" else f"{strategy}, {model}"
                journals[_label(run, runs, label)] = lines
    curves = [PlotBlock(loss_curves("training-loss", journals))] if journals else []
    return [*curves, *(block for run in runs for block in _times(run, runs))]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _rounds(runs: Sequence[FinishedRun]) -> list[Block]:
    blocks: list[Block] = []
    for run in runs:
        rounds = run.result.get("rounds")
        if not rounds:
            continue
        blocks.append(PlotBlock(rounds_plot(_name("rounds", run, runs), rounds)))
        if len(rounds.get("agreement", {}).get("models", ())) > 1:
            blocks.append(PlotBlock(agreement_plot(_name("agreement", run, runs), rounds["agreement"])))
    return blocks


def _curation(runs: Sequence[FinishedRun]) -> list[Block]:
    blocks: list[Block] = []
    for run in runs:
        places = [run.results / CURATION] if run.results is not None else []
        path = next((path for path in [*places, run.place / "curation" / CURATION] if path.is_file()), None)
        if path is None:
            continue
        document = run.document(path.parent, path.name)
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        blocks.append(PlotBlock(ratings_plot(_name("ratings", run, runs), document["raters"])))
        blocks.append(PlotBlock(transition_plot(_name("transition", run, runs), document["raters"])))
        for number, told in enumerate(document["tables"], start=1):
            table = _titled(Table.from_document(told), prefix)
            blocks.append(TableBlock(_name("curation", run, runs, str(number)), table))
    return blocks
