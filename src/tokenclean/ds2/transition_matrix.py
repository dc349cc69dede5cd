"""The score transition matrix: how likely a rater says i where k is true, estimated from neighbours' labels.

Where a point and its two nearest neighbours share their true class (k-NN label clusterability), how often their noisy
labels agree depends on the matrix and the prior alone. The consensus of up to three labels identifies both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokenclean.ds2.neighbours import Neighbours, draw_samples
from tokenclean.errors import needs_extra

ROUNDS, STEPS, LEARNING_RATE = 50, 1501, 0.1


@dataclass(frozen=True)
class Transition:
    """``matrix``: T (K, K), T[k, i] = P(noisy label i | true label k); ``prior``: p (K,) of the true labels;
    ``residual``: distance of the observed consensus from the one that these two imply."""

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
        """P(true label ≠ j | noisy label j), (K,); 1 for a label that never occurs."""
        noisy = self.noisy_prior
        right = np.diag(self.matrix) * self.prior
        return 1 - np.divide(right, noisy, out=np.zeros_like(noisy), where=noisy > 0)


def count_consensus(
    labels_N: np.ndarray, neighbours: Neighbours, classes: int, *, rounds: int = ROUNDS, seed: int = 0
) -> np.ndarray:
    """Shares of points by their own label, the nearest neighbour's and the second nearest's, float64 (K, K, K).

    The mean over ``rounds`` samples of the points, with neighbours taken from the same sample. Labels are
    0 … ``classes`` − 1.
    """
    shares = np.zeros(classes**3)
    for is_sampled in draw_samples(len(labels_N), rounds, seed):
        points, nearest, is_there = neighbours.among(is_sampled, 2)
        has_both = is_there.all(axis=1)
        if not has_both.any():
            raise ValueError("no point has two neighbours in the sample; search for more of them")
        first, second = nearest.indices[has_both].T
        cells = (labels_N[points[has_both]] * classes + labels_N[first]) * classes + labels_N[second]
        shares += np.bincount(cells, minlength=classes**3) / len(cells) / rounds
    return shares.reshape(classes, classes, classes)


def estimate_transition(consensus: np.ndarray) -> Transition:
    """Minimise Σ_v ‖ĉ_v − c_v‖_F over matrix T and prior p by Adam; the best of all steps.

    ĉ_v are the marginals of ``consensus`` over the first v = 1, 2, 3 labels; T and p imply c1[i] = Σ_k p_k T_ki,
    c2[i, j] = Σ_k p_k T_ki T_kj, c3[i, j, l] = Σ_k p_k T_ki T_kj T_kl. T is a softmax over rows, initialised at
    5·I − 1, and p a softmax initialised at 0.
    """
    import torch

    classes = len(consensus)
    observed = [torch.tensor(c) for c in (consensus.sum(axis=(1, 2)), consensus.sum(axis=2), consensus)]
    rows = (5.0 * torch.eye(classes, dtype=torch.float64) - 1.0).requires_grad_()
    shares = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([rows, shares], lr=LEARNING_RATE)
    best = Transition(np.empty((0, 0)), np.empty(0), math.inf)
    with torch.enable_grad():
        for _ in range(STEPS):
            matrix, prior = rows.softmax(dim=1), shares.softmax(dim=0)
            weighted = prior[:, None] * matrix
            # The order of these three decides how gradients add up, and so the last bits of the result.
            first, second = weighted.sum(dim=0), weighted.T @ matrix
            implied = (first, second, torch.einsum("ki,kj,kl->ijl", weighted, matrix, matrix))
            norms = [torch.linalg.vector_norm(a - b) for a, b in zip(observed, implied, strict=True)]
            residual = torch.stack(norms).sum()
            if (value := residual.item()) < best.residual:
                best = Transition(matrix.detach().numpy(), prior.detach().numpy(), value)
            optimizer.zero_grad()
            residual.backward()
            optimizer.step()
    return best


def second_opinion(labels_N: np.ndarray, votes_N_K: np.ndarray) -> Transition:
    """The transition matrix by cleanlab's confident learning, from the votes of neighbours (``votes_N_K``, rows sum to
    1); ``residual`` is NaN.

    Raises MissingExtraError without the package.
    """
    with needs_extra("cleanlab", "curate", "a second opinion on the transition matrix"):
        from cleanlab.count import compute_confident_joint, estimate_latent
    labels = np.asarray(labels_N)
    present = np.unique(labels)
    dense = np.searchsorted(present, labels)
    votes = np.asarray(votes_N_K, dtype=np.float64)[:, present]
    votes = votes / votes.sum(axis=1, keepdims=True)
    joint = np.asarray(compute_confident_joint(dense, votes))
    prior, noise_matrix, _ = estimate_latent(joint, dense)
    matrix, whole_prior = np.eye(votes_N_K.shape[1]), np.zeros(votes_N_K.shape[1])
    matrix[np.ix_(present, present)] = np.asarray(noise_matrix).T  # cleanlab's columns are true labels
    whole_prior[present] = prior
    return Transition(matrix, whole_prior, float("nan"))
