"""The cost of a run that chooses: bounded for every shape of pool, and its rows drawn by source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.cleaning.trial_budget import BUDGET, RunSize, draw_rows, run_cost, trial_tokens
from tokenclean.pool.recipe_pool import LEAST_CHOOSING_ROWS, split_choosing


@st.composite
def sizes(draw: st.DrawFn) -> RunSize:
    training = draw(st.integers(100, 10**7))
    part = st.integers(0, training)
    warmup, ranked = draw(part), draw(part)
    further = (draw(part), warmup, draw(st.integers(0, warmup)), ranked, draw(st.integers(0, min(ranked, 2048))))
    return RunSize(training, draw(st.integers(1, 4)), draw(part), draw(part), *(further if ranked else ()))


@given(sizes(), st.integers(2, 4))
def test_the_whole_run_stays_within_the_budget_wherever_trials_are_done(size, trials):
    full = size.training * size.epochs
    most = trial_tokens(size, trials)
    if most:
        assert run_cost(size, trials).total(most) <= BUDGET * full * (1 + 1e-12)
        assert run_cost(size, trials).total(most + 1) > BUDGET * full * (1 - 1e-12)
    else:
        assert run_cost(size, trials).total(1) > BUDGET * full * (1 - 1e-12)


def test_the_cost_by_hand():
    """Full tokens 900 in 2 epochs; noise pass 300; 3 passes over 90 rows' tokens: 90. A trial token: 2 · 3."""
    cost = run_cost(RunSize(900, 2, 90, 900), 3)
    assert (cost.fixed, cost.per_token) == pytest.approx((1800 + 300 + 90, 6))
    assert trial_tokens(RunSize(900, 2, 90, 900), 3) == (4500 - 2190) // 6
    # a reference: two warm-ups of 30 and 15 in 2 epochs, 870 rows' tokens under two models, its check
    with_reference = run_cost(RunSize(900, 2, 90, 900, 60, 30, 15, 870, 12), 3)
    assert with_reference.fixed == pytest.approx(cost.fixed + 90 + (2 * 870 + 60 + 2 * 12) / 3)
    assert with_reference.per_token == pytest.approx(6 + 2 / 3)


POOLS = st.lists(st.tuples(st.integers(1, 500), st.sampled_from("abc")), min_size=1, max_size=60)


@given(POOLS, st.integers(0, 20_000), st.integers(0, 5), st.data())
def test_drawn_rows_fit_and_are_of_the_rows_given(pool, most, seed, data):
    lengths, sources = np.array([length for length, _ in pool]), [source for _, source in pool]
    rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(pool), max_size=len(pool))))
    drawn = draw_rows(rows, lengths, sources, most, seed)
    assert lengths[drawn].sum() <= most
    assert np.array_equal(drawn, np.unique(drawn))
    assert np.isin(drawn, rows).all()
    assert len(drawn) == len(rows) or lengths[rows].sum() > most


def test_rows_are_drawn_by_source():
    lengths, sources = np.full(100, 10), ["a"] * 60 + ["b"] * 40
    drawn = draw_rows(np.arange(100), lengths, sources, 509, seed=1)
    assert (drawn < 60).sum() == 30
    assert (drawn >= 60).sum() == 20
    assert not np.array_equal(drawn, draw_rows(np.arange(100), lengths, sources, 509, seed=2))


@given(st.lists(st.sampled_from("abc"), max_size=150), st.integers(0, 3), st.data())
def test_the_rows_to_choose_by_are_half_of_every_source(sources, seed, data):
    rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(sources), max_size=len(sources))))
    choosing, rest = split_choosing(rows, sources, seed)
    assert not set(choosing) & set(rest)
    assert sorted([*choosing, *rest]) == rows.tolist()
    if len(rows) < 2 * LEAST_CHOOSING_ROWS:
        assert not len(choosing)
        return
    assert len(choosing) == len(rows) // 2
    for source in "abc":
        of_source, chosen = ([sources[row] for row in part].count(source) for part in (rows, choosing))
        assert abs(chosen - of_source * len(choosing) / len(rows)) < 1
