"""Comparisons against closed forms, and what must not change them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from tokenclean.evaluation.comparison import compare, holm
from tokenclean.evaluation.intervals import TaskValues, critical, limits, resampled_deviations, spread_of
from tokenclean.evaluation.paired_scores import ItemScores


def scores_of(**strategies: np.ndarray) -> ItemScores:
    """One task of arrays (seeds, items)."""
    return ItemScores({name: {s: {"task": row} for s, row in enumerate(rows)} for name, rows in strategies.items()})


def binary(rng: np.random.Generator, *shape: int, chance: float = 0.5) -> np.ndarray:
    return (rng.random(shape) < chance).astype(float)


@st.composite
def runs(draw, strategies=("full", "rho", "random")):
    """Scores of two tasks under one to three seeds."""
    seeds = draw(st.integers(1, 3))
    sizes = {task: draw(st.integers(2, 12)) for task in ("mmlu", "boolq")}
    item = st.sampled_from([0.0, 0.25, 1.0])
    return {
        name: {
            seed: {task: draw(arrays(np.float64, size, elements=item)) for task, size in sizes.items()}
            for seed in range(seeds)
        }
        for name in strategies
    }


def test_without_noise_of_seeds_it_is_the_paired_normal_interval():
    rng = np.random.default_rng(0)
    full, rho = binary(rng, 400), binary(rng, 400, chance=0.6)
    difference = rho - full
    error = difference.std(ddof=1) / 20
    for seeds in (1, 3):  # the same scores under each seed: nothing is known better, nothing worse
        scores = scores_of(full=np.tile(full, (seeds, 1)), rho=np.tile(rho, (seeds, 1)))
        found = compare(scores, "full", draws=40_000)
        average = found.differences["rho"].average
        assert average.value == pytest.approx(difference.mean())
        assert average.low == pytest.approx(difference.mean() - stats.t.ppf(0.975, 399) * error, abs=0.03 * error)
        assert average.high == pytest.approx(difference.mean() + stats.t.ppf(0.975, 399) * error, abs=0.03 * error)
        assert found.scores["full"]["task"].error == pytest.approx(full.std(ddof=1) / 20)
        assert average.items_differing == np.count_nonzero(difference)


def test_where_only_seeds_differ_it_is_the_interval_of_students_t():
    moves = np.array([0.1, 0.3, 0.2, 0.6])
    found = compare(scores_of(full=np.zeros((4, 50)), rho=np.repeat(moves[:, None], 50, axis=1)), "full", draws=100)
    average = found.differences["rho"].average
    half = stats.t.ppf(0.975, 3) * moves.std(ddof=1) / 2
    assert (average.low, average.high) == pytest.approx((0.3 - half, 0.3 + half))
    assert found.averages["rho"].error == pytest.approx(moves.std(ddof=1) / 2)


def test_variance_terms_are_those_of_the_two_way_table():
    rng = np.random.default_rng(1)
    values = rng.random((3, 8, 1))
    spread = spread_of([TaskValues(values, [np.arange(8)])])
    table = values[..., 0]
    residual = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    assert spread.items[0] == pytest.approx(table.mean(axis=0).var(ddof=1) / 8)
    assert spread.seeds[0] == pytest.approx(table.mean(axis=1).var(ddof=1) / 3)
    assert spread.interaction[0] == pytest.approx((residual**2).sum() / (2 * 7) / 24)
    assert spread.item_degrees[0] == pytest.approx(7)


def test_variance_is_estimated_without_bias():
    """20,000 two-way tables: the three terms, each once, are the variance of the mean."""
    rng = np.random.default_rng(2)
    seeds, items, columns = 3, 10, 20_000
    of_seeds, of_items = rng.normal(0, 0.5, (seeds, 1, columns)), rng.normal(0, 1, (1, items, columns))
    values = of_seeds + of_items + rng.normal(0, 2, (seeds, items, columns))
    spread = spread_of([TaskValues(values, [np.arange(items)])])
    expected = 0.25 / seeds + 1 / items + 4 / (seeds * items)
    assert (spread.items - spread.interaction + spread.seeds).mean() == pytest.approx(expected, rel=0.02)
    assert spread.mean.var() == pytest.approx(expected, rel=0.03)


def test_average_is_the_mean_over_tasks_whatever_their_sizes():
    rng = np.random.default_rng(3)
    tasks = {"mmlu": binary(rng, 300), "boolq": binary(rng, 30)}
    found = compare(ItemScores({"full": {0: tasks}}), "full")
    assert found.differences == {}
    assert found.averages["full"].value == pytest.approx((tasks["mmlu"].mean() + tasks["boolq"].mean()) / 2)
    errors = [found.scores["full"][task].error for task in tasks]
    assert found.averages["full"].error == pytest.approx(math.hypot(*errors) / 2)


def test_groups_keep_the_mean_over_items_and_are_resampled_apart():
    """What differs between subjects only is no chance."""
    subjects = np.repeat([0, 1, 2], [10, 30, 60])
    rho = np.repeat([0.2, 0.5, 0.8], [10, 30, 60])
    scores = {"full": {0: {"mmlu": np.zeros(100)}}, "rho": {0: {"mmlu": rho}}}
    grouped = compare(ItemScores(scores, {"mmlu": subjects}), "full").differences["rho"].average
    assert (grouped.low, grouped.value, grouped.high) == pytest.approx((rho.mean(),) * 3)
    assert compare(ItemScores(scores), "full").differences["rho"].average.half_width > 0.03


def test_bootstrap_of_small_groups_has_the_unbiased_variance():
    rng = np.random.default_rng(4)
    values = rng.random((1, 40, 1))
    task = TaskValues(values, list(np.arange(40).reshape(20, 2)))
    deviations = resampled_deviations(task, 40_000, rng)
    assert deviations.var() == pytest.approx(spread_of([task]).items[0], rel=0.03)


def test_constant_difference_has_no_width():
    average = (
        compare(scores_of(full=np.full((2, 20), 0.25), rho=np.full((2, 20), 0.5)), "full").differences["rho"].average
    )
    assert (average.low, average.value, average.high) == (0.25, 0.25, 0.25)
    assert average.is_real
    assert average.p == pytest.approx(0.0002)


def test_equal_scores_are_no_difference():
    rows = binary(np.random.default_rng(5), 2, 30)
    average = compare(scores_of(full=rows, rho=rows), "full").differences["rho"].average
    assert (average.low, average.value, average.high, average.p, average.items_differing) == (0, 0, 0, 1, 0)
    assert not average.is_real


@pytest.mark.parametrize(("differing", "is_real"), [(4, False), (5, False), (6, True)])
def test_few_differing_items_are_no_evidence(differing, is_real):
    rho = np.zeros((1, 50))
    rho[0, :differing] = 1
    average = compare(scores_of(full=np.zeros((1, 50)), rho=rho), "full").differences["rho"].average
    assert average.low > 0
    assert average.p == pytest.approx(2.0 ** (1 - differing))
    assert average.is_real == is_real


def test_seeds_that_agree_by_chance_make_nothing_real():
    """Two seeds of equal means on different items: the spread between them says less than the items alone do."""
    rng = np.random.default_rng(6)
    solved = np.repeat([1.0, 0.0], [108, 92])
    rho = np.stack([solved, rng.permutation(solved)])
    found = compare(scores_of(full=np.full((2, 200), 0.5), rho=rho), "full").differences["rho"]
    assert found.spread.seeds[0] == pytest.approx(0)
    assert found.spread.interaction[0] > found.spread.items[0] / 2
    assert found.average.low > 0
    assert not found.average.is_real
    assert found.average.p > 0.05


def test_p_is_dual_to_the_interval():
    rng = np.random.default_rng(7)
    for chance in (0.5, 0.55, 0.6, 0.65, 0.7):
        scores = scores_of(full=binary(rng, 1, 150), rho=binary(rng, 1, 150, chance=chance))
        average = compare(scores, "full", draws=2000).differences["rho"].average
        assert (average.p < 0.05) == (average.low > 0 or average.high < 0)


def test_control_and_draws_are_checked():
    scores = scores_of(full=np.zeros((1, 5)))
    with pytest.raises(ValueError, match="no scores of the control 'none'; strategies: 'full'"):
        compare(scores, "none")
    with pytest.raises(ValueError, match="at least 100 draws, got 99"):
        compare(scores, "full", draws=99)


@settings(max_examples=30, deadline=None)
@given(runs())
def test_swapped_strategies_flip_signs(scores):
    one = compare(ItemScores(scores), "full", draws=200).differences["rho"]
    other = compare(ItemScores(scores), "rho", draws=200).differences["full"]
    for here, there in [(one.average, other.average), *((one.tasks[t], other.tasks[t]) for t in one.tasks)]:
        assert here.value == pytest.approx(-there.value, abs=1e-12)
        assert (here.low, here.high) == pytest.approx((-there.high, -there.low), abs=1e-9)
        assert here.p == pytest.approx(there.p, rel=5e-3)


@settings(max_examples=30, deadline=None)
@given(runs(), st.floats(0.1, 0.5))
def test_adding_a_constant_shifts_and_scaling_scales(scores, constant):
    def moved(value: np.ndarray) -> np.ndarray:
        return value / 2 + constant

    once = compare(ItemScores(scores), "full", draws=200)
    scores["rho"] = {seed: {t: moved(v) for t, v in tasks.items()} for seed, tasks in scores["rho"].items()}
    scores["full"] = {seed: {t: v / 2 for t, v in tasks.items()} for seed, tasks in scores["full"].items()}
    then = compare(ItemScores(scores), "full", draws=200)
    for task in once.tasks:
        before, after = once.differences["rho"].tasks[task], then.differences["rho"].tasks[task]
        expected = [end / 2 + constant for end in (before.low, before.value, before.high)]
        assert (after.low, after.value, after.high) == pytest.approx(expected, abs=1e-9)
        assert then.scores["rho"][task].error == pytest.approx(once.scores["rho"][task].error / 2, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(runs(), st.permutations([0, 1, 2]))
def test_order_of_seeds_and_further_strategies_change_nothing(scores, order):
    both = {name: scores[name] for name in ("full", "rho")}
    once = compare(ItemScores(both), "full", draws=200).differences["rho"].average
    shuffled = {name: {s: scores[name][s] for s in order if s in scores[name]} for name in ("random", "full", "rho")}
    then = compare(ItemScores(shuffled), "full", draws=200).differences["rho"].average
    assert (then.low, then.value, then.high) == pytest.approx((once.low, once.value, once.high), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(runs())
def test_intervals_hold_their_value_and_grow_with_the_level(scores):
    made = ItemScores(scores)
    values = made.of_task("mmlu")
    task = TaskValues(values[..., 1:] - values[..., :1], made.strata("mmlu"))
    spread, deviations = spread_of([task]), resampled_deviations(task, 300, np.random.default_rng(0))
    ends = [limits(spread, deviations, level) for level in (0.5, 0.9, 0.95, 0.99)]
    for (low, high), (lower, higher) in pairwise(ends):
        assert (lower <= low + 1e-12).all()
        assert (higher >= high - 1e-12).all()
    assert (ends[0][0] <= spread.mean + 1e-12).all()
    assert (ends[0][1] >= spread.mean - 1e-12).all()


def test_critical_runs_from_the_items_t_to_the_seeds():
    part = np.array([1.0, 0.0, 0.0])
    seeds = np.array([0.0, 1.0, 0.0])
    found = critical(part, seeds, np.full(3, math.inf), 3)
    assert found == pytest.approx([stats.t.ppf(0.975, math.inf), stats.t.ppf(0.975, 2), stats.t.ppf(0.975, math.inf)])


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_only_raises_p_and_keeps_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    ranked = sorted(range(len(p_values)), key=lambda place: p_values[place])
    assert [adjusted[place] for place in ranked] == sorted(adjusted)
