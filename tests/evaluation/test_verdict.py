"""Verdicts: what is called real, and how much more would settle the rest."""

from __future__ import annotations

import numpy as np
import pytest

from tokenclean.evaluation.comparison import AgainstControl, Comparison, Difference, Score, compare
from tokenclean.evaluation.intervals import Spread
from tokenclean.evaluation.paired_scores import ItemScores
from tokenclean.evaluation.significance import half_width, needed, points, verdict


def against(value: float, half: float, *, items=4e-4, interaction=0.0, of_seeds=0.0, seeds=1, p=0.2, holm_p=0.4):
    """A strategy on two tasks of 100 items each."""
    spread = Spread(*map(np.atleast_1d, (value, items, interaction, of_seeds, 198.0)), seed_count=seeds)
    average = Difference(value, value - half, value + half, p, items=200, items_differing=40)
    return AgainstControl({}, average, holm_p, spread)


def comparison_of(seeds: int = 1, **strategies: AgainstControl) -> Comparison:
    names = ("full_tokens", *strategies)
    return Comparison(
        control="full_tokens",
        strategies=names,
        seeds=tuple(range(seeds)),
        items={"mmlu": 100, "boolq": 100},
        scores={},
        averages={name: Score(0.5, 0.01) for name in names},
        differences=strategies,
    )


def test_half_width_of_one_seed_falls_with_the_root_of_items():
    spread = against(0.01, 0.04).spread
    assert half_width(spread) == pytest.approx(1.972 * 0.02, rel=1e-3)
    assert half_width(spread, times_items=4) == pytest.approx(half_width(spread) / 2, rel=0.01)


def test_more_items_leave_what_the_seeds_leave():
    spread = against(0.01, 0.04, items=5e-4, interaction=1e-4, of_seeds=2e-4, seeds=3).spread
    assert half_width(spread, times_items=1e9) == pytest.approx(4.302653 * 1e-2)  # 2e-4 - 1e-4 of the seeds
    assert half_width(spread, seeds=10_000) == pytest.approx(1.972 * 0.02, rel=1e-2)  # 5e-4 - 1e-4 of the items


def test_needed_items_are_the_least_that_do():
    one = against(0.02, 0.04)
    times = needed(one).times_items
    assert times is not None
    assert half_width(one.spread, times_items=times) < 0.02 <= half_width(one.spread, times_items=times - 0.15)
    assert needed(one).seeds is None


def test_needed_seeds_are_the_least_that_do():
    one = against(0.02, 0.04, items=5e-5, of_seeds=1e-4, seeds=2)
    seeds = needed(one).seeds
    assert seeds is not None
    assert half_width(one.spread, seeds=seeds) < 0.02 <= half_width(one.spread, seeds=seeds - 1)
    assert needed(one).times_items is None  # 12.7 · 0.01 stays


def test_projection_foretells_a_larger_benchmark():
    """Half widths found with three times the items and twice the seeds, against those foretold."""
    rng = np.random.default_rng(0)

    def scores_of(seeds: int, items: int) -> ItemScores:
        level = rng.normal(size=items)
        made = {}
        for name in ("full_tokens", "rho"):
            on_items = level + rng.normal(0, 0.4, items)
            runs = [on_items + rng.normal(0, 0.05) + rng.normal(0, 0.5, items) > 0 for _ in range(seeds)]
            made[name] = {seed: {"mmlu": run} for seed, run in enumerate(runs)}
        return ItemScores(made)

    def spread_of_one(seeds: int, items: int) -> Spread:
        return compare(scores_of(seeds, items), "full_tokens", draws=100).differences["rho"].spread

    small = [spread_of_one(8, 400) for _ in range(40)]
    foretold = np.mean([half_width(spread, times_items=3, seeds=16) for spread in small])
    found = np.mean([half_width(spread_of_one(16, 1200)) for _ in range(40)])
    assert foretold == pytest.approx(found, rel=0.06)


def test_sentences_of_one_seed():
    reported = verdict(comparison_of(rho=against(0.02, 0.039)), {"full_tokens": "Full tokens", "rho": "RHO"})
    assert reported.strategies["rho"] == (
        "RHO scores 2.00 points above Full tokens on average (95 % interval -1.90 to +5.90): chance can explain this; "
        "if the difference seen is the true one, settling it takes at least 3.9 times the items of every task (780 in "
        "all instead of 200)."
    )
    assert reported.summary == (
        "Against Full tokens, in points on the average of 2 tasks: chance can explain RHO (+2.00); only one seed was "
        "run, so this speaks of its models on further items, not of other seeds."
    )


def test_sentences_of_three_seeds():
    reported = verdict(
        comparison_of(
            3,
            self_evolving=against(0.05, 0.01, of_seeds=1e-5, seeds=3, p=0.001, holm_p=0.003),
            fixed_model=against(-0.03, 0.02, of_seeds=1e-5, seeds=3, p=0.03, holm_p=0.06),
            rho=against(0.02, 0.1, items=5e-5, of_seeds=1e-4, seeds=3),
            random=against(0.001, 0.1, items=5e-5, of_seeds=1e-4, seeds=3),
            none=against(0.0, 0.1, seeds=3),
        )
    )
    assert reported.summary == (
        "Against full_tokens, in points on the average of 2 tasks over 3 seeds: the difference is real for "
        "self_evolving (+5.00), after Holm's correction; compared alone fixed_model (-3.00) would be real, but not "
        "after Holm's correction; chance can explain rho (+2.00), random (+0.10) and none (0.00)."
    )
    assert reported.strategies["self_evolving"].endswith(
        "(95 % interval +4.00 to +6.00): a real difference, also after Holm's correction for 5 comparisons (p = 0.003)."
    )
    assert "3.00 points below full_tokens" in reported.strategies["fixed_model"]
    assert reported.strategies["fixed_model"].endswith(
        "a real difference if it were the only one compared (p = 0.030), but not after Holm's correction for 5 "
        "comparisons (p = 0.060)."
    )
    assert reported.strategies["rho"].endswith(
        "chance can explain this; if the difference seen is the true one, settling it takes at least 9 seeds instead "
        "of 3, and more items alone would not."
    )
    assert reported.strategies["random"].endswith(
        "chance can explain this; neither more items nor more seeds alone would settle it if the difference seen is "
        "the true one."
    )
    assert "scores level with full_tokens" in reported.strategies["none"]
    assert reported.strategies["none"].endswith("no number of items or seeds would settle so small a difference.")


def test_an_interval_that_excludes_0_without_being_real_says_why():
    reported = verdict(comparison_of(2, rho=against(0.02, 0.01, p=0.2, interaction=3e-4, of_seeds=1e-6, seeds=2)))
    expected = "its interval excludes 0, but only because its seeds agree by chance or few items differ"
    assert expected in reported.strategies["rho"]


def test_one_comparison_needs_no_correction():
    reported = verdict(comparison_of(rho=against(0.05, 0.01, p=0.001, holm_p=0.001)))
    assert "Holm" not in reported.summary + reported.strategies["rho"]
    assert "(p = 0.001)" in reported.strategies["rho"]


def test_nothing_to_judge():
    assert verdict(comparison_of()).summary == "Only full_tokens was evaluated, so there is no difference to judge."


@pytest.mark.parametrize(("score", "text"), [(0.018, "+1.80"), (-0.004, "-0.40"), (-0.00001, "0.00"), (0, "0.00")])
def test_points(score, text):
    assert points(score) == text
