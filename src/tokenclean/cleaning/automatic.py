"""``auto``: a run that decides for its user what to train on, by trials on a share of the rows.

``strategy: auto`` chooses a strategy, ``proportion: auto`` the share of tokens that a ranking strategy keeps. Full
tokens are always among the candidates. Each candidate is trained on the same rows and compared with full tokens on rows
that no trial is trained on: trusted rows if there are any, else half of the held-out rows, which are then not reported
on. Only a clearly better candidate is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from tokenclean.recipe import find_strategy
from tokenclean.selection import select_tokens
from tokenclean.selection.ranking import Level

MOST_TRIALS = 4
"""Full tokens and three candidates."""

PROPORTIONS = (0.85, 0.6)
"""Shares of the tokens that are tried beside all of them, those of most promise first."""

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
    ``fixed_model`` where there is a reference: ``model.reference``, or one warmed up on trusted rows. The share is what
    the budget leaves: the run costs at most 2.5 trainings on full tokens. In a dry run, where losses are made up, all
    candidates that may come are tried and the one that costs most is taken.
    """
    choice = choose_strategy(context)
    context.note(choice.sentence)
    return replace(_train_chosen(context, choice.chosen), choice=choice)


def choose_strategy(context: RunContext) -> Choice:
    """What ``auto`` trains on all rows: ``full_tokens``, or the name of a candidate."""
    if not context.recipe.chooses:
        raise RecipeError(["auto needs rows to choose by, so a recipe has to name it, as strategy or control"], "auto")
    if context.data.choosing is None:
        return _without_rows(context)
    candidates = find_candidates(context)
    made = replace(_untried(context), noise=candidates.noise, reason=f"{candidates.found}, so there is nothing to try")
    size = run_size(context, checks=int(_FIXED_MODEL in candidates.names))
    size = replace(size, noise=size.training)
    if not candidates.names:
        return replace(made, cost=run_cost(size, 0).fixed / (size.training * size.epochs))
    rows = np.setdiff1d(np.arange(len(context.tokens)), context.data.trusted)

    def try_one(name: str, rows: np.ndarray) -> Model:
        return try_candidate(context, name, rows)

    context.note(f"auto: {candidates.found}")
    return hold_trials(context, made, candidates.names, rows, size, try_one)


def choose_proportion(context: RunContext) -> Choice:
    """The share of tokens that ``cleaning.strategy`` keeps where ``cleaning.proportion`` is ``auto``; all where no
    smaller one is clearly better.

    Tokens are ranked at the strategy's own level by one reference, that of ``fixed_model``: ``model.reference``, a
    warm-up on the trusted rows by which nothing is chosen, or the warm-up on D̃_0, whose rows are then in no trial.
    """
    data, record = context.data, find_strategy(context.recipe.cleaning.strategy)
    has_reference = context.given_reference is not None or not len(data.trusted) or len(data.reference_rows) > 0
    if data.choosing is None or not has_reference:
        return replace(_without_rows(context, halved=True), proportion=1.0)
    rounds = len(data.splits) - 1 if record.trains_references else 1
    is_warmed_up = context.given_reference is None and not len(data.trusted)
    untried = data.splits[0] if is_warmed_up else data.trusted
    rows = np.setdiff1d(np.arange(len(context.tokens)), untried)
    level = record.level or context.recipe.cleaning.level
    names = {f"proportion {share:g}": share for share in PROPORTIONS}

    def try_one(name: str, rows: np.ndarray) -> Model:
        if name == FULL_TOKENS:
            return try_candidate(context, name, rows)
        kept = _select_by_reference(context, rows, names[name], level)
        return train_without_noise(context, f"trial-{names[name]:g}", context.base, kept, rows).model

    settings = context.recipe.cleaning
    size = run_size(context, checks=rounds)
    if "noise_mixture" in settings.also and settings.noise_mixture.mode == "offline":
        size = replace(size, noise=size.training)
    choice = hold_trials(context, _untried(context), tuple(names), rows, size, try_one)
    return replace(choice, proportion=names.get(choice.chosen, 1.0))


def with_chosen_proportion(context: RunContext) -> tuple[RunContext, Choice | None]:
    """The context with the number that was chosen where ``cleaning.proportion`` is ``auto``, else as it is. It is
    chosen once: the controls that rank tokens take it too."""
    if context.recipe.cleaning.proportion != "auto":
        return context, None
    if "proportion" not in context.choices:
        context.choices["proportion"] = choice = choose_proportion(context)
        context.note(choice.sentence)
    choice = context.choices["proportion"]
    return replace(context, data=context.data.with_cleaning(proportion=choice.proportion)), choice


def _without_rows(context: RunContext, *, halved: bool = False) -> Choice:
    """Full tokens, since too few rows could decide. ``halved``: where trusted rows warm up a reference too."""
    data = context.data
    rows, kind = (len(data.trusted), "trusted") if len(data.trusted) else (len(data.heldout), "held-out")
    needed = LEAST_CHOOSING_ROWS if kind == "trusted" and not halved else 2 * LEAST_CHOOSING_ROWS
    return Choice(FULL_TOKENS, f"{rows:,} {kind} rows are too few to choose by, which takes {needed}")


