"""``auto``: a run that decides for its user what to train on, by trials on a share of the rows.

What the base's losses and the texts show proposes candidates, full tokens always among them. Each is trained on the
same rows, and compared with full tokens on rows that no trial is trained on: trusted rows, where there are any, else a
half of the held-out ones, on which nothing is reported then. Only what is clearly better there is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokenclean.cleaning.baselines import full_tokens
from tokenclean.cleaning.choice import FULL_TOKENS, Choice, Trial, best_trial, compare_trials
from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.fixed_model import fixed_model
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.noise_removal import noise_rates, remove_noise, train_without_noise
from tokenclean.cleaning.reference_check import error_sample_rows
from tokenclean.cleaning.strategy_result import StrategyResult, weights_of
from tokenclean.cleaning.trial_budget import BUDGET, RunSize, draw_rows, run_cost, trial_tokens
from tokenclean.errors import RecipeError
from tokenclean.pool.recipe_pool import LEAST_CHOOSING_ROWS
from tokenclean.ragged import Ragged
from tokenclean.selection import select_tokens

MOST_TRIALS = 4
"""Full tokens and three candidates."""

_LEAST_TRIAL_ROWS = 20  # a training on fewer rows says nothing about one on the whole pool
_FIXED_MODEL = "fixed_model"
_METHODS: Mapping[str, tuple[str, ...]] = {
    "noise_mixture+repetition": ("noise_mixture", "repetition"),
    "repetition": ("repetition",),
    "noise_mixture": ("noise_mixture",),
}


@dataclass(frozen=True)
class Candidates:
    """``names``: beside full tokens, those of most promise first. ``noise``: estimated share of the pool's response
    tokens. ``found``: what was found in the pool, in words."""

    names: tuple[str, ...]
    noise: float
    found: str


def auto(context: RunContext) -> StrategyResult:
    """Try full tokens and up to three candidates on a share of the rows, and take what is clearly better there than
    full tokens; where nothing is, full tokens.

    Candidates: ``noise_mixture`` where the estimated noise of the pool is above what is expected of clean text
    (``cleaning.noise_mixture.mean``), ``repetition`` where many rows share passages, both together, and
    ``fixed_model`` where a reference can be had: by ``model.reference``, or by warming one up on trusted rows. The
    share is what the budget leaves: the run costs at most 2.5 trainings on full tokens. In a dry run, where losses are
    made up, all candidates that may come are tried and the one that costs most is taken.
    """
    choice = choose_strategy(context)
    context.note(choice.sentence)
    return replace(_train_chosen(context, choice.chosen), choice=choice)


def choose_strategy(context: RunContext) -> Choice:
    """What ``auto`` trains on all rows: ``full_tokens``, or the name of a candidate."""
    data = context.data
    if not context.recipe.chooses:
        raise RecipeError(["auto needs rows to choose by, so a recipe has to name it, as strategy or control"], "auto")
    if data.choosing is None:
        rows = len(data.trusted) or len(data.heldout)
        kind = "trusted" if len(data.trusted) else "held-out"
        needed = LEAST_CHOOSING_ROWS if len(data.trusted) else 2 * LEAST_CHOOSING_ROWS
        return Choice(FULL_TOKENS, f"{rows:,} {kind} rows are too few to choose by, which takes {needed}")
    candidates = find_candidates(context)
    size = run_size(context, has_reference=_FIXED_MODEL in candidates.names)
    made = Choice(
        FULL_TOKENS,
        f"{candidates.found}, so there is nothing to try",
        training_rows=len(data.tokens),
        choosing_rows=len(data.choosing),
        chosen_by="trusted" if len(data.trusted) else "held-out",
        noise=candidates.noise,
    )
    if not candidates.names:
        return made
    names, rows = plan_trials(context, candidates.names, size)
    if len(rows) < _LEAST_TRIAL_ROWS:
        reason = f"{BUDGET:g} times the cost of full tokens leaves {len(rows)} rows for a trial, fewer than"
        return replace(made, reason=f"{reason} {_LEAST_TRIAL_ROWS}")
    cost = run_cost(size, len(names)).total(int(data.tokens.input_ids.lengths[rows].sum()))
    made = replace(made, trial_rows=len(rows), cost=cost / (size.training * size.epochs))
    context.note(
        f"auto: {candidates.found}; tries {', '.join(names)} on {len(rows):,} of {len(data.tokens):,} rows "
        f"({len(rows) / len(data.tokens):.0%}); all in all at most {made.cost:.2f} times the cost of full tokens"
    )
    models = {name: try_candidate(context, name, rows) for name in names}
    losses = {name: context.choosing_losses(model) for name, model in models.items()}
    tried, level = compare_trials(losses, data.choosing.is_response)
    for trial in tried:
        context.note(f"auto: trial of {trial} against full tokens ({level:.1%} interval)")
    if context.is_dry:
        return replace(made, chosen=names[1], reason="costs most of what may be chosen", trials=tuple(tried))
    return replace(decide(made, tried, level), trials=tuple(tried), level=level)


def decide(made: Choice, trials: list[Trial], level: float) -> Choice:
    """The choice with what the trials say. ``made``: the rows by which was chosen, and what was tried."""
    best = best_trial(trials)
    shown = best or min(trials, key=lambda trial: (np.isnan(trial.difference), trial.difference))
    interval = f"{level:.1%} interval {shown.low:+.4f} to {shown.high:+.4f}"
    where = (
        f"in trials on {made.trial_rows:,} of {made.training_rows:,} rows, by {made.choosing_rows:,} "
        f"{made.chosen_by} conversations that are not reported on"
    )
    if best is not None:
        reason = f"it was better than full tokens by {-best.difference:.4f} nats a token ({interval}) {where}"
        return replace(made, chosen=best.name, reason=reason)
    found = f"at {shown.difference:+.4f} nats a token, {interval}"
    found = "had no finite loss" if np.isnan(shown.difference) else found
    return replace(made, reason=f"nothing was clearly better {where} (the best, {shown.name}, {found})")


def find_candidates(context: RunContext) -> Candidates:
    """What is worth a trial beside full tokens, by the estimated noise and the repeated passages of the pool."""
    rate = noise_rates(context, context.tokens.is_response, context.noise.estimate.row_rates).pool
    bound = context.recipe.cleaning.noise_mixture.mean
    passages = len(context.noise.repetition.passages)
    proposed = {"noise_mixture": context.is_dry or rate > bound, "repetition": passages > 0}
    has_reference = context.given_reference is not None or len(context.data.reference_rows) > 0
    names = [_FIXED_MODEL] if has_reference else []
    names += [name for name, methods in _METHODS.items() if all(proposed[method] for method in methods)]
    found = f"{rate:.2%} of the response tokens look like noise (tried above {bound:.2%}), "
    found += f"{passages or 'no'} passage{'' if passages == 1 else 's'} in many rows"
    return Candidates(tuple(names[: MOST_TRIALS - 1]), rate, found)


def plan_trials(context: RunContext, candidates: Sequence[str], size: RunSize) -> tuple[tuple[str, ...], np.ndarray]:
    """The trials, full tokens first, and the training rows of each: as many candidates as leave enough rows, the last
    ones being left out, and at least one."""
    data, lengths = context.data, context.tokens.input_ids.lengths
    untrusted = np.setdiff1d(np.arange(len(lengths)), data.trusted)
    names = (FULL_TOKENS, *candidates)
    while True:
        most = trial_tokens(size, len(names))
        rows = draw_rows(untrusted, lengths, data.tokens.sources, most, context.recipe.seed)
        if len(rows) >= _LEAST_TRIAL_ROWS or len(names) == 2:
            return names, rows
        names = names[:-1]


def try_candidate(context: RunContext, name: str, rows: np.ndarray) -> Model:
    """The base trained on ``rows`` as the candidate trains it on all; ``name``: of a candidate or ``full_tokens``."""
    labels, trial = context.tokens.is_response, f"trial-{name}"
    if name == FULL_TOKENS:
        return context.train(trial, context.base, weights_of(labels), rows)
    if name == _FIXED_MODEL:
        return train_without_noise(context, trial, context.base, _select_by_reference(context, rows), rows).model
    methods = {*_METHODS[name], *context.recipe.cleaning.also}
    return train_without_noise(context, trial, context.base, labels, rows, methods=methods).model


def _select_by_reference(context: RunContext, rows: np.ndarray) -> Ragged:
    """What ``fixed_model`` keeps of ``rows``, bool over all training rows; the reference has not seen the rows by which
    is chosen."""
    settings, tokens = context.recipe.cleaning, context.tokens
    reference = context.given_reference
    if reference is None:
        full = weights_of(tokens.is_response)
        reference = context.train("trial-reference", context.base, full, context.data.reference_rows)
    base_loss, reference_loss = context.split_losses(context.base, reference, rows, "trial rows")
    selected = select_tokens(
        base_loss - reference_loss,
        tokens.is_response.take(rows),
        proportion=settings.proportion,
        level=settings.level,
        sources=[tokens.sources[row] for row in rows],
    )
    kept = np.zeros(len(tokens.is_response.values), dtype=bool)
    kept[context.data.indices(rows)] = selected.values
    return tokens.is_response.with_values(kept)


def run_size(context: RunContext, *, has_reference: bool) -> RunSize:
    """The tokens of which the cost of the run is counted."""
    data, lengths = context.data, context.tokens.input_ids.lengths
    choosing = 0 if data.choosing is None else len(data.choosing.input_ids.values)
    size = RunSize(int(lengths.sum()), context.recipe.training.epochs, choosing, len(data.heldout.input_ids.values))
    if not has_reference:
        return size
    unseen = lengths[np.concatenate(data.splits[1:])]
    return replace(
        size,
        warmup=0 if context.given_reference else int(lengths[data.splits[0]].sum()),
        trial_warmup=0 if context.given_reference else int(lengths[data.reference_rows].sum()),
        ranked=int(lengths.sum() - lengths[data.trusted].sum()),
        sample=int(unseen[: error_sample_rows(unseen)].sum()),
    )


def _train_chosen(context: RunContext, name: str) -> StrategyResult:
    """The chosen strategy on all rows. A reference that its check finds weak is noted, not refused: the trial has shown
    what its scores are worth."""
    if name == FULL_TOKENS:
        return full_tokens(context)
    if name == _FIXED_MODEL:
        return fixed_model(replace(context, data=context.data.with_cleaning(allow_weak_reference=True)))
    first, *further = _METHODS[name]
    return remove_noise(context, first, *further)
