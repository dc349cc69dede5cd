"""The report's sections on tokens: the pool, scores and cuts, what was kept, and which tokens stand out."""

from __future__ import annotations

from collections.abc import Sequence

from tokenclean.experiment.finished.finished_run import FinishedRun
from tokenclean.experiment.reporting.runs_section import block_name, labelled
from tokenclean.report.plots.selections import (
    score_histogram,
    shares_by_position,
    shares_by_source,
    shares_by_turn,
    source_histograms,
)
from tokenclean.report.pool_tables import statistics_table
from tokenclean.report.report_page import Block, TableBlock, TokensBlock
from tokenclean.report.selection_statistics import SelectionSummary
from tokenclean.report.tables import Table, share_text
from tokenclean.tokens.statistics import PoolStatistics

SELF_EVOLVING = "self_evolving"

Selected = Sequence[tuple[FinishedRun, SelectionSummary]]
"""Selections, each with its run."""


def pools(runs: Sequence[FinishedRun], selected: Selected) -> list[Block]:
    """Table 4 of each pool, once where runs share it, and its rows."""
    blocks: list[Block] = []
    shown: list[PoolStatistics] = []
    for run in runs:
        found = next((summary.statistics for of_run, summary in selected if of_run is run), None)
        if found is not None and found not in shown:
            shown.append(found)
            base = run.recipe.get("model", {}).get("base", "the base")
            blocks.append(TableBlock(block_name("pool", run), statistics_table(found, str(base))))
        if counts := run.result.get("counts"):
            sentence = (
                f"{counts['training_rows']:,} training rows and {counts['heldout_rows']:,} held-out ones; "
                f"{counts['rejected_rows']:,} rows set aside as unusable (rejected.jsonl lists them), "
                f"{counts['removed_rows']:,} left out by filters, {counts['truncated_rows']:,} training rows cut at "
                f"{run.recipe.get('tokens', {}).get('max_length', 'the maximum')} tokens."
            )
            blocks.append(labelled(run, sentence))
    return blocks


def scores(selected: Selected) -> list[Block]:
    """Histograms of every selection that has scores."""
    blocks: list[Block] = []
    for run, summary in selected:
        if summary.histogram is None:
            continue
        label, thresholds = labelled(run, summary.strategy), _thresholds(run, summary)
        name = block_name("scores", run, summary.strategy)
        blocks.append(score_histogram(name, label, summary, thresholds))
        if by_source := source_histograms(f"{name}-by-source", label, summary, thresholds):
            blocks.append(by_source)
    return blocks


def _thresholds(run: FinishedRun, summary: SelectionSummary) -> list[float]:
    """The lowest kept scores of a selection that cuts the whole pool, or each of its splits, at one place."""
    selection = summary.metadata.get("selection") or {}
    if selection.get("level", "global") != "global":
        return []
    if summary.strategy == SELF_EVOLVING and (rounds := run.result.get("rounds")):
        cuts = (line.get("threshold_nats") for line in rounds["lines"])
        return sorted({cut for cut in cuts if cut is not None})
    threshold = selection.get("threshold")
    return [] if threshold is None else [float(threshold)]


def what_was_kept(selected: Selected) -> list[Block]:
    """Kept shares of every selection that drops something: in all, by source, position and turn."""
    shown = [(labelled(run, summary.strategy), summary) for run, summary in selected if summary.is_selecting]
    if not shown:
        return []
    has_sources = any(len(summary.by_source) > 1 for _, summary in shown)
    rows = tuple(
        (
            label,
            f"{s.total.tokens:,}",
            f"{s.total.kept:,}",
            share_text(s.total.value),
            f"{s.emptied_rows:,}",
            *(_source_range(s) if has_sources else ()),
        )
        for label, s in shown
    )
    columns = ("selection", "response tokens", "kept", "share", "rows left empty")
    columns += ("lowest source", "highest source") if has_sources else ()
    note = ""
    if any(summary.strategy == SELF_EVOLVING for _, summary in shown):
        note = "self_evolving keeps its warm-up split whole, which has no scores; the shares below include it"
    table = Table("What each selection keeps", columns, rows, note, text_columns=(0, 5, 6))
    plots = [
        shares_by_source("kept-by-source", shown) if has_sources else None,
        shares_by_position("kept-by-position", shown),
        shares_by_turn("kept-by-turn", shown),
    ]
    return [TableBlock("selections", table), *(plot for plot in plots if plot is not None)]


def _source_range(summary: SelectionSummary) -> tuple[str, str]:
    if len(summary.by_source) < 2:
        return "–", "–"
    ordered = sorted(summary.by_source.items(), key=lambda pair: pair[1].value)
    lowest, highest = (f"{name} {share_text(share.value)}" for name, share in (ordered[0], ordered[-1]))
    return lowest, highest


def standing_out(selected: Selected) -> list[Block]:
    """The tokens that stand out, for the summaries that have them."""
    blocks: list[Block] = []
    for run, summary in selected:
        for tokens, word in ((summary.dropped, "dropped"), (summary.kept, "kept")):
            if tokens:
                note = (
                    f"Those {word} more often, by the most times, than if every token were kept as often as all are "
                    f"({share_text(summary.total.value)}). Times: as a response token. The example: the place with "
                    f"the median score among those where it is {word}, or the middle one where there are no scores."
                )
                title = f"{labelled(run, summary.strategy)}: most often {word}"
                blocks.append(TokensBlock(title, note, tokens, is_kept=word == "kept"))
    return blocks
