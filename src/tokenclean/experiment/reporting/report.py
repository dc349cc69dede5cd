"""The report of finished runs: what was run, the pool, the results, what was kept, and how the models came about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenclean.errors import RecipeError
from tokenclean.experiment.curate import CURATION
from tokenclean.experiment.finished.finished_run import FinishedRun
from tokenclean.experiment.reporting.results_section import comparisons, results, sweeps
from tokenclean.experiment.reporting.runs_section import name_of, prefix_of, table_blocks, times, what_was_run
from tokenclean.experiment.reporting.tokens_section import pool, scores, standing_out, what_was_kept
from tokenclean.report.plots.ratings import ratings_plot, transition_plot
from tokenclean.report.plots.trainings import agreement_plot, loss_curves, rounds_plot
from tokenclean.report.report_page import Block, PlotBlock, Report, Section
from tokenclean.report.selection_statistics import SelectionSummary, summarize
from tokenclean.report.tables import Table, share_text
from tokenclean.report.viewer.token_spans import SpanDecoder
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
        told = _told_strategy(run, list(tables))
        for name, path in tables.items():
            of_tokens = decoder(run) if name == told else None
            found = summarize(path, run.name, name, of_tokens, examples=EXAMPLES)
            summaries.setdefault(run.name, []).append(found)
    everything = [summary for found in summaries.values() for summary in found]
    sections = (
        Section("run", "What was run" if len(runs) == 1 else "The runs", tuple(what_was_run(runs))),
        Section("pool", "The pool", tuple(pool(runs, summaries))),
        Section("results", "Results", tuple(results(runs, everything))),
        Section("benchmarks", "On benchmarks", tuple(comparisons(runs))),
        Section("sweeps", "Sweeps", tuple(sweeps(runs))),
        Section("scores", "Scores and cuts", tuple(scores(runs, everything))),
        Section("kept", "What was kept", tuple(what_was_kept(runs, everything))),
        Section("tokens", "Tokens that stand out", tuple(standing_out(runs, everything))),
        Section("training", "Training", tuple(_training(runs))),
        Section("rounds", "Self-evolving, round by round", tuple(_rounds(runs))),
        Section("ratings", "Ratings, corrected", tuple(_curation(runs))),
    )
    return Report(title, tuple(_lead(runs)), sections)


def _told_strategy(run: FinishedRun, names: Sequence[str]) -> str | None:
    """The strategy whose tokens are told: the recipe's own, unless it keeps everything."""
    selecting = [name for name in names if name not in ("full_tokens", "full_tokens_from_warmup")]
    own = run.recipe.get("cleaning", {}).get("strategy")
    if own in selecting:
        return own
    return next((name for name in selecting if name not in ("random", "ds2")), selecting[0] if selecting else None)


def _lead(runs: Sequence[FinishedRun]) -> list[str]:
    sentences = []
    for run in runs:
        prefix = prefix_of(run, runs)
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


def _training(runs: Sequence[FinishedRun]) -> list[Block]:
    """Loss curves of every final model, and of the rounds of self-evolving cleaning one after another; then times."""
    journals: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.results is None:
            continue
        for path in sorted(run.results.glob(f"*/model/{JOURNAL}")):
            strategy = path.parent.parent.name
            rounds = run.result.get("rounds") if strategy == _SELF_EVOLVING else None
            lines = _losses(path) if rounds is None else _losses_of_rounds(path.parent.parent, rounds)
            if lines:
                journals[prefix_of(run, runs) + strategy] = lines
    curves = [PlotBlock(loss_curves("training-loss", journals))] if journals else []
    return [*curves, *(block for run in runs for block in times(run, runs))]


def _losses(journal: Path) -> list[dict[str, Any]]:
    return [line for line in read_journal(journal) if _is_number(line.get("loss"))]


def _losses_of_rounds(folder: Path, rounds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of every round that led to the output, numbered through."""
    names = [line["model"] for line in rounds["lines"] if "split" in line and not line["is_rolled_back"]]
    lines: list[dict[str, Any]] = []
    for name in [*names[:-1], "model"]:
        done = lines[-1]["step"] if lines else 0
        lines += [{**line, "step": done + line["step"]} for line in _losses(folder / name / JOURNAL)]
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _rounds(runs: Sequence[FinishedRun]) -> list[Block]:
    blocks: list[Block] = []
    for run in runs:
        rounds = run.result.get("rounds")
        if not rounds:
            continue
        blocks.append(PlotBlock(rounds_plot(name_of("rounds", run, runs), rounds)))
        if len(rounds.get("agreement", {}).get("models", ())) > 1:
            blocks.append(PlotBlock(agreement_plot(name_of("agreement", run, runs), rounds["agreement"])))
    return blocks


def _curation(runs: Sequence[FinishedRun]) -> list[Block]:
    blocks: list[Block] = []
    for run in runs:
        folders = [folder for folder in (run.results, run.curation) if folder is not None]
        folder = next((folder for folder in folders if (folder / CURATION).is_file()), None)
        if folder is None:
            continue
        document = run.document(folder, CURATION)
        blocks.append(PlotBlock(ratings_plot(name_of("ratings", run, runs), document["raters"])))
        blocks.append(PlotBlock(transition_plot(name_of("transition", run, runs), document["raters"])))
        blocks += table_blocks("curation", [Table.from_document(told) for told in document["tables"]], run, runs)
    return blocks
