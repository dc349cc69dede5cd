"""Theorem 5.1: the bound of the 0-1 error, as the paper states it and with the size of the model class."""

from __future__ import annotations

import math

LOG_TWO_MODELS = math.log(2)
"""log|F| of a class of two models, for which the bound of a class is Eq. 5."""


def error_bound(noise_rate: float, tokens: float, delta: float = 0.05) -> float:
    """Upper bound of the 0-1 error when learning from noisy token labels (Theorem 5.1, Eq. 5).

    η + sqrt(2 log(4/δ) / M), claimed to hold with probability at least 1 - δ; the package's docstring lists what it
    assumes and leaves out. ``noise_rate``: η in [0, 1]; ``tokens``: M > 0, the response tokens trained on; ``delta``: δ
    in (0, 1). A bound above 1 says nothing. Raises ValueError outside these ranges.
    """
    return error_bound_of_class(noise_rate, tokens, LOG_TWO_MODELS, delta)


def error_bound_of_class(noise_rate: float, tokens: float, log_class_size: float, delta: float = 0.05) -> float:
    """The bound of Theorem 5.1 for a finite class F of models, with the term that its proof leaves out.

    η + sqrt(2 (log|F| + log(2/δ)) / M), with probability at least 1 - δ over the draw of the M tokens. Derivation:

    - For a fixed θ the losses 1{θ(x_prev) ≠ x_next} of the tokens trained on are independent, lie in [0, 1] and have
      the mean L_D̃(θ). Hoeffding bounds their average L̂: P(|L̂(θ) - L_D̃(θ)| > ε) <= 2 exp(-2Mε²).
    - θ̂ depends on the draw, so this must hold for all of F at once. By the union bound it fails for some θ of F with
      probability at most 2|F| exp(-2Mε²), which is δ at ε = sqrt((log|F| + log(2/δ)) / 2M).
    - Where it fails for none: L_D̃(θ̂) <= L̂(θ̂) + ε <= L̂(θ_D̃) + ε <= L_D̃(θ_D̃) + 2ε = 2ε, since θ̂ minimises L̂ and θ_D̃,
      the best model of F, makes no error (assumption 3).
    - For full tokens L_D(θ) - L_D̃(θ) = η (P(θ ≠ X_next | Y = 1) - P(θ ≠ X_next | Y = 0)) <= η for every θ and
      every draw.

    For cleaned tokens M is their number and η is replaced by ``data_quality``. Eq. 5 is this bound at |F| = 2, the two
    models θ̂ and θ_D̃ that its proof names, as if both were known before the draw.

    ``log_class_size``: log|F| >= 0 in nats, finite; at most b·P·log 2 for models of P trained parameters of b bits. The
    other arguments, and errors, as in ``error_bound``.
    """
    return check_share("noise_rate", noise_rate) + data_quantity(tokens, delta, log_class_size)


def data_quantity(tokens: float, delta: float, log_class_size: float) -> float:
    """sqrt(2 (log|F| + log(2/δ)) / M), the second term of the bounds; for |F| = 2 that of Eq. 5."""
    if not 0 < tokens < math.inf:
        raise ValueError(f"tokens must be a positive number, got {tokens:g}")
    return data_quantity_of_one_token(delta, log_class_size) / math.sqrt(tokens)


def data_quantity_of_one_token(delta: float, log_class_size: float) -> float:
    """sqrt(2 (log|F| + log(2/δ))), the second term of the bounds times sqrt(M)."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta:g}")
    if not 0 <= log_class_size < math.inf:
        raise ValueError(f"log_class_size must be a finite number of at least 0, got {log_class_size:g}")
    return math.sqrt(2 * (log_class_size + math.log(2) - math.log(delta)))


def check_share(name: str, value: float) -> float:
    """The value; ValueError unless it lies in [0, 1]."""
    if not 0 <= value <= 1:  # also False for NaN
        raise ValueError(f"{name} must lie in [0, 1], got {value:g}")
    return value
