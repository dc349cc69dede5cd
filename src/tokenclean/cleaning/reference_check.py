"""Is the reference any good? The score assumes that it beats the base on this task (§4.2.1, "assume model quality")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.errors import WeakReferenceError
from tokenclean.ragged import Ragged
from tokenclean.recipe import ScoringSettings
from tokenclean.scoring import PairedDifference

SPREAD_TO_ERROR = 3.0
_ERROR_SAMPLE_SHARE = 1 / 8
_ERROR_SAMPLE_TOKENS = (256, 1024)  # at least, where there are so many, and at most


@dataclass(frozen=True)
class ReferenceCheck:
    """A reference against the base: held-out loss, and the scores' spread beside the policy's score error (nats)."""

    model: Model
    heldout: PairedDifference
    score_deviation: float
    score_error: float

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, in plain words; empty for a good reference."""
        found = []
        difference = self.heldout
        interval = f"{difference.difference:+.4f} nats, 95 % interval {difference.low:+.4f} to {difference.high:+.4f}"
        if difference.is_worse:
            found.append(f"it is worse than the base on held-out rows ({interval})")
        elif not difference.is_better:
            found.append(f"it is not shown to be better than the base on held-out rows ({interval})")
        if self.score_deviation < SPREAD_TO_ERROR * self.score_error:
            found.append(
                f"its scores spread by {self.score_deviation:.4f} nats, less than {SPREAD_TO_ERROR:g} times the "
                f"precision policy's score error of {self.score_error:.1e}"
            )
        return found

    def __str__(self) -> str:
        d = self.heldout
        return (
            f"{self.model.name}: held-out loss {d.loss:.4f} against the base's {d.baseline_loss:.4f} "
            f"({d.difference:+.4f}, 95 % {d.low:+.4f} to {d.high:+.4f}); scores' standard deviation "
            f"{self.score_deviation:.3f} nats, score error {self.score_error:.1e}"
        )


def check_reference(context: RunContext, reference: Model, scores: Ragged, rows: np.ndarray) -> ReferenceCheck:
    """Measure a reference on the held-out rows and on the ``scores`` (nats) it gave to ``rows``, and note the result.

    Raises WeakReferenceError with the remedy for a weak one, unless ``cleaning.allow_weak_reference``.
    """
    values = scores.values[np.isfinite(scores.values)].astype(np.float64)
    check = ReferenceCheck(
        reference,
        context.against(reference, context.base),
        float(values.std()),
        score_error(context, reference, scores, rows),
    )
    context.note(str(check))
    if not check.faults:
        return check
    if context.recipe.cleaning.allow_weak_reference:
        context.note(
            f"weak reference {reference.name}: {'; '.join(check.faults)}; "
            "continuing because cleaning.allow_weak_reference is set"
        )
        return check
    steps = (reference.training or {}).get("effective_steps")
    remedy = (
        "Name a better model.reference"
        if steps is None
        else f"It was trained for {steps} optimizer steps: give it more (a smaller training.batch_size, more epochs or "
        "rows) or raise training.learning_rate (1e-3 to 2e-3 for few steps)"
    )
    raise WeakReferenceError(
        f"the reference {reference.name} is weak: {'; '.join(check.faults)}. Its scores would select noise. {remedy}; "
        "hold out more rows to see small gains, or choose a finer scoring.precision; continue with "
        "--allow-weak-reference"
    )


def score_error(context: RunContext, reference: Model, scores: Ragged, rows: np.ndarray) -> float:
    """Mean |error| of the ``scores`` of ``rows`` in nats, against float32 with one conversation a pass, on the first
    rows: an eighth of the tokens, from 256 to 1,024; at least float32's own rounding of a loss."""
    sample = context.tokens.take(rows[: error_sample_rows(context.tokens.input_ids.lengths[rows])])
    one_by_one = ScoringSettings(precision="exact", pack_tokens=1)
    exact = [context.passes.losses(model, sample, "sample", one_by_one) for model in (context.base, reference)]
    difference = scores.take(np.arange(len(sample))).values - (exact[0] - exact[1]).values
    rounding = float(np.finfo(np.float32).eps * np.nanmean(exact[0].values))
    return max(float(np.nanmean(np.abs(difference))), rounding)


def error_sample_rows(lengths: np.ndarray) -> int:
    """How many of the first rows ``score_error`` scores. ``lengths``: tokens of each row, (N,)."""
    ends = np.cumsum(lengths)
    least, most = _ERROR_SAMPLE_TOKENS
    count = 1 + int(np.searchsorted(ends, np.clip(ends[-1] * _ERROR_SAMPLE_SHARE, least, most)))
    return min(count, len(lengths))
