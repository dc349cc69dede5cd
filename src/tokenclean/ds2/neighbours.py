"""Nearest neighbours in an embedding, and those among a sample of the pool."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Neighbours:
    """Of N points the K nearest others, nearest first: ``indices`` int64 (N, K), ``distances`` float32 (N, K), cosine
    distances 1 − cos."""

    indices: np.ndarray
    distances: np.ndarray

    def first(self, count: int) -> Neighbours:
        """The nearest ``count``."""
        return Neighbours(self.indices[:, :count], self.distances[:, :count])

    def among(self, is_sampled_N: np.ndarray, count: int) -> tuple[np.ndarray, Neighbours, np.ndarray]:
        """The sampled points (n,), their ``count`` nearest sampled others, and which of these there are, bool.

        What would be found by a search within the sample, as long as every point has so many sampled others among its
        K; where one has fewer, the rest is False in the third array.
        """
        points = np.flatnonzero(is_sampled_N)
        indices, distances = self.indices[points], self.distances[points]
        is_there = is_sampled_N[indices]
        order = np.argsort(~is_there, axis=1, kind="stable")[:, :count]
        there = np.take_along_axis(is_there, order, axis=1)
        return (
            points,
            Neighbours(np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)),
            there,
        )


def nearest_neighbours(vectors_N_D: np.ndarray, count: int) -> Neighbours:
    """The ``count`` nearest others of each point by cosine distance, exact (scikit-learn's brute force).

    ``vectors_N_D``: float32, of any length but 0. A point is never its own neighbour; one that lies on it is. Raises
    ValueError for fewer points than ``count`` + 1 or a vector that is 0 or not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    vectors = np.ascontiguousarray(vectors_N_D, dtype=np.float32)
    if len(vectors) <= count:
        raise ValueError(f"{count} neighbours of each point need at least {count + 1} points, found {len(vectors)}")
    lengths = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        place = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
        raise ValueError(f"the vector of point {place} is 0 or not finite")
    unit = vectors / lengths[:, None]
    # Between unit vectors |a − b|² = 2 · (1 − cos), and this metric has the fast search.
    searched = NearestNeighbors(n_neighbors=count, algorithm="brute", metric="sqeuclidean").fit(unit)
    distances, indices = searched.kneighbors()
    return Neighbours(indices.astype(np.int64), (distances / 2).astype(np.float32))


def sample_size(points: int, largest: int = 50_000, share: float = 0.9) -> int:
    """Points drawn in a round."""
    return max(1, min(largest, int(share * points)))


def needed_neighbours(points: int, count: int) -> int:
    """How many neighbours to search for, so that of them ``count`` are in a sample for all but a few of 10⁶ points."""
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
