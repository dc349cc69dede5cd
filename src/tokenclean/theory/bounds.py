"""Theorem 5.1: the bound of the 0-1 error, as the paper states it and with the size of the model class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LOG_TWO_MODELS = math.log(2)
"""log|F| of a class of two models, for which the bound of a class is Eq. 5."""

Numbers = Any
"""A float where every argument is a number, else an array of the shape they broadcast to (numpy's own convention)."""


def error_bound(noise_rate: ArrayLike, tokens: ArrayLike, delta: ArrayLike = 0.05) -> Numbers:
    """Upper bound of the 0-1 error when learning from noisy token labels (Theorem 5.1, Eq. 5).

    η + sqrt(2 log(4/δ) / M), which is to hold with probability at least 1 - δ; what it takes for granted and leaves out
    stands in the package's docstring. ``noise_rate``: η in [0, 1]; ``tokens``: M > 0, the response tokens trained on;
    ``delta``: δ in (0, 1). The bound may exceed 1, and then says nothing. Arguments broadcast; numbers give a float.
    Raises ValueError outside these ranges.
    """
    return error_bound_of_class(noise_rate, tokens, LOG_TWO_MODELS, delta)


def error_bound_of_class(
    noise_rate: ArrayLike, tokens: ArrayLike, log_class_size: ArrayLike, delta: ArrayLike = 0.05
) -> Numbers:
    """The bound of Theorem 5.1 for a finite class F of models, with the term that its proof leaves out.

    η + sqrt(2 (log|F| + log(2/δ)) / M), with probability at least 1 - δ over the draw of the M tokens. Derivation:

    - For a fixed θ the losses 1{θ(x_prev) ≠ x_next} of the tokens trained on are independent, lie in [0, 1] and have
      the mean L_D̃(θ). Hoeffding bounds their average L̂: P(|L̂(θ) - L_D̃(θ)| > ε) <= 2 exp(-2Mε²).
    - θ̂ depends on the draw, so this must hold for all of F at once. By the union bound it fails for some θ of F with
      probability at most 2|F| exp(-2Mε²), which is δ at ε = sqrt((log|F| + log(2/δ)) / 2M).
    - Where it fails for none: L_D̃(θ̂) <= L̂(θ̂) + ε <= L̂(θ_D̃) + ε <= L_D̃(θ_D̃) + 2ε = 2ε, since θ̂ minimises L̂ and θ_D̃,
      the best model of F, makes no error (assumption 3).
    - For full tokens L_D(θ) - L_D̃(θ) = η (P(θ ≠ X_next | Y = 1) - P(θ ≠ X_next | Y = 0)) <= η for every θ, whatever the
      draw.

    For cleaned tokens M is their number and η is replaced by ``data_quality``. Eq. 5 is this bound at |F| = 2, the two
    models θ̂ and θ_D̃ that its proof names, as if both were known before the draw.

    ``log_class_size``: log|F| >= 0 in nats, finite; at most b·P·log 2 for models of P trained parameters of b bits. The
    other arguments, and errors, as in ``error_bound``.
    """
    return plain(shares("noise_rate", noise_rate) + data_quantity(tokens, delta, log_class_size))


def data_quantity(tokens: ArrayLike, delta: ArrayLike, log_class_size: ArrayLike) -> np.ndarray:
    """sqrt(2 (log|F| + log(2/δ)) / M), the second term of the bounds; for |F| = 2 that of Eq. 5."""
    tokens = _checked("tokens", tokens, "must be a positive number", lambda m: (m > 0) & (m < math.inf))
    return data_quantity_of_one_token(delta, log_class_size) / np.sqrt(tokens)


def data_quantity_of_one_token(delta: ArrayLike, log_class_size: ArrayLike) -> np.ndarray:
    """sqrt(2 (log|F| + log(2/δ))), the second term of the bounds times sqrt(M)."""
    delta = _checked("delta", delta, "must lie in (0, 1)", lambda d: (d > 0) & (d < 1))
    log_class_size = _checked(
        "log_class_size", log_class_size, "must be a finite number of at least 0", lambda f: (f >= 0) & (f < math.inf)
    )
    return np.sqrt(2 * (log_class_size + math.log(2) - np.log(delta)))


def shares(name: str, values: ArrayLike) -> np.ndarray:
    """As float64; ValueError unless all lie in [0, 1]."""
    return _checked(name, values, "must lie in [0, 1]", lambda share: (share >= 0) & (share <= 1))


def plain(values: np.ndarray) -> Numbers:
    """An array of no dimension as Python's own number."""
    return values.item() if values.ndim == 0 else values


def _checked(name: str, values: ArrayLike, expected: str, is_good: Any) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    wrong = ~is_good(numbers)  # also True for NaN
    if wrong.any():
        raise ValueError(f"{name} {expected}, got {numbers[wrong][0]:g}")
    return numbers
