"""A report's words on tokens: the pool, scores and cuts, what was kept, and which tokens stand out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenclean.experiment.finished.finished_run import FinishedRun
from tokenclean.experiment.reporting.runs_section import name_of, prefix_of
from tokenclean.report.plots.selections import (
    score_histogram,
    shares_by_position,
    shares_by_source,
    shares_by_turn,
    source_histograms,
)
from tokenclean.report.pool_tables import statistics_table
from tokenclean.report.report_page import Block, PlotBlock, TableBlock, Text, TokensBlock
from tokenclean.report.selection_statistics import SelectionSummary
from tokenclean.report.tables import Table, share_text

_SELF_EVOLVING = "self_evolving"


def pool(runs: Sequence[FinishedRun], summaries: Mapping[str, Sequence[SelectionSummary]]) -> list[Block]:
    """Table 4 of each pool, once where runs share it, and its rows. ``summaries``: by the run's name."""
    blocks: list[Block] = []
    told: list[Any] = []
    for run in runs:
        found = summaries.get(run.name, ())
        if found and found[0].statistics not in told:
            told.append(found[0].statistics)
            base = run.recipe.get("model", {}).get("base", "the base")
            table = statistics_table(found[0].statistics, str(base))
            blocks.append(TableBlock(name_of("pool", run, runs), table))
        counts = run.result.get("counts")
        if counts:
            prefix = prefix_of(run, runs)
            blocks.append(
                Text(
                    f"{prefix}{counts['training_rows']:,} training rows and {counts['heldout_rows']:,} held-out ones; "
                    f"{counts['rejected_rows']:,} rows set aside as unusable (rejected.jsonl lists them), "
                    f"{counts['removed_rows']:,} left out by filters, {counts['truncated_rows']:,} cut at "
                    f"{run.recipe.get('tokens', {}).get('max_length', 'the maximum')} tokens."
                )
            )
    return blocks


def scores(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    """Histograms of every selection that has scores."""
    blocks: list[Block] = []
    for summary in summaries:
        if summary.histogram is None:
            continue
        run = next(run for run in runs if run.name == summary.run)
        label, thresholds = prefix_of(run, runs) + summary.strategy, _thresholds(run, summary)
        name = name_of("scores", run, runs, summary.strategy)
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


def what_was_kept(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    """Kept shares of every selection that drops something: in all, by source, position and turn."""
    shown = [s for s in summaries if s.is_selecting]
    if not shown:
        return []
    labelled = [(prefix_of(next(r for r in runs if r.name == s.run), runs) + s.strategy, s) for s in shown]
    has_sources = any(len(s.by_source) > 1 for s in shown)
    rows = tuple(
        (
            label,
            f"{s.total.tokens:,}",
            f"{s.total.kept:,}",
            share_text(s.total.value),
            f"{s.emptied_rows:,}",
            *(_source_range(s) if has_sources else ()),
        )
        for label, s in labelled
    )
    columns = ("selection", "response tokens", "kept", "share", "rows left empty")
    columns += ("lowest source", "highest source") if has_sources else ()
    note = ""
    if any(s.strategy == _SELF_EVOLVING for s in shown):
        note = "self_evolving keeps its warm-up split whole, which has no scores; the shares below count it too"
    table = Table("What each selection keeps", columns, rows, note, text_columns=(0, 5, 6))
    plots = [shares_by_source("kept-by-source", labelled)] if has_sources else []
    plots += [shares_by_position("kept-by-position", labelled)]
    plots += [plot for plot in [shares_by_turn("kept-by-turn", labelled)] if plot is not None]
    return [TableBlock("selections", table), *map(PlotBlock, plots)]


def _source_range(summary: SelectionSummary) -> tuple[str, str]:
    if len(summary.by_source) < 2:
        return "–", "–"
    ordered = sorted(summary.by_source.items(), key=lambda pair: pair[1].value)
    lowest, highest = (f"{name} {share_text(share.value)}" for name, share in (ordered[0], ordered[-1]))
    return lowest, highest


def standing_out(runs: Sequence[FinishedRun], summaries: Sequence[SelectionSummary]) -> list[Block]:
    """The tokens that stand out, of the summaries that tell them."""
    blocks: list[Block] = []
    for summary in summaries:
        run = next(run for run in runs if run.name == summary.run)
        label = prefix_of(run, runs) + summary.strategy
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
