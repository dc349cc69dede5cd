from __future__ import annotations

import numpy as np
import pytest
from planted import CLASSES, MATRIX, SHARES, implied_consensus, plant

from tokenclean.ds2.label_correction import neighbour_votes
from tokenclean.ds2.neighbours import Neighbours, draw_samples, nearest_neighbours, needed_neighbours
from tokenclean.ds2.transition_matrix import Transition, count_consensus, estimate_transition, second_opinion


def test_counts_are_those_of_a_loop():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40)
    neighbours = nearest_neighbours(generator.normal(size=(40, 4)), 39)
    found = count_consensus(labels, neighbours, 3, rounds=4, seed=1)
    expected = np.zeros((3, 3, 3))
    for is_sampled in draw_samples(40, 4, 1):
        for point in np.flatnonzero(is_sampled):
            first, second = [n for n in neighbours.indices[point] if is_sampled[n]][:2]
            expected[labels[point], labels[first], labels[second]] += 1 / is_sampled.sum() / 4
    np.testing.assert_allclose(found, expected)
    assert found.sum() == pytest.approx(1)


def test_a_matrix_is_recovered_from_its_own_consensus():
    found = estimate_transition(implied_consensus(MATRIX, SHARES))
    np.testing.assert_allclose(found.matrix, MATRIX, atol=0.01)
    np.testing.assert_allclose(found.prior, SHARES, atol=0.01)
    assert found.residual < 0.01
    np.testing.assert_allclose(found.matrix.sum(axis=1), 1)


def test_rates_by_bayes():
    transition = Transition(MATRIX, SHARES, 0.0)
    joint = SHARES[:, None] * MATRIX
    np.testing.assert_allclose(transition.noisy_prior, joint.sum(axis=0))
    np.testing.assert_allclose(transition.class_noise_rates, 1 - np.diag(joint) / joint.sum(axis=0))
    assert transition.noise_rate == pytest.approx(1 - np.trace(joint))
    assert transition.noise_rate == pytest.approx(0.3, abs=0.01)


def test_a_label_that_never_comes_is_wrong_throughout():
    assert Transition(np.array([[1.0, 0], [1.0, 0]]), np.array([0.5, 0.5]), 0).class_noise_rates[1] == 1


def test_a_sample_without_neighbours_is_refused():
    alone = Neighbours(np.zeros((4, 1), dtype=np.int64), np.zeros((4, 1), dtype=np.float32))
    with pytest.raises(ValueError, match="search for more"):
        count_consensus(np.zeros(4, dtype=np.int64), alone, 2)


@pytest.mark.slow
def test_a_planted_matrix_is_recovered_where_neighbours_share_their_class_and_not_where_they_do_not():
    """To 0.05 an entry in overlapping clusters; the error grows with the overlap."""
    errors = []
    for spread in (0.5, 1.0, 2.5):
        vectors, true, noisy = plant(12_000, spread)
        neighbours = nearest_neighbours(vectors, needed_neighbours(len(vectors), 2))
        clusterability = float(np.mean(true[neighbours.indices[:, :2]] == true[:, None]))
        found = estimate_transition(count_consensus(noisy, neighbours, CLASSES))
        errors.append((clusterability, float(np.abs(found.matrix - MATRIX).max())))
    (_, clean), (_, fair), (poor_share, poor) = errors
    assert clean < 0.05
    assert fair < 0.05
    assert poor_share < 0.9
    assert poor > fair


@pytest.mark.slow
def test_a_second_opinion_by_cleanlab_finds_about_the_same():
    pytest.importorskip("cleanlab")
    vectors, _, noisy = plant(10_000, 0.7)
    votes = neighbour_votes(noisy, nearest_neighbours(vectors, 10), CLASSES)
    found = second_opinion(noisy, votes / votes.sum(axis=1, keepdims=True))
    assert np.isnan(found.residual)
    np.testing.assert_allclose(found.matrix.sum(axis=1), 1, atol=1e-6)
    assert np.abs(found.matrix - MATRIX).max() < 0.25
