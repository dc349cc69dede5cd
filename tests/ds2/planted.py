"""Points in overlapping clusters, one a class, whose labels err by a known transition matrix."""

from __future__ import annotations

import numpy as np

CLASSES = 4
SHARES = np.array([0.1, 0.2, 0.4, 0.3])
MATRIX = np.array(
    [
        [0.75, 0.20, 0.05, 0.00],
        [0.15, 0.65, 0.15, 0.05],
        [0.02, 0.18, 0.70, 0.10],
        [0.00, 0.05, 0.22, 0.73],
    ]
)
"""About 30 % of all labels are wrong, mostly by one."""


def plant(count: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors (N, 16) float32, true labels and noisy ones (N,); the larger ``spread``, the more clusters overlap."""
    generator = np.random.default_rng(seed)
    true = generator.choice(CLASSES, count, p=SHARES)
    centres = np.linalg.qr(generator.normal(size=(16, CLASSES)))[0].T
    vectors = centres[true] + spread * generator.normal(size=(count, 16)) / 4
    noisy = (generator.random(count)[:, None] > np.cumsum(MATRIX, axis=1)[true]).sum(axis=1).clip(max=CLASSES - 1)
    return vectors.astype(np.float32), true, noisy


def implied_consensus(matrix: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """c[i, j, l] = Σ_k p_k T_ki T_kj T_kl, shape (K, K, K)."""
    return np.einsum("k,ki,kj,kl->ijl", prior, matrix, matrix, matrix)
