"""How much models prefer the clean version of an answer, over pairs of a clean and a noisy one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.evaluation.intervals import Interval
from tokenclean.evaluation.preference import Preference, Version, pair_margins, preference, preference_change
from tokenclean.lab.pairs import Pairs
from tokenclean.ragged import Ragged
from tokenclean.report.tables import Table
from tokenclean.tokens import TokenizedPool, tokenize_pool


@dataclass(frozen=True)
class ModelPreference:
    """``name``: of the model. ``change``: of its margin from that of the control, the model trained on full tokens
    unless another is named; None for the control and the base."""

    name: str
    preference: Preference
    change: Interval | None = None


@dataclass(frozen=True)
class PairTokens:
    """Pairs in tokens. ``whole``: which of the pairs these are, int64: those that are not cut."""

    clean: TokenizedPool
    noisy: TokenizedPool
    whole: np.ndarray


def tokenize_pairs(context: RunContext, pairs: Pairs) -> PairTokens:
    """Both versions in tokens. Pairs with a version that is cut are left out, since it differs where it is cut."""
    tokenizer, options = context.data.tokenizer, context.recipe.tokens.model_dump()
    clean, noisy = (tokenize_pool(pool, tokenizer, **options) for pool in (pairs.clean, pairs.noisy))
    whole = np.flatnonzero(~(clean.is_truncated | noisy.is_truncated))
    if cut := len(pairs.rows) - len(whole):
        context.note(f"preference: {cut:,} of {len(pairs.rows):,} pairs left out, cut at tokens.max_length")
    return PairTokens(clean.take(whole), noisy.take(whole), whole)


def margins_of(context: RunContext, model: Model, pairs: PairTokens, of_noisy: Ragged | None = None) -> np.ndarray:
    """The model's ``pair_margins``. ``of_noisy``: its losses of the noisy versions, where they are there already."""
    clean, noisy = pairs.clean, pairs.noisy
    if of_noisy is None:
        of_noisy = context.passes.losses(model, noisy, "noisy versions")
    of_clean = context.passes.losses(model, clean, "clean versions")
    return pair_margins(
        Version(clean.input_ids, clean.is_response, of_clean), Version(noisy.input_ids, noisy.is_response, of_noisy)
    )


def compare_preferences(margins: Mapping[str, np.ndarray], control: str = "full_tokens") -> list[ModelPreference]:
    """``margins``: of each model, over the same pairs. Empty where fewer than two pairs differ in tokens."""
    if any(np.count_nonzero(~np.isnan(of_model)) < 2 for of_model in margins.values()):
        return []
    baseline = margins.get(control)
    return [
        ModelPreference(
            name,
            preference(of_model),
            preference_change(of_model, baseline) if baseline is not None and name not in ("base", control) else None,
        )
        for name, of_model in margins.items()
    ]


def margins_of_models(context: RunContext, models: Mapping[str, Model]) -> dict[str, np.ndarray]:
    """``pair_margins`` of each model over the pairs of ``evaluation.pairs``; empty without that key, and where fewer
    than two pairs are whole."""
    pairs = None if context.data.pairs is None else tokenize_pairs(context, context.data.pairs)
    if pairs is None or len(pairs.whole) < 2:
        return {}
    return {name: margins_of(context, model, pairs) for name, model in models.items()}


def preference_table(preferences: Sequence[ModelPreference], control: str = "full tokens", seeds: int = 1) -> Table:
    """One row a model. ``seeds``: over how many the margins are means."""
    rows = tuple(
        (
            p.name,
            _interval(p.preference.margin),
            _interval(p.preference.wins),
            "–" if p.change is None else _interval(p.change, sign=True),
        )
        for p in preferences
    )
    pairs = preferences[0].preference
    over_seeds = f". Mean of {seeds} seeds, whose spread the intervals leave out" if seeds > 1 else ""
    note = (
        f"{pairs.margin.items:,} pairs of a clean and a noisy version ({pairs.equal:,} more are equal in tokens); log "
        "p(clean) − log p(noisy) in nats a differing token, above 0 where the model prefers clean answers; 95 % "
        f"intervals over pairs{over_seeds}"
    )
    columns = ("model", "log p(clean) − log p(noisy)", "pairs in which clean wins", f"minus {control}")
    return Table("Preference for clean answers", columns, rows, note)


def _interval(interval: Interval, *, sign: bool = False) -> str:
    mean = f"{interval.mean:+.3f}" if sign else f"{interval.mean:.3f}"
    return f"{mean} ({interval.low:.3f} to {interval.high:.3f})"
