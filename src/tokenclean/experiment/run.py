"""A whole experiment: every strategy of a recipe, measured on the same held-out rows, written to one results folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tokenclean.cleaning import RunContext, StrategyResult, run_strategy
from tokenclean.cleaning.choice import Choice
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import OpenRun
from tokenclean.cleaning.run_data import RunData
from tokenclean.ds2.curated_pool import CuratedPool
from tokenclean.experiment.curate import curation_document
from tokenclean.experiment.noise_tables import noise_document, noise_table
from tokenclean.experiment.preferences import compare_preferences, margins_of_models, preference_table
from tokenclean.experiment.result_files import Measured, kept_share, write_results
from tokenclean.experiment.round_tables import RoundByRound, measure_rounds, rounds_document, rounds_table
from tokenclean.experiment.run_files import CURATION, NOISE, ChoiceMade
from tokenclean.experiment.verdict import Verdict, verdict_of
from tokenclean.ragged import Ragged
from tokenclean.recipe import find_strategy
from tokenclean.report.tables import Table, difference_text, jaccard_table, share_text
from tokenclean.selection import jaccard


@dataclass(frozen=True)
class RunResult:
    """``folder``: everything the run made for its user, written by the first rank; of another it is the run folder.
    ``results``: one a strategy. ``own``: that of the recipe's own strategy; ``verdict``: on it, None where it trains
    nothing. ``table``: the one to be shown; ``tables``: all that are written."""

    folder: Path
    results: tuple[StrategyResult, ...]
    measured: tuple[Measured, ...]
    own: StrategyResult
    verdict: Verdict | None
    table: Table
    tables: tuple[Table, ...]
    stages_made: int
    stages_reused: int


_MOST_ROWS = 8

Further = Mapping[str, Callable[[RunContext], StrategyResult]]
"""Strategies beside the recipe's, by name."""

Finish = Callable[[list[StrategyResult], list[Measured]], tuple[list[Table], Mapping[str, object]]]
"""Further tables, shown first, and further JSON documents by file name."""


def run(opened: OpenRun, further: Further | None = None, finish: Finish | None = None) -> RunResult:
    """Run the recipe's strategies (and ``further`` ones), measure each model, write models, kept tokens and tables.

    The run folder is locked meanwhile: RunFolderError where another run holds it. With several processes the first one
    writes the results, and the others return the same tables.
    """
    context, stages = opened.context, opened.stages
    is_first = stages.processes.is_first
    with stages.store.lock() if is_first else nullcontext():
        started = time.time()
        _note_pool(context)
        results, measured, rounds = take_strategies(context, further or {})
        own = next(o for o in results if o.strategy == find_strategy(context.recipe.cleaning.strategy).name)
        tables, documents = finish(results, measured) if finish else ([], {})
        table = tables[0] if tables else short_table(measured, own.strategy)
        tables = [*tables, *_tables(context, results, measured, rounds)]
        if found := noise_document(context, results):
            documents = {**documents, NOISE: found}
        if isinstance(curated := context.data.rated, CuratedPool):
            count = min(context.recipe.cleaning.ds2_rows, len(curated.pool))
            documents = {**documents, CURATION: curation_document(curated, count)}
        folder = stages.store.root
        if is_first:
            rounds_json = rounds and rounds_document(rounds)
            folder = write_results(opened, results, measured, rounds_json, tables, documents, time.time() - started)
        verdict = verdict_of(
            [m.to_json() for m in measured],
            own.strategy,
            heldout_rows=len(context.heldout),
            folder=str(context.recipe.folder),
            choice=own.choice and ChoiceMade(chosen=own.choice.chosen, sentence=own.choice.sentence),
        )
        return RunResult(
            folder,
            tuple(results),
            tuple(measured),
            own,
            verdict,
            table,
            tuple(tables),
            len(stages.computed),
            len(stages.reused),
        )


def take_strategies(
    context: RunContext, further: Further
) -> tuple[list[StrategyResult], list[Measured], RoundByRound | None]:
    """All strategies of the recipe, then ``further`` ones, and what their models are worth on the held-out rows."""
    results = []
    for name in context.recipe.strategies:
        context.note(f"strategy {name}")
        results.append(run_strategy(context, name))
    for name, function in further.items():
        context.note(f"strategy {name}")
        results.append(function(context))
    return results, measure(context, results), measure_rounds(context, results)


def _tables(
    context: RunContext, results: list[StrategyResult], measured: list[Measured], rounds: RoundByRound | None
) -> list[Table]:
    preferences = [m.preference for m in measured if m.preference is not None]
    tables = [loss_table(measured, context), preference_table(preferences) if preferences else None]
    tables += [rounds and rounds_table(rounds), noise_table(context, results)]
    tables += [
        choice_table(choice)
        for choice in dict.fromkeys(result.choice for result in results)
        if choice and choice.trials
    ]
    kept = {result.strategy: result.kept for result in results if result.kept is not None}
    drops_any = any(labels.values.sum() < context.tokens.is_response.values.sum() for labels in kept.values())
    if len(kept) > 1 and drops_any:
        tables.append(overlap_table(kept))
    return [table for table in tables if table is not None]


