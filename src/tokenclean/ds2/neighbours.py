"""Nearest neighbours in an embedding, and those among a sample of the pool."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Neighbours:
    """The K nearest others of N points, nearest first: ``indices`` int64 (N, K), ``distances`` float32 (N, K), cosine
    distances 1 − cos."""

    indices: np.ndarray
    distances: np.ndarray

    def first(self, count: int) -> Neighbours:
        """The nearest ``count``."""
        return Neighbours(self.indices[:, :count], self.distances[:, :count])

    def among(self, is_sampled_N: np.ndarray, count: int) -> tuple[np.ndarray, Neighbours, np.ndarray]:
        """The sampled points (n,), their ``count`` nearest sampled others, and which of these exist, bool (n, count).

        The same as a search within the sample finds, as long as every point has that many sampled others among its K;
        where one has fewer, the rest is False in the third array.
        """
        points = np.flatnonzero(is_sampled_N)
        indices, distances = self.indices[points], self.distances[points]
        is_there = is_sampled_N[indices]
        order = np.argsort(~is_there, axis=1, kind="stable")[:, :count]
        indices, distances, is_there = (np.take_along_axis(a, order, axis=1) for a in (indices, distances, is_there))
        return points, Neighbours(indices, distances), is_there


def nearest_neighbours(vectors_N_D: np.ndarray, count: int) -> Neighbours:
    """The ``count`` nearest others of each point by cosine distance, exact (scikit-learn's brute force).

    ``vectors_N_D``: float32, of any length but 0. A point is never its own neighbour, but a copy of it is. Raises
    ValueError for fewer points than ``count`` + 1 or a vector that is 0 or not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    vectors = np.ascontiguousarray(vectors_N_D, dtype=np.float32)
    if len(vectors) <= count:
        raise ValueError(f"{count} neighbours of each point need at least {count + 1} points, found {len(vectors)}")
    lengths = np.linalg.norm(vectors, axis=1)
    if (is_wrong := ~(np.isfinite(lengths) & (lengths > 0))).any():
        raise ValueError(f"the vector of point {int(is_wrong.argmax())} is 0 or not finite")
    unit = vectors / lengths[:, None]
    # Between unit vectors |a − b|² = 2 · (1 − cos), and scikit-learn's search is fast with this metric.
    searched = NearestNeighbors(n_neighbors=count, algorithm="brute", metric="sqeuclidean").fit(unit)
    distances, indices = searched.kneighbors()
    return Neighbours(indices.astype(np.int64), (distances / 2).astype(np.float32))


def sample_size(points: int) -> int:
    """Points drawn in a round: nine tenths, at most 50,000."""
    return max(1, min(50_000, int(0.9 * points)))


def needed_neighbours(points: int, count: int) -> int:
    """How many neighbours to search for, so that ``count`` of them are in a sample for all but a few of 10⁶ points."""
    share = sample_size(points) / points
    wanted = count / share
    return min(points - 1, math.ceil(wanted + 5 * math.sqrt(max(wanted * (1 - share) / share, 0)) + (share < 1)))


def draw_samples(points: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """``rounds`` samples without replacement of ``sample_size`` points, bool (N,) each."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(rounds):
        is_sampled = np.zeros(points, dtype=bool)
        is_sampled[generator.choice(points, sample_size(points), replace=False)] = True
        yield is_sampled
