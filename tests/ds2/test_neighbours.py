from __future__ import annotations

import numpy as np
import pytest

from tokenclean.ds2.neighbours import Neighbours, draw_samples, nearest_neighbours, needed_neighbours, sample_size


def brute_force(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(distances, order, axis=1)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32) * 3


def test_the_nearest_are_those_of_brute_force(vectors):
    found = nearest_neighbours(vectors, 7)
    indices, distances = brute_force(vectors, 7)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, atol=1e-5)


def test_a_point_is_never_its_own_neighbour_but_its_copy_is(vectors):
    doubled = np.concatenate([vectors[:50], vectors[:50]])
    found = nearest_neighbours(doubled, 3)
    assert not np.any(found.indices == np.arange(100)[:, None])
    np.testing.assert_array_equal(found.indices[:, 0], (np.arange(100) + 50) % 100)
    assert found.distances[:, 0].max() < 1e-5


def test_neighbours_among_a_sample_are_those_of_a_search_within_it(vectors):
    whole = nearest_neighbours(vectors, needed_neighbours(300, 10))
    for is_sampled in draw_samples(300, 5, seed=3):
        assert is_sampled.sum() == sample_size(300) == 270
        points, found, is_there = whole.among(is_sampled, 10)
        within = nearest_neighbours(vectors[is_sampled], 10)
        np.testing.assert_array_equal(points, np.flatnonzero(is_sampled))
        np.testing.assert_array_equal(found.indices, points[within.indices])
        assert is_there.all()


def test_neighbours_that_lack_are_told():
    known = Neighbours(np.array([[1, 2], [0, 2], [0, 1]]), np.zeros((3, 2), dtype=np.float32))
    points, found, is_there = known.among(np.array([True, False, True]), 2)
    assert points.tolist() == [0, 2]
    assert found.indices[:, 0].tolist() == [2, 0]
    assert is_there.tolist() == [[True, False], [True, False]]


def test_so_many_are_searched_for_that_a_sample_of_a_large_pool_has_enough():
    count, share = needed_neighbours(300_000, 10), sample_size(300_000) / 300_000
    generator = np.random.default_rng(0)
    assert (generator.binomial(count, share, 100_000) < 10).mean() < 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [(np.ones((3, 2)), "need at least 4 points"), (np.array([[1.0, 0], [0, 0], [1, 1], [2, 1]]), "point 1 is 0")],
)
def test_what_cannot_be_searched_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(given, 3)
