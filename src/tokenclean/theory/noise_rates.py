"""What noise before cleaning, noise after it and the kept share say of one another."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tokenclean.theory.bounds import Numbers, plain, shares

# Measured rates are quotients of counts, each a rounding away from the truth.
_ROUNDING = 1e-9


def possible_noise(eta_full: ArrayLike, kept_share: ArrayLike) -> tuple[Numbers, Numbers]:
    """The lowest and the highest η̂ that any labels with this η(D̃) and r̂ can have.

    With p = 1 - η(D̃) the share of valid tokens: |p - r̂| where the kept tokens are valid, or the valid ones kept, as far
    as their numbers allow, and min(p + r̂, 2 - p - r̂) where they overlap least. Eq. 6 asks for η̂ <= η(D̃), hence it holds
    for no labels that keep less than 1 - 2η(D̃). Both arguments are shares in [0, 1] and broadcast; ValueError else.
    """
    valid, kept = 1 - shares("eta_full", eta_full), shares("kept_share", kept_share)
    return plain(np.abs(valid - kept)), plain(np.minimum(valid + kept, 2 - valid - kept))


def data_quality(eta_full: ArrayLike, eta_cleaned: ArrayLike, kept_share: ArrayLike) -> Numbers:
    """The data quality term that holds for cleaned labels: by how much L_D can exceed the error on the kept tokens.

    It takes the place of η̂ in the bounds. The total variation between the tokens with Y = 1 and those with Ŷ = 1:

        max(P(Ŷ = 0 | Y = 1), P(Y = 0 | Ŷ = 1)) = (η̂ + |p - r̂|) / (2 max(p, r̂)),   p = P(Y = 1) = 1 - η(D̃)

    since the two share the mass min(1/p, 1/r̂) · P(Y = 1, Ŷ = 1), with P(Y = 1, Ŷ = 1) = (p + r̂ - η̂) / 2. For full
    tokens it is η(D̃), as in Theorem 5.1, and for perfect labels 0. It lies between η̂ / 2 max(p, r̂) and
    η̂ / max(p, r̂): where half of the tokens are valid and cleaning keeps half of those and nothing else, η̂ = 0.25, but
    a model without error on the kept tokens may err on all the others, half of the valid ones.

    ``eta_full``: η(D̃), ``eta_cleaned``: η̂, ``kept_share``: r̂; they broadcast. NaN where no labels have these three
    rates (``possible_noise``), where nothing is kept and where no token is valid. Raises ValueError outside [0, 1].
    """
    lowest, highest = possible_noise(eta_full, kept_share)
    valid, kept = 1 - shares("eta_full", eta_full), shares("kept_share", kept_share)
    wrong = shares("eta_cleaned", eta_cleaned)
    with np.errstate(divide="ignore", invalid="ignore"):
        variation = (wrong + np.abs(valid - kept)) / (2 * np.maximum(valid, kept))
    is_possible = (wrong >= lowest - _ROUNDING) & (wrong <= highest + _ROUNDING) & (kept > 0) & (valid > 0)
    return plain(np.where(is_possible, np.minimum(variation, 1.0), np.nan))
