"""Which differences are real, and what would settle the others, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.evaluation.comparison import FEWEST_DIFFERING, AgainstControl, Comparison
from tokenclean.evaluation.intervals import Spread, critical, excludes_zero, least_above

MOST_TIMES_ITEMS = 1000.0
MOST_SEEDS = 100


@dataclass(frozen=True)
class Verdict:
    """``summary``: one sentence about all; ``strategies``: one about each except the control, by name."""

    summary: str
    strategies: Mapping[str, str]


@dataclass(frozen=True)
class Needed:
    """How many more items or seeds alone would narrow the interval of a difference of averages below that difference.

    ``times_items``: factor for every task's items, with the same seeds; None when no factor up to ``MOST_TIMES_ITEMS``
    suffices. ``seeds``: their total number, on the same items; None when no number up to ``MOST_SEEDS`` suffices, or
    the spread between seeds is unknown.

    These are the smallest numbers that could settle it. If the true difference is the observed one, a repeat of that
    size still has only about even odds, since its own difference falls to either side.
    """

    times_items: float | None
    seeds: int | None


def needed(against: AgainstControl) -> Needed:
    """What the difference of averages needs; ``half_width`` says what is assumed about more items and seeds."""
    spread, size, differing = against.spread, abs(against.average.value), against.average.items_differing
    if not differing:
        return Needed(None, None)
    times = _times_items(spread, size)
    if times is not None:
        times = math.ceil(10 * max(times, 1.05, FEWEST_DIFFERING / differing)) / 10
    seeds = None
    if spread.seed_count > 1 and differing >= FEWEST_DIFFERING:
        counts = range(spread.seed_count + 1, MOST_SEEDS + 1)
        seeds = next((count for count in counts if half_width(spread, seeds=count) < size), None)
    return Needed(times, seeds)


def _times_items(spread: Spread, size: float) -> float | None:
    """The least factor, to 1 %, whose half-width is below ``size``.

    The width need not fall throughout: with more items the seeds' share of it grows, and with it the quantile.
    """

    def suffices(factor: float) -> bool:
        return half_width(spread, times_items=factor) < size

    below = 1.0
    for factor in np.geomspace(1, MOST_TIMES_ITEMS, 61).tolist():
        if suffices(factor):
            return least_above(below, factor, suffices, 1.01)
        below = factor
    return None


def half_width(spread: Spread, *, times_items: float = 1.0, seeds: int | None = None) -> float:
    """Half the 95 % interval's expected width with ``times_items`` as many items in each task and ``seeds`` in all.

    The item part falls as 1/items, the seeds' as 1/seeds, except for the interaction within it, which falls with both;
    degrees of freedom follow. Never below the width for the models at hand, whose interval must exclude 0 too.
    ``spread`` has one column.
    """
    run = spread.seed_count
    count = run if seeds is None else seeds
    per_seed = run / count / times_items
    interaction = np.minimum(spread.interaction, spread.seeds)
    of_seeds = (spread.seeds - interaction) * run / count + interaction * per_seed
    item_part = spread.item_part / times_items
    degrees = spread.item_degrees * times_items
    joint = critical(item_part, of_seeds, degrees, count) * np.sqrt(item_part + of_seeds)
    items = np.maximum((spread.items - spread.interaction) / times_items + spread.interaction * per_seed, 0.0)
    of_models = critical(items, np.zeros_like(items), degrees, 1) * np.sqrt(items)
    return float(np.maximum(joint, of_models)[0])


def verdict(comparison: Comparison, names: Mapping[str, str] | None = None) -> Verdict:
    """``names``: what to call strategies, where not by their own names. Differences are in points, 100 × score."""
    called = {strategy: strategy for strategy in comparison.strategies} | dict(names or {})
    return Verdict(
        _summary(comparison, called),
        {s: _sentence(comparison, s, against, called) for s, against in comparison.differences.items()},
    )


def _summary(comparison: Comparison, called: Mapping[str, str]) -> str:
    control, count = called[comparison.control], len(comparison.differences)
    if not count:
        return f"Only {control} was evaluated, so there is no difference to judge."
    named = {s: f"{called[s]} ({points(a.average.value)})" for s, a in comparison.differences.items()}
    real = [named[s] for s, a in comparison.differences.items() if a.is_real_among_all]
    alone = [named[s] for s, a in comparison.differences.items() if a.average.is_real and not a.is_real_among_all]
    rest = [named[s] for s, a in comparison.differences.items() if not a.average.is_real]
    clauses = []
    if real:
        what = "differences are" if len(real) > 1 else "difference is"
        clauses.append(f"the {what} real for {_join(real)}" + (", after Holm's correction" if count > 1 else ""))
    if alone:
        clauses.append(f"compared alone {_join(alone)} would be real, but not after Holm's correction")
    if rest:
        clauses.append(f"chance can explain {_join(rest)}")
    tasks, seeds = len(comparison.tasks), len(comparison.seeds)
    over = f"{tasks} tasks" if tasks > 1 else "one task"
    if seeds > 1:
        over += f" over {seeds} seeds"
    else:
        clauses.append("only one seed was run, so this speaks of its models on further items, not of other seeds")
    return f"Against {control}, in points on the average of {over}: {'; '.join(clauses)}."


def _sentence(comparison: Comparison, strategy: str, against: AgainstControl, called: Mapping[str, str]) -> str:
    average, count = against.average, len(comparison.differences)
    size = f"{abs(100 * average.value):.2f}"
    side = "level with" if size == "0.00" else f"{size} points {'above' if average.value > 0 else 'below'}"
    seen = (
        f"{called[strategy]} scores {side} {called[comparison.control]} on average "
        f"(95 % interval {points(average.low)} to {points(average.high)})"
    )
    if against.is_real_among_all:
        among = f", also after Holm's correction for {count} comparisons" if count > 1 else ""
        judged = f"a real difference{among} (p {_p_text(against.holm_p)})"
    elif average.is_real:
        judged = (
            f"a real difference if it were the only one compared (p {_p_text(average.p)}), but not after Holm's "
            f"correction for {count} comparisons (p {_p_text(against.holm_p)})"
        )
    else:
        nearly = "its interval excludes 0, but only because its seeds agree by chance or few items differ; "
        is_near = excludes_zero(average.low, average.high)
        judged = f"chance can explain this; {nearly if is_near else ''}{_needed_text(comparison, against)}"
    return f"{seen}: {judged}."


def _needed_text(comparison: Comparison, against: AgainstControl) -> str:
    if abs(against.average.value) < 5e-5:
        return "no number of items or seeds would settle so small a difference"
    need, ways = needed(against), []
    if need.times_items is not None:
        items = sum(comparison.items.values())
        total = math.ceil(need.times_items * items)
        ways.append(f"{need.times_items:.1f} times the items of every task ({total:,} in all instead of {items:,})")
    if need.seeds is not None:
        ways.append(f"{need.seeds} seeds instead of {len(comparison.seeds)}")
    if ways:
        only = ""
        if len(ways) == 1 and len(comparison.seeds) > 1:
            only = ", and more seeds alone would not" if need.seeds is None else ", and more items alone would not"
        return f"if the difference seen is the true one, settling it takes at least {' or '.join(ways)}{only}"
    alone = "more items would not" if len(comparison.seeds) == 1 else "neither more items nor more seeds alone would"
    return f"{alone} settle it if the difference seen is the true one"


def points(score: float) -> str:
    """``+1.80``: a difference of scores in points, 100 × score; no sign on what rounds to 0."""
    text = f"{100 * score:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