def measure(context: RunContext, results: list[StrategyResult]) -> list[Measured]:
    """Held-out losses of the base, of every intermediate model, and of every final model, in that order; preference of
    the base and the final models.

    A final model that was also a reference, as after a rollback, has one line, as the final one.
    """
    full = next((o.model for o in results if o.strategy == "full_tokens"), None)
    seen: set[str] = set()
    lines: list[Measured] = []

    def add(name: str, model: Model, kept_share: float | None, weak: str, reference: str = "") -> None:
        seen.add(model.key)
        against_base = context.against(model, context.base) if model.key != context.base.key else None
        against_full = context.against(model, full) if full is not None and name != "full_tokens" else None
        loss = against_base.loss if against_base else float(np.nanmean(context.heldout_losses(model).values))
        lines.append(Measured(name, kept_share, loss, against_base, against_full, weak, reference))

    weak = {c.model.key: "; ".join(c.faults) for o in results for c in o.checks if c.faults}
    add("base", context.base, None, "")
    for result in results:
        for check in result.checks:
            if check.model.key in seen or check.model.key == result.model.key:  # strategies share references
                continue
            add(f"  {check.model.name}", check.model, None, weak.get(check.model.key, ""))
        if result.model.key != context.base.key:
            reference = next((c.model.name for c in result.checks if c.model.key == result.model.key), "")
            share, faults = kept_share(result, context), weak.get(result.model.key, "")
            add(result.strategy, result.model, share, faults, reference)
    models = {"base": context.base} | {o.strategy: o.model for o in results if o.model.key != context.base.key}
    preferences = {found.name: found for found in compare_preferences(margins_of_models(context, models))}
    return [replace(line, preference=preferences.get(line.name)) for line in lines]


def loss_table(measured: list[Measured], context: RunContext) -> Table:
    """The table that says whether it helped."""
    rows = tuple(
        (
            m.name + (f" = {m.reference}" if m.reference else "") + (" (weak)" if m.weak_reference else ""),
            share_text(m.kept_share),
            f"{m.loss:.4f}",
            difference_text(m.against_base) if m.against_base else "–",
            difference_text(m.against_full) if m.against_full else "–",
        )
        for m in measured
    )
    tokens = int(context.heldout.is_response.values.sum())
    return Table(
        "Held-out loss (nats a response token; lower is better)",
        ("model", "kept", "loss", "minus base ± 95%", "minus full tokens"),
        rows,
        f"{len(context.heldout)} held-out conversations, {tokens:,} response tokens; indented: references",
    )


def short_table(measured: Sequence[Measured], own: str) -> Table:
    """The held-out loss of at most eight models: the base, full tokens, the recipe's own strategy and the next ones."""
    first = ("base", "full_tokens", own)
    final = [m for m in measured if not m.name.startswith(" ")]
    chosen = [m for m in final if m.name in first]
    chosen += [m for m in final if m.name not in first][: _MOST_ROWS - len(chosen)]
    rows = tuple(
        (
            m.name,
            share_text(m.kept_share),
            f"{m.loss:.4f}",
            difference_text(m.against_full) if m.against_full else "–",
            difference_text(m.against_base) if m.against_base else "–",
        )
        for m in final
        if m in chosen
    )
    return Table(
        "Held-out loss (nats a response token; lower is better)",
        ("trained on", "kept", "loss", "minus full tokens", "minus base"),
        rows,
        "differences with half of their 95 % intervals",
    )


def choice_table(choice: Choice) -> Table:
    """The trials by which a run chose."""
    rows = tuple(
        (trial.name, "–", "–", "no finite loss")
        if math.isnan(trial.difference)
        else (
            trial.name,
            f"{trial.difference:+.4f}",
            f"{trial.low:+.4f} to {trial.high:+.4f}",
            "better" if trial.is_clear else "not clearly better",
        )
        for trial in choice.trials
    )
    interval = "interval" if choice.level is None else f"{choice.level:.1%} interval"
    return Table("Trials of auto", ("trial", "minus full tokens", interval, "is"), rows, choice.sentence, (0, 3))


def overlap_table(kept: Mapping[str, Ragged]) -> Table:
    """Pairwise Jaccard of the strategies' kept sets."""
    return jaccard_table(list(kept), [[jaccard(a, b) for b in kept.values()] for a in kept.values()])


def choosing_text(data: RunData) -> str:
    """How many rows the run chooses by, after its held-out rows; empty where it chooses nothing."""
    if data.choosing is None:
        return ""
    return f", {len(data.choosing):,} {'trusted' if len(data.trusted) else 'more'} to choose by"


def _note_pool(context: RunContext) -> None:
    tokens = context.tokens
    context.note(
        f"pool: {len(tokens):,} training rows, {len(tokens.input_ids.values):,} tokens, "
        f"{int(tokens.is_response.values.sum()):,} of them response; {len(context.heldout):,} held-out rows"
        f"{choosing_text(context.data)}; "
        f"{context.data.intake.set_aside:,} rows set aside, "
        f"{int(tokens.is_cut.sum()):,} cut at {context.recipe.tokens.max_length} tokens"
    )
    for line in (*context.data.intake.lines(), *(context.data.review.lines() if context.data.review else ())):
        context.note(line)
