"""Self-evolving cleaning (§4.3.2, Algorithm 1): split by split, the last model being the next reference."""

from __future__ import annotations

import numpy as np

from tokenclean.cleaning.outcome import Outcome, weights_of
from tokenclean.cleaning.reference import check_reference
from tokenclean.cleaning.workshop import Workshop
from tokenclean.selection import select_tokens


def self_evolving(workshop: Workshop) -> Outcome:
    """Warm up θ_1 on D̃_0 with full tokens; for t = 1 … T score D̃_t with θ_t, keep its top k %, train θ_{t+1} from θ_t.

    Scores are against the fixed θ_0 (``score_against: base``) or against θ_{t−1} (``previous``, the listing). Each
    round trains a fresh LoRA on the last model. Rounds are numbered as in Table 2: reference-t is θ_{t+1}; the last
    one is the output. D̃_0 counts as kept whole.
    """
    settings = workshop.recipe.cleaning
    labels = workshop.tokens.is_response
    kept = np.zeros(len(labels.values), dtype=bool)
    scores = np.full(len(labels.values), np.nan, dtype=np.float32)
    first = workshop.places(workshop.splits[0])
    kept[first] = labels.values[first]

    previous, reference = workshop.base, workshop.warmup
    rounds, checks = [reference], []
    for number, rows in enumerate(workshop.splits[1:], start=1):
        against = workshop.base if settings.score_against == "base" else previous
        losses = [workshop.split_losses(model, rows, f"D{number}") for model in (against, reference)]
        split_scores = losses[0] - losses[1]
        checks.append(check_reference(workshop, reference, split_scores, rows))
        split_kept = select_tokens(
            split_scores,
            labels.take(rows),
            proportion=settings.proportion,
            level=settings.level,
            sources=[workshop.tokens.sources[r] for r in rows],
        )
        places = workshop.places(rows)
        kept[places], scores[places] = split_kept.values, split_scores.values
        previous = reference
        reference = workshop.train(f"reference-{number}", reference, weights_of(labels.with_values(kept)), rows)
        rounds.append(reference)
    return Outcome(
        "self_evolving",
        reference,
        labels.with_values(kept),
        labels.with_values(scores),
        tuple(checks),
        tuple(rounds),
    )
