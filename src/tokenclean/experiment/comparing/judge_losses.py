"""Held-out loss that needs no benchmark: over all response tokens, and over those that a judge keeps and drops.

Where models are trained on kept tokens alone, the loss over all tokens hides what happens: it falls on tokens like the
kept ones and rises on those like the dropped. To tell which are which without favouring a strategy, the score must come
from a reference that trained none of them. Two judges are trained for that, each with full tokens on one half of the
held-out rows, and each scores the other half: no strategy saw these rows, and no judge scores what it learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.trainings import TrainingJob
from tokenclean.ragged import Ragged
from tokenclean.recipe.strategies import STRATEGY_NAMES
from tokenclean.report.tables import Table, difference_text
from tokenclean.scoring import PairedDifference, paired_difference
from tokenclean.selection import select_tokens

MEASURES = ("all tokens", "judge keeps", "judge drops")


@dataclass(frozen=True)
class HeldoutMeasures:
    """A strategy's mean held-out losses over ``MEASURES``, nats a token, and against the control, where it is another.

    Losses are means over the seeds, token by token; intervals are over conversations.
    """

    name: str
    losses: tuple[float, ...]
    against: tuple[PairedDifference, ...] | None


def judged_tokens(context: RunContext) -> Ragged:
    """Held-out response tokens that the judges keep: the top ``cleaning.proportion`` of all by base − judge loss.

    Bool, aligned with the held-out tokens. The split into halves is that of the rows' order, even and odd.
    """
    tokens = context.heldout
    labels = tokens.is_response
    weights = labels.map_values(lambda values: values.astype(np.float32))
    base = context.heldout_losses(context.base)
    scores = np.full(len(labels.values), np.nan, dtype=np.float32)
    half_of_row = np.arange(len(tokens)) % 2
    for half in (0, 1):
        own = np.flatnonzero(half_of_row == half)
        job = TrainingJob(f"judge-{half + 1}", context.base, tokens.take(own), weights.take(own))
        judged = context.heldout_losses(context.trainings.train(job))
        is_other = half_of_row[labels.row_of_value()] != half
        scores[is_other] = (base.values - judged.values)[is_other]
    return select_tokens(labels.with_values(scores), labels, proportion=context.recipe.cleaning.kept_proportion)


def mean_over_seeds(runs: Sequence[Ragged]) -> Ragged:
    """A model's held-out losses, token by token the mean over its ``runs``, one a seed."""
    return runs[0].with_values(np.mean([run.values for run in runs], axis=0))


def measure_heldout(losses: Mapping[str, Ragged], is_kept: Ragged, control: str) -> list[HeldoutMeasures]:
    """``losses``: of each strategy (``mean_over_seeds``); ``is_kept``: of ``judged_tokens``."""

    def parts(column: Ragged) -> list[Ragged]:
        kept = column.with_values(np.where(is_kept.values, column.values, np.nan))
        dropped = column.with_values(np.where(is_kept.values, np.nan, column.values))
        return [column, kept, dropped]

    baseline, measured = parts(losses[control]), []
    for name, column in losses.items():
        own = parts(column)
        means = tuple(float(np.nanmean(part.values, dtype=np.float64)) for part in own)
        against = None if name == control else tuple(map(paired_difference, own, baseline))
        measured.append(HeldoutMeasures(name, means, against))
    return measured


def heldout_table(measured: Sequence[HeldoutMeasures], control: str, seeds: int) -> Table:
    """Losses, and below the differences from the control."""
    names = {m.name: STRATEGY_NAMES.get(m.name, m.name) for m in measured}
    rows = [(names[m.name], *(f"{loss:.4f}" for loss in m.losses)) for m in measured]
    below = [(names[m.name], *map(difference_text, m.against)) for m in measured if m.against is not None]
    over = "One seed" if seeds == 1 else f"Mean of {seeds} seeds, whose spread the intervals leave out"
    return Table(
        "Held-out loss (nats a response token; lower is better)",
        ("Model", *MEASURES),
        (*rows, *below),
        f"{over}. Judge: two references that trained none of the strategies, each on full tokens of one half of the "
        f"held-out rows and asked for the other half. Below, paired differences from {names[control]} ± half the 95 % "
        "interval over conversations.",
        sections={len(rows): f"minus {names[control]}"} if below else {},
    )


def source_gains_table(losses: Mapping[str, Ragged], sources: Sequence[str], base: str) -> Table | None:
    """Where a model gains on the base (§6.3): held-out loss minus the base's by source of the pool, in nats a token.

    ``losses`` as of ``measure_heldout``; ``sources``: of each held-out row. None where fewer than two sources have the
    two rows that an interval needs.
    """
    of_source = {source: np.flatnonzero(np.array(sources) == source) for source in sorted(set(sources))}
    columns = {source: rows for source, rows in of_source.items() if len(rows) > 1}
    if len(columns) < 2:
        return None
    lines = []
    for name, column in losses.items():
        if name != base:
            gains = [paired_difference(column.take(rows), losses[base].take(rows)) for rows in columns.values()]
            lines.append((STRATEGY_NAMES.get(name, name), *map(difference_text, gains)))
    return Table(
        "Gain over the base by source of the pool (held-out loss; below 0 is better)",
        ("Model", *columns),
        tuple(lines),
        "nats a response token, ± half the 95 % interval over conversations; a stronger reference need not gain more "
        "on every source. By benchmark: --control base",
    )
