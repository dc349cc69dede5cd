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
    rows = np.arange(len(tokens))
    for half in (0, 1):
        own = rows[rows % 2 == half]
        judge = context.trainings.train(
            TrainingJob(f"judge-{half + 1}", context.base, tokens.take(own), weights.take(own))
        )
        judged = context.heldout_losses(judge)
        row_of = np.repeat(rows, labels.lengths)
        is_other = row_of % 2 != half
        scores[is_other] = (base.values - judged.values)[is_other]
    return select_tokens(labels.with_values(scores), labels, proportion=context.recipe.cleaning.proportion)


def measure_heldout(losses: Mapping[str, Sequence[Ragged]], is_kept: Ragged, control: str) -> list[HeldoutMeasures]:
    """``losses``: for each strategy its held-out losses under every seed; ``is_kept``: of ``judged_tokens``."""
    means = {name: runs[0].with_values(np.mean([run.values for run in runs], axis=0)) for name, runs in losses.items()}

    def parts(column: Ragged) -> list[Ragged]:
        kept = column.with_values(np.where(is_kept.values, column.values, np.nan))
        dropped = column.with_values(np.where(is_kept.values, np.nan, column.values))
        return [column, kept, dropped]

    baseline = parts(means[control])
    return [
        HeldoutMeasures(
            name,
            tuple(float(np.nanmean(part.values, dtype=np.float64)) for part in parts(column)),
            None
            if name == control
            else tuple(paired_difference(part, other) for part, other in zip(parts(column), baseline, strict=True)),
        )
        for name, column in means.items()
    ]


def heldout_table(measured: Sequence[HeldoutMeasures], control: str, seeds: int, names: Mapping[str, str]) -> Table:
    """Losses, and below the differences from the control."""
    called = [names.get(m.name, m.name) for m in measured]
    rows = [(name, *(f"{loss:.4f}" for loss in m.losses)) for name, m in zip(called, measured, strict=True)]
    below = [
        (name, *map(difference_text, m.against))
        for name, m in zip(called, measured, strict=True)
        if m.against is not None
    ]
    shown = names.get(control, control)
    over = "One seed" if seeds == 1 else f"Mean of {seeds} seeds, whose spread the intervals leave out"
    return Table(
        "Held-out loss (nats a response token; lower is better)",
        ("Model", *MEASURES),
        (*rows, *below),
        f"{over}. Judge: two references that trained none of the strategies, each on full tokens of one half of the "
        f"held-out rows and asked for the other half. Below, paired differences from {shown} ± half the 95 % interval "
        "over conversations.",
        sections={len(rows): f"minus {shown}"} if below else {},
    )


def source_gains_table(
    losses: Mapping[str, Sequence[Ragged]], sources: Sequence[str], base: str, names: Mapping[str, str]
) -> Table | None:
    """Where a model gains on the base (§6.3): held-out loss minus the base's by source of the pool, in nats a token.

    ``losses`` as of ``measure_heldout``; ``sources``: of each held-out row. None where fewer than two sources have the
    two rows that an interval needs.
    """
    of_source = {source: np.flatnonzero(np.array(sources) == source) for source in sorted(set(sources))}
    columns = {source: rows for source, rows in of_source.items() if len(rows) > 1}
    if len(columns) < 2:
        return None
    means = {name: runs[0].with_values(np.mean([run.values for run in runs], axis=0)) for name, runs in losses.items()}
    lines = [
        (
            names.get(name, name),
            *(difference_text(paired_difference(c.take(rows), means[base].take(rows))) for rows in columns.values()),
        )
        for name, c in means.items()
        if name != base
    ]
    return Table(
        "Gain over the base by source of the pool (held-out loss; below 0 is better)",
        ("Model", *columns),
        tuple(lines),
        "nats a response token, ± half the 95 % interval over conversations; a stronger reference need not gain more "
        "on every source. By benchmark: --control base",
    )
