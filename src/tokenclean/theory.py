"""When cleaned tokens beat full tokens: Theorem 5.1 and Corollary 5.1.1 (section 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CorollaryCheck:
    """Both sides of Eq. 6. ``holds`` is True when left >= right: cleaning has the lower error bound."""

    left: float
    """η(D̃) - η̂, the noise removed."""
    right: float
    """sqrt(2 log(4/δ)) · sqrt(1/M) · (sqrt(1/r̂) - 1), the price of fewer tokens; inf where nothing is kept."""
    holds: bool


def error_bound(noise_rate: float, tokens: float, delta: float = 0.05) -> float:
    """Upper bound of the 0-1 error when learning from noisy token labels (Theorem 5.1, Eq. 5).

    η + sqrt(2 log(4/δ) / M) holds with probability at least 1 - δ. ``noise_rate``: η in [0, 1]; ``tokens``: M > 0, the
    tokens η was measured over; ``delta``: δ in (0, 1). The bound may exceed 1, and then says nothing. Raises
    ValueError outside these ranges.
    """
    _check_share("noise_rate", noise_rate)
    return noise_rate + _data_quantity(tokens, delta)


def cleaning_helps(
    eta_full: float, eta_cleaned: float, kept_share: float, tokens: float, delta: float = 0.05
) -> CorollaryCheck:
    """Whether cleaning lowers the error bound of learning with full tokens (Corollary 5.1.1, Eq. 6).

    ``eta_full``: η(D̃), ``eta_cleaned``: η̂, ``kept_share``: r̂, shares in [0, 1] as ``selection.label_noise`` gives
    them; ``tokens``: M > 0, the tokens before cleaning that the shares were measured over; ``delta``: δ in (0, 1). The
    statement holds with probability at least 1 - 2δ. Raises ValueError outside these ranges.
    """
    _check_share("eta_full", eta_full)
    _check_share("eta_cleaned", eta_cleaned)
    _check_share("kept_share", kept_share)
    left = eta_full - eta_cleaned
    fewer_tokens = math.sqrt(1 / kept_share) - 1 if kept_share > 0 else math.inf
    right = _data_quantity(tokens, delta) * fewer_tokens
    return CorollaryCheck(left, right, left >= right)


def _data_quantity(tokens: float, delta: float) -> float:
    """sqrt(2 log(4/δ) / M), the second term of Eq. 5."""
    if not 0 < tokens < math.inf:
        raise ValueError(f"tokens must be a positive number, got {tokens}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")
    return math.sqrt(2 * math.log(4 / delta) / tokens)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:  # also False for NaN
        raise ValueError(f"{name} must lie in [0, 1], got {share}")