def _untried(context: RunContext) -> Choice:
    """Full tokens, before anything is tried."""
    data = context.data
    choosing = 0 if data.choosing is None else len(data.choosing)
    kind = "trusted" if len(data.trusted) else "held-out"
    return Choice(FULL_TOKENS, "", training_rows=len(data.tokens), choosing_rows=choosing, chosen_by=kind)


def hold_trials(
    context: RunContext,
    made: Choice,
    candidates: Sequence[str],
    rows: np.ndarray,
    size: RunSize,
    try_one: Callable[[str, np.ndarray], Model],
) -> Choice:
    """Train full tokens and the candidates on a share of ``rows`` each, and decide.

    ``made``: the choice so far; ``try_one``: trains a candidate, or ``full_tokens``, on the rows given.
    """
    names, rows = plan_trials(context, candidates, rows, size)
    training, choosing = context.tokens, context.data.choosing
    if choosing is None or len(rows) < _LEAST_TRIAL_ROWS:
        reason = f"{BUDGET:g} times the cost of full tokens leaves {len(rows)} rows for a trial, fewer than"
        return replace(made, reason=f"{reason} {_LEAST_TRIAL_ROWS}")
    cost = run_cost(size, len(names)).total(int(training.input_ids.lengths[rows].sum()))
    made = replace(made, trial_rows=len(rows), cost=cost / (size.training * size.epochs))
    context.note(
        f"auto: tries {', '.join(names)} on {len(rows):,} of {len(training):,} rows ({len(rows) / len(training):.0%}); "
        f"all in all at most {made.cost:.2f} times the cost of full tokens"
    )
    models = {name: try_one(name, rows) for name in names}
    losses = {name: context.choosing_losses(model) for name, model in models.items()}
    tried, level = compare_trials(losses, choosing.is_response)
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


def plan_trials(
    context: RunContext, candidates: Sequence[str], rows: np.ndarray, size: RunSize
) -> tuple[tuple[str, ...], np.ndarray]:
    """The trials, full tokens first, and which of ``rows`` each trains on: as many candidates as leave enough rows, the
    last ones being left out, and at least one."""
    names = (FULL_TOKENS, *candidates)
    while True:
        most = trial_tokens(size, len(names))
        drawn = draw_rows(rows, context.tokens.input_ids.lengths, context.tokens.sources, most, context.recipe.seed)
        if len(drawn) >= _LEAST_TRIAL_ROWS or len(names) == 2:
            return names, drawn
        names = names[:-1]


def try_candidate(context: RunContext, name: str, rows: np.ndarray) -> Model:
    """The base trained on ``rows`` as the candidate trains it on all; ``name``: of a candidate or ``full_tokens``."""
    labels, trial = context.tokens.is_response, f"trial-{name}"
    if name == FULL_TOKENS:
        return context.train(trial, context.base, weights_of(labels), rows)
    if name == _FIXED_MODEL:
        settings = context.recipe.cleaning
        kept = _select_by_reference(context, rows, settings.kept_proportion, settings.level)
        return train_without_noise(context, trial, context.base, kept, rows).model
    methods = {*_METHODS[name], *context.recipe.cleaning.also}
    return train_without_noise(context, trial, context.base, labels, rows, methods=methods).model


def _select_by_reference(context: RunContext, rows: np.ndarray, proportion: float, level: Level) -> Ragged:
    """What is kept of ``rows`` by a fixed reference that has seen neither them nor the rows by which is chosen; bool
    over all training rows."""
    tokens, data = context.tokens, context.data
    reference = context.given_reference
    if reference is None and len(data.trusted):
        reference = context.train("trial-reference", context.base, weights_of(tokens.is_response), data.reference_rows)
    base_loss, reference_loss = context.split_losses(context.base, reference or context.warmup, rows, "trial rows")
    selected = select_tokens(
        data.ranked_scores(base_loss - reference_loss, rows),
        tokens.is_response.take(rows),
        proportion=proportion,
        level=level,
        sources=[tokens.sources[row] for row in rows],
    )
    kept = np.zeros(len(tokens.is_response.values), dtype=bool)
    kept[data.indices(rows)] = selected.values
    return tokens.is_response.with_values(kept)


def run_size(context: RunContext, *, checks: int) -> RunSize:
    """The tokens of which the cost of the run is counted. ``checks``: of references, 0 for a run without one."""
    data, lengths = context.data, context.tokens.input_ids.lengths
    choosing = 0 if data.choosing is None else len(data.choosing.input_ids.values)
    size = RunSize(int(lengths.sum()), context.recipe.training.epochs, choosing)
    if not checks:
        return size
    unseen = data.splits[1:] if checks > 1 else [np.concatenate(data.splits[1:])]
    samples = (lengths[rows][: error_sample_rows(lengths[rows])] for rows in unseen)
    is_given = context.given_reference is not None
    return replace(
        size,
        heldout=checks * len(data.heldout.input_ids.values),
        warmup=0 if is_given else int(lengths[data.splits[0]].sum()),
        trial_warmup=0 if is_given else int(lengths[data.reference_rows].sum()),
        ranked=int(lengths.sum() - lengths[data.trusted].sum()),
        sample=sum(int(sample.sum()) for sample in samples),
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
