"""A whole experiment: every strategy of a recipe, measured on the same held-out rows, written to one results folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenclean.cleaning import STRATEGIES, StrategyResult, Workshop
from tokenclean.cleaning.workshop import Model
from tokenclean.experiment.curate import CURATION, curation_document
from tokenclean.experiment.noise_tables import noise_document, noise_table
from tokenclean.experiment.results_folder import Measured, kept_share, write_results
from tokenclean.experiment.rounds import measure_rounds, rounds_document, rounds_table
from tokenclean.ragged import Ragged
from tokenclean.report.tables import Table, difference_text, jaccard_table, share_text
from tokenclean.selection import jaccard


@dataclass(frozen=True)
class RunResult:
    """``folder``: everything the run made for its user, written by the first rank; of
    another it is the run folder. ``outcomes``: one a strategy. ``tables``: to be shown."""

    folder: Path
    outcomes: tuple[StrategyResult, ...]
    measured: tuple[Measured, ...]
    tables: tuple[Table, ...]
    stages_made: int
    stages_reused: int


Finish = Callable[[list[StrategyResult], list[Measured]], tuple[list[Table], Mapping[str, Any]]]
"""Further tables, shown first, and further JSON documents by file name."""


def run(
    workshop: Workshop,
    further: Mapping[str, Callable[[Workshop], StrategyResult]] | None = None,
    finish: Finish | None = None,
) -> RunResult:
    """Run the recipe's strategies (and ``further`` ones), measure each model, write models, kept tokens and tables.

    The run folder is locked meanwhile: RunFolderError where another run holds it. Among several ranks the first writes
    the results, and the others give the same tables.
    """
    with workshop.store.lock() if workshop.processes.is_first else nullcontext():
        started = time.time()
        recipe = workshop.recipe
        _tell_pool(workshop)
        functions = {**{name: STRATEGIES[name] for name in recipe.strategies}, **(further or {})}
        outcomes = []
        for name, function in functions.items():
            workshop.observer.note(f"strategy {name}")
            outcomes.append(function(workshop))
        measured = measure(workshop, outcomes)
        tables = [loss_table(measured, workshop)]
        rounds = measure_rounds(workshop, outcomes)
        if rounds is not None:
            tables.append(rounds_table(rounds))
        noise = noise_table(workshop, outcomes)
        if noise is not None:
            tables.append(noise)
        kept = {o.strategy: o.kept for o in outcomes if o.kept is not None}
        if len(kept) > 1:
            tables.append(overlap_table(kept))
        further_tables, documents = finish(outcomes, measured) if finish else ([], {})
        if found := noise_document(workshop, outcomes):
            documents = {**documents, "noise.json": found}
        if workshop.curated is not None:
            count = min(recipe.cleaning.ds2_rows, len(workshop.curated.pool))
            documents = {**documents, CURATION: curation_document(workshop.curated, count)}
        tables = [*further_tables, *tables]
        folder = workshop.store.root
        if workshop.processes.is_first:
            told = rounds and rounds_document(rounds)
            folder = write_results(workshop, outcomes, measured, told, tables, documents, time.time() - started)
        made, reused = len(workshop.made), len(workshop.reused)
        return RunResult(folder, tuple(outcomes), tuple(measured), tuple(tables), made, reused)


def measure(workshop: Workshop, outcomes: list[StrategyResult]) -> list[Measured]:
    """Held-out losses of the base, of every model trained on the way, and of every final model, in that order.

    A final model that was a reference on the way, as after a rollback, has one line, as the final one.
    """
    full = next((o.model for o in outcomes if o.strategy == "full_tokens"), None)
    seen: set[str] = set()
    lines: list[Measured] = []

    def add(name: str, model: Model, kept_share: float | None, weak: str, reference: str = "") -> None:
        seen.add(model.key)
        against_base = workshop.against(model, workshop.base) if model.key != workshop.base.key else None
        against_full = workshop.against(model, full) if full is not None and model.key != full.key else None
        loss = against_base.loss if against_base else float(np.nanmean(workshop.heldout_losses(model).values))
        lines.append(Measured(name, kept_share, loss, against_base, against_full, weak, reference))

    weak = {c.model.key: "; ".join(c.faults) for o in outcomes for c in o.checks if c.faults}
    add("base", workshop.base, None, "")
    for outcome in outcomes:
        for check in outcome.checks:
            if check.model.key in seen or check.model.key == outcome.model.key:  # strategies share references
                continue
            add(f"  {check.model.name}", check.model, None, weak.get(check.model.key, ""))
        if outcome.model.key != workshop.base.key:
            reference = next((c.model.name for c in outcome.checks if c.model.key == outcome.model.key), "")
            share, faults = kept_share(outcome, workshop), weak.get(outcome.model.key, "")
            add(outcome.strategy, outcome.model, share, faults, reference)
    return lines


def loss_table(measured: list[Measured], workshop: Workshop) -> Table:
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
    tokens = int(workshop.heldout.is_response.values.sum())
    return Table(
        "Held-out loss (nats a response token; lower is better)",
        ("model", "kept", "loss", "minus base ± 95%", "minus full tokens"),
        rows,
        f"{len(workshop.heldout)} held-out conversations, {tokens:,} response tokens; indented: references on the way",
    )


def overlap_table(kept: Mapping[str, Ragged]) -> Table:
    """Pairwise Jaccard of the strategies' kept sets."""
    return jaccard_table(list(kept), [[jaccard(a, b) for b in kept.values()] for a in kept.values()])


def _tell_pool(workshop: Workshop) -> None:
    tokens = workshop.tokens
    workshop.observer.note(
        f"pool: {len(tokens):,} training rows, {len(tokens.input_ids.values):,} tokens, "
        f"{int(tokens.is_response.values.sum()):,} of them response; {len(workshop.heldout):,} held-out rows; "
        f"{workshop.intake.set_aside:,} rows set aside, "
        f"{int(tokens.is_cut.sum()):,} cut at {tokens.max_length} tokens"
    )
    for line in workshop.intake.lines():
        workshop.observer.note(line)
