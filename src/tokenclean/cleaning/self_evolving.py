"""Self-evolving cleaning (§4.3.2, Algorithm 1): split by split, the last model being the next reference."""

from __future__ import annotations

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.noise_removal import fractions_of, noise_found, train_without_noise
from tokenclean.cleaning.reference_check import check_reference
from tokenclean.cleaning.round_records import record_rounds
from tokenclean.cleaning.strategy_result import StrategyResult
from tokenclean.scoring import mean_loss
from tokenclean.selection import select_tokens


def self_evolving(context: RunContext) -> StrategyResult:
    """Warm up θ_1 on D̃_0 with full tokens; for t = 1 … T score D̃_t with θ_t, keep its top k %, train θ_{t+1} from θ_t.

    Scores are against the fixed θ_0 (``score_against: base``) or against θ_{t−1} (``previous``, the listing). Each
    round trains a fresh LoRA on the last model, or with ``adapters: one`` continues the last model's LoRA, optimizer
    and learning-rate schedule. Rounds are numbered as in Table 2: reference-t is θ_{t+1}; the last one is the output.
    D̃_0 counts as kept whole.

    With ``stop_when: held_out_loss_rises`` the first model with a higher mean held-out loss than the best so far, of
    which the warm-up is the first, ends the loop and is rolled back: the best is the output. The rows of its split and
    of those after it then count as not kept, since the output was not trained on them.
    """
    settings = context.recipe.cleaning
    labels = context.tokens.is_response
    kept = np.zeros(len(labels.values), dtype=bool)
    scores, *losses = (np.full(len(labels.values), np.nan, dtype=np.float32) for _ in range(3))
    first = context.data.indices(context.data.splits[0])
    kept[first] = labels.values[first]
    weights, row_rates = kept.astype(np.float32), None

    previous, reference = context.base, context.initial_reference
    trained, checks = [reference], []
    for number, rows in enumerate(context.data.splits[1:], start=1):
        against = context.base if settings.score_against == "base" else previous
        split_losses = context.split_losses(against, reference, rows, f"D{number}")
        split_scores = split_losses[0] - split_losses[1]
        checks.append(check_reference(context, reference, split_scores, rows))
        split_scores = context.data.ranked_scores(split_scores, rows)
        split_kept = select_tokens(
            split_scores,
            labels.take(rows),
            proportion=settings.kept_proportion,
            level=settings.level,
            sources=[context.tokens.sources[r] for r in rows],
        )
        places = context.data.indices(rows)
        kept[places], scores[places] = split_kept.values, split_scores.values
        for whole, part in zip(losses, split_losses, strict=True):
            whole[places] = part.values
        found = train_without_noise(
            context, f"reference-{number}", reference, labels.with_values(kept), rows, part=context.data.parts[number]
        )
        kept[places], weights[places] = found.kept.values[places], found.weights.values[places]
        if found.row_rates is not None:
            row_rates = np.full(len(labels), np.nan) if row_rates is None else row_rates
            row_rates[rows] = found.row_rates[rows]
        trained.append(found.model)
        if settings.stop_when == "held_out_loss_rises" and _loss_rises(context, trained[-1], reference):
            break
        previous, reference = reference, trained[-1]

    records = record_rounds(context, trained, labels.with_values(kept), labels.with_values(scores), reference)
    for record in records:
        if record.is_rolled_back:
            places = context.data.indices(context.data.splits[record.split])
            kept[places], weights[places] = False, 0
    subtracted = "base_loss" if settings.score_against == "base" else "previous_loss"
    return StrategyResult(
        "self_evolving",
        reference,
        labels.with_values(kept),
        labels.with_values(scores),
        {name: labels.with_values(values) for name, values in zip((subtracted, "reference_loss"), losses, strict=True)},
        tuple(checks),
        tuple(record.model for record in records if not record.is_rolled_back),
        records,
        fractions_of(labels.with_values(weights)),
        noise_found(context, labels.with_values(kept), row_rates),
    )


def _loss_rises(context: RunContext, model: Model, best: Model) -> bool:
    """Whether the model's mean held-out loss is above that of the best so far, and if so a note that it is."""
    loss, lowest = (mean_loss(context.heldout_losses(m)) for m in (model, best))
    if loss > lowest:
        context.note(
            f"{model.name} is rolled back and self-evolving stops with {best.name} as its output, since the held-out "
            f"loss rose from {lowest:.4f} to {loss:.4f} (cleaning.stop_when: held_out_loss_rises)"
        )
    return loss > lowest
