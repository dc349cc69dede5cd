"""The score transition matrix: how likely a rater says i where k is true, from what neighbours have in common.

Where a point and its two nearest neighbours share their true class (k-NN label clusterability), how often their noisy
labels agree is a function of the matrix and the prior alone. Consensus of up to three labels identifies both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenclean.ds2.neighbours import Neighbours, draw_samples

ROUNDS, STEPS, LEARNING_RATE = 50, 1501, 0.1


@dataclass(frozen=True)
class Consensus:
    """Shares of points by own label (K,), by own and nearest neighbour's (K, K), and by those and the second nearest's
    (K, K, K); float64, each summing to 1."""

    first: np.ndarray
    second: np.ndarray
    third: np.ndarray


@dataclass(frozen=True)
class Transition:
    """``matrix``: T (K, K), T[k, i] = P(noisy label i | true label k); ``prior``: p (K,) of the true labels;
    ``residual``: how far the consensus is from theirs."""

    matrix: np.ndarray
    prior: np.ndarray
    residual: float

    @property
    def noisy_prior(self) -> np.ndarray:
        """P(noisy label), (K,): p T."""
        return self.prior @ self.matrix

    @property
    def noise_rate(self) -> float:
        """P(noisy label ≠ true label)."""
        return float(1 - np.sum(self.prior * np.diag(self.matrix)))

    @property
    def class_noise_rates(self) -> np.ndarray:
        """P(true label ≠ j | noisy label j), (K,); 1 for a label that never comes."""
        noisy = self.noisy_prior
        right = np.diag(self.matrix) * self.prior
        return 1 - np.divide(right, noisy, out=np.zeros_like(noisy), where=noisy > 0)


def count_consensus(
    labels_N: np.ndarray, neighbours: Neighbours, classes: int, *, rounds: int = ROUNDS, seed: int = 0
) -> Consensus:
    """Consensus of labels 0 … ``classes`` − 1: the mean over ``rounds`` samples of the points, each with the neighbours
    within it."""
    thirds = np.zeros(classes**3)
    for is_sampled in draw_samples(len(labels_N), rounds, seed):
        points, nearest, is_there = neighbours.among(is_sampled, 2)
        points, pairs = points[is_there.all(axis=1)], nearest.indices[is_there.all(axis=1)]
        if not len(points):
            raise ValueError("no point has two neighbours in the sample; search for more of them")
        cells = (labels_N[points] * classes + labels_N[pairs[:, 0]]) * classes + labels_N[pairs[:, 1]]
        thirds += np.bincount(cells, minlength=classes**3) / len(points) / rounds
    third = thirds.reshape(classes, classes, classes)
    return Consensus(third.sum(axis=(1, 2)), third.sum(axis=2), third)


def consensus_of(matrix: np.ndarray, prior: np.ndarray) -> Consensus:
    """The consensus that matrix and prior bring about: c1[i] = Σ_k p_k T_ki, c2[i, j] = Σ_k p_k T_ki T_kj,
    c3[i, j, l] = Σ_k p_k T_ki T_kj T_kl."""
    return Consensus(
        prior @ matrix,
        np.einsum("k,ki,kj->ij", prior, matrix, matrix),
        np.einsum("k,ki,kj,kl->ijl", prior, matrix, matrix, matrix),
    )


def estimate_transition(
    consensus: Consensus, *, steps: int = STEPS, learning_rate: float = LEARNING_RATE
) -> Transition:
    """Minimise Σ_v ‖ĉ_v − c_v‖_F by Adam, T a softmax of rows begun at 5·I − 1, p a softmax; the best of all steps."""
    import torch

    classes = len(consensus.first)
    found = [torch.from_numpy(np.ascontiguousarray(c)) for c in (consensus.first, consensus.second, consensus.third)]
    rows = (5.0 * torch.eye(classes, dtype=torch.float64) - 1.0).requires_grad_()
    shares = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([rows, shares], lr=learning_rate)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    with torch.enable_grad():
        for _ in range(steps):
            matrix, prior = rows.softmax(dim=1), shares.softmax(dim=0)
            weighted = prior[:, None] * matrix
            made = (
                weighted.sum(dim=0),
                weighted.T @ matrix,
                torch.einsum("ki,kj,kl->ijl", weighted, matrix, matrix),
            )
            residual = torch.stack([torch.linalg.vector_norm(a - b) for a, b in zip(found, made, strict=True)]).sum()
            if best is None or float(residual.detach()) < best[0]:
                best = float(residual.detach()), matrix.detach().numpy().copy(), prior.detach().numpy().copy()
            optimizer.zero_grad()
            residual.backward()
            optimizer.step()
    if best is None:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return Transition(best[1], best[2], best[0])


def second_opinion(labels_N: np.ndarray, votes_N_K: np.ndarray) -> Transition:
    """The same by cleanlab's confident learning, from the labels that neighbours vote for (rows of ``votes_N_K`` sum to
    1); ``residual`` is NaN.

    Raises MissingExtraError without the package.
    """
    from tokenclean.errors import MissingExtraError

    try:
        from cleanlab.count import compute_confident_joint, estimate_latent
    except ImportError as error:
        raise MissingExtraError("cleanlab", "curate", "a second opinion on the transition matrix") from error
    labels = np.asarray(labels_N)
    present = np.unique(labels)
    dense = np.searchsorted(present, labels)
    votes = np.asarray(votes_N_K, dtype=np.float64)[:, present]
    votes = votes / votes.sum(axis=1, keepdims=True)
    joint: Any = compute_confident_joint(dense, votes)
    prior, noise_matrix, _ = estimate_latent(joint, dense)
    matrix, whole_prior = np.eye(votes_N_K.shape[1]), np.zeros(votes_N_K.shape[1])
    matrix[np.ix_(present, present)] = np.asarray(noise_matrix).T  # cleanlab's columns are true labels
    whole_prior[present] = prior
    return Transition(matrix, whole_prior, float("nan"))
