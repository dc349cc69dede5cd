"""Prompt permutation: the statistic, its null and the local FDR by hand, and what must hold for any losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.errors import NonFiniteError
from tokenclean.lab.prompt_mismatch import find_mismatches, group_statistics, local_fdr, p_values_of, storey_share
from tokenclean.ragged import Ragged

NAN = math.nan


def test_the_statistic_and_its_null_by_hand():
    own = np.array([1.0, 2.0, 4.0])  # two tokens of group 0, one of group 1
    foreign = np.array([[2.0, 9.0, 4.0], [3.0, 1.0, 2.0], [1.0, 2.0, 6.0]])
    statistics, null = group_statistics(own, foreign, np.array([0, 0, 1]))
    # Group 0: gaps 1 2 0 and min(7, 3) −1 0; group 1: 0 −2 2.
    np.testing.assert_allclose(statistics, [((1 + 2 + 0) / 3 + (3 - 1 + 0) / 3) / 2, 0])
    # In the place of the own prompt: the first (gaps 1 −1, −3 −3 | −2 2), the second (−1 −2, 3 1 | 2 3, 4 clipped),
    # the third (1 2, 3 −1 | −2 −3, −4 clipped).
    expected = [[(0 - 3) / 2, 0], [(-1.5 + 2) / 2, (2 + 3) / 2], [(1.5 + 1) / 2, (-2 - 3) / 2]]
    np.testing.assert_allclose(null.reshape(3, 2), expected)


def test_p_values_and_storey_by_hand():
    null = np.array([0.0, 1.0, 2.0, 2.0])
    assert p_values_of(np.array([-1.0, 0.0, 1.5, 2.0, 3.0]), null).tolist() == [1, 1, 3 / 5, 3 / 5, 1 / 5]
    assert storey_share(np.array([0.1, 0.2, 0.3, 0.5, 0.9])) == 2 * 1 / 5
    assert storey_share(np.array([0.6, 0.9])) == 1.0
    assert storey_share(np.empty(0)) == 0.0


def test_local_fdr_by_hand():
    # Of four p-values two at 0.1, one at 0.4, one at 0.9: the distribution function has slopes 2/4 / 0.1 = 5,
    # 1/4 / 0.3 = 5/6, 1/4 / 0.5 = 1/2 and 0 behind it, falling already, so they are the density.
    fdr = local_fdr(np.array([0.9, 0.1, 0.4, 0.1]), 0.4)
    np.testing.assert_allclose(fdr, [0.4 / 0.5, 0.4 / 5, 0.4 * 6 / 5, 0.4 / 5])
    # One at 0.5 and three at 0.6: slopes 1/2 and 15/2 rise, so both have that of the common chord, 1 / 0.6.
    np.testing.assert_allclose(local_fdr(np.array([0.5, 0.6, 0.6, 0.6]), 1.0), [0.6] * 4)


def rows(*values: list[float]) -> Ragged:
    return Ragged.from_rows(values, np.float32)


def test_rows_by_hand():
    """Two of four rows gain 2 nats from their own prompt; foreign prompts are all alike, so the null is 0."""
    losses = rows([NAN, 1, 1], [NAN, 3], [NAN, 2, 2], [NAN, NAN])
    other = rows([NAN, 3, 3], [NAN, 3], [NAN, 4, 4], [NAN, NAN])
    labels = losses.map_values(np.isfinite)
    row = labels.with_values(labels.row_of_value())
    found = find_mismatches(losses, [other] * 3, labels, row)
    # p = 1/10 for the first and third row (null: 9 zeros), 1 for the second: share 2·1/3. Density: 2/3 / 0.1 up to
    # 0.1, then 1/3 / 0.9.
    assert found.judged == 3
    assert found.share == pytest.approx(2 / 3)
    expected = [0, 0.1, 0.1, 0, 1, 0, 0.1, 0.1, 0, 0]
    np.testing.assert_allclose(found.noise.values, expected)


def test_groups_without_foreign_prompts_are_not_judged():
    losses, labels = rows([NAN, 1], [NAN, 1]), Ragged.from_rows([[False, True]] * 2, np.bool_)
    foreign = rows([NAN, NAN], [NAN, 1])
    row = labels.with_values(labels.row_of_value())
    found = find_mismatches(losses, [foreign, foreign], labels, row)
    assert (found.judged, found.noise.values.tolist()) == (1, [0, 0, 0, 1])
    nobody = find_mismatches(losses, [foreign.take([0, 0])] * 2, labels, row)
    assert (nobody.judged, nobody.share, nobody.noise.values.tolist()) == (0, 0.0, [0] * 4)
    outside = find_mismatches(losses, [losses] * 2, labels, row.map_values(lambda group: group - 1))
    assert (outside.judged, outside.noise.values[1]) == (1, 0)


def test_faults():
    losses, labels = rows([NAN, 1]), Ragged.from_rows([[False, True]], np.bool_)
    row = labels.with_values(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="at least two foreign prompts, got 1"):
        find_mismatches(losses, [losses], labels, row)
    with pytest.raises(NonFiniteError, match="row 0, position 1"):
        find_mismatches(rows([1, NAN]), [losses, losses], labels, row)


def simulated(seed: int, count: int, mismatched: int, gain: float = 1.5) -> tuple[Ragged, list[Ragged], Ragged, Ragged]:
    """Rows of 10 to 30 tokens whose own prompt gains ``gain`` nats a token, but for the first ``mismatched``."""
    random = np.random.default_rng(seed)
    lengths = random.integers(10, 30, size=count)
    labels = Ragged.from_rows([np.ones(n, bool) for n in lengths], np.bool_)
    row = labels.with_values(labels.row_of_value())
    shape = len(labels.values)
    token = random.exponential(2, size=shape)

    def under_a_prompt(gains: np.ndarray) -> Ragged:
        of_row = random.normal(0, 0.3, size=count)[row.values]
        values = token + of_row - gains + random.normal(0, 0.5, size=shape)
        return labels.with_values(values.astype(np.float32))

    own = under_a_prompt(np.where(row.values < mismatched, 0.0, gain))
    return own, [under_a_prompt(np.zeros(shape)) for _ in range(4)], labels, row


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 200))
def test_of_clean_rows_next_to_none_is_mismatched(seed, count):
    own, foreign, labels, row = simulated(seed, count, 0)
    found = find_mismatches(own, foreign, labels, row)
    assert found.share <= 0.02
    assert len(np.unique(row.values[found.noise.values > 0.5])) <= 1  # in one simulation of 1,500 a row has it


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.3, 0.6]))
def test_the_share_of_mismatched_rows_is_found(seed, share):
    count = 800
    mismatched = int(share * count)
    own, foreign, labels, row = simulated(seed, count, mismatched)
    found = find_mismatches(own, foreign, labels, row)
    # Half of the uniform p-values lie above λ, a binomial count: √(share / count) is the estimate's standard deviation.
    assert found.share == pytest.approx(share, abs=5 * math.sqrt(share / count))
    is_mismatched = row.values < mismatched
    assert found.noise.values[is_mismatched].mean() > found.noise.values[~is_mismatched].mean() + 0.3
    assert found.noise.values[~is_mismatched].mean() < 0.1


losses_of_rows = st.lists(
    st.lists(st.tuples(*[st.floats(0, 20, width=32)] * 4), min_size=1, max_size=5), min_size=1, max_size=12
)


@settings(deadline=None)
@given(losses_of_rows, st.randoms(use_true_random=False))
def test_probabilities_that_do_not_depend_on_the_order_of_rows(given_rows, random):
    def found(of_rows: list) -> list[list[float]]:
        own, *foreign = (rows(*[[token[place] for token in row] for row in of_rows]) for place in range(4))
        labels = own.map_values(lambda values: np.ones(len(values), bool))
        return [row.tolist() for row in find_mismatches(own, foreign, labels, row_numbers(labels)).noise]

    def row_numbers(labels: Ragged) -> Ragged:
        return labels.with_values(labels.row_of_value())

    noise = found(given_rows)
    assert all(0 <= value <= 1 for row in noise for value in row)
    order = list(range(len(given_rows)))
    random.shuffle(order)
    for place, row in zip(order, found([given_rows[place] for place in order]), strict=True):
        assert row == pytest.approx(noise[place], abs=1e-9)


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=40), st.floats(0, 1))
def test_the_local_fdr_rises_with_p_and_has_the_share_as_its_mean(p_values, share):
    values = np.array(p_values)
    fdr = local_fdr(values, share)
    assert (np.diff(fdr[np.argsort(values)]) >= -1e-12).all()
    assert fdr.min() >= 0
    assert fdr.max() <= 1
    assert fdr.mean() <= share + 1e-9
