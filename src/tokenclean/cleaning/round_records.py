"""What each round of self-evolving cleaning kept, and where its model gained and lost on held-out tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.ragged import Ragged
from tokenclean.scoring import mean_loss
from tokenclean.selection import lowest_kept


@dataclass(frozen=True)
class HeldoutLoss:
    """A model's mean loss in nats over all held-out response tokens, over those that the first selection would keep
    and over those that it would drop (see ``first_selection``); None where there are none."""

    all_tokens: float
    kept_first: float | None
    dropped_first: float | None


@dataclass(frozen=True)
class SplitSelection:
    """What was kept of one split.

    ``threshold``: the lowest kept score τ (Eq. 4), nats; None where nothing was kept or, as for the warm-up, scored.
    ``source_thresholds``: at level ``source`` each source's own, else empty. ``kept_share``, ``source_shares``: kept
    over response tokens of the split, and of each of its sources.
    """

    threshold: float | None
    source_thresholds: Mapping[str, float | None]
    kept_share: float
    source_shares: Mapping[str, float]


@dataclass(frozen=True)
class Round:
    """One model of self-evolving cleaning and how it came about.

    ``model``: trained on what ``selection`` kept of the split D̃ with this number. ``reference``: the model that scored
    the split and from which the training went on; None for the warm-up, which is trained from the base on D̃_0 with full
    tokens. ``is_rolled_back``: the model was worse than its reference, which became the output.
    """

    model: Model
    split: int
    reference: Model | None
    selection: SplitSelection
    heldout: HeldoutLoss
    is_rolled_back: bool = False


def record_rounds(
    context: RunContext, trained: Sequence[Model], kept: Ragged, scores: Ragged, output: Model
) -> tuple[Round, ...]:
    """The warm-up and every round.

    ``trained``: the warm-up, then each round's model, rolled back ones too. ``kept`` (bool) and ``scores`` (nats): of
    all splits they were trained on, aligned with the pool's tokens. ``output``: the model handed over; those trained
    after it are rolled back.
    """
    selections = [split_selection(context, rows, kept, scores) for rows in context.data.splits[: len(trained)]]
    is_kept_first = first_selection(context, selections[1])
    last = trained.index(output)
    return tuple(
        Round(
            model,
            number,
            trained[number - 1] if number else None,
            selections[number],
            heldout_loss(context, model, is_kept_first),
            number > last,
        )
        for number, model in enumerate(trained)
    )


def split_selection(context: RunContext, rows: np.ndarray, kept: Ragged, scores: Ragged) -> SplitSelection:
    """What was kept of the split with these rows; ``kept`` and ``scores`` are aligned with the pool's tokens."""
    labels, sources = context.tokens.is_response, context.tokens.sources
    of_source: dict[str, list[int]] = {}
    for row in rows.tolist():
        of_source.setdefault(sources[row], []).append(row)

    def share(rows: Sequence[int] | np.ndarray) -> float:
        return float(kept.take(rows).values.sum() / labels.take(rows).values.sum())

    def threshold(rows: Sequence[int] | np.ndarray) -> float | None:
        return lowest_kept(scores.take(rows), kept.take(rows))

    has_own = context.recipe.cleaning.level == "source"
    return SplitSelection(
        threshold(rows),
        {name: threshold(part) for name, part in sorted(of_source.items())} if has_own else {},
        share(rows),
        {name: share(part) for name, part in sorted(of_source.items())},
    )


def first_selection(context: RunContext, first: SplitSelection) -> Ragged:
    """The held-out response tokens that the first selection would keep (bool, aligned with the held-out tokens).

    A held-out token's score is its loss under the base minus that under the warm-up θ_1, as D̃_1 was scored; it would
    be kept where that is at least the first round's threshold; at level ``source`` that is the threshold of its own
    source, and the lowest of all for a source of which D̃_1 has no row.
    """
    heldout = context.heldout
    scores = context.heldout_losses(context.base) - context.heldout_losses(context.initial_reference)
    return reaching(scores, heldout.is_response, heldout.sources, first.threshold, first.source_thresholds)


def reaching(
    scores: Ragged,
    is_response: Ragged,
    sources: Sequence[str],
    threshold: float | None,
    source_thresholds: Mapping[str, float | None],
) -> Ragged:
    """The response tokens whose score (nats) is at least the threshold (nats), bool, aligned with ``is_response``.

    A row whose source, one name a row in ``sources``, has a threshold of its own is compared with that one. A threshold
    of None belongs to a selection that kept nothing, and no token reaches it.
    """
    own = (source_thresholds.get(name, threshold) for name in sources)
    thresholds_N = np.array([math.inf if value is None else value for value in own])
    is_high = scores.values >= np.repeat(thresholds_N, scores.lengths)
    return is_response.with_values(is_response.values & is_high)


def heldout_loss(context: RunContext, model: Model, is_kept_first: Ragged) -> HeldoutLoss:
    """Mean held-out losses of a model; ``is_kept_first``: see ``first_selection``."""
    losses, kept = context.heldout_losses(model), is_kept_first.values
    dropped = context.heldout.is_response.values & ~kept
    return HeldoutLoss(mean_loss(losses), _mean(losses.values[kept]), _mean(losses.values[dropped]))


def _mean(losses: np.ndarray) -> float | None:
    return float(losses.mean(dtype=np.float64)) if len(losses) else None
