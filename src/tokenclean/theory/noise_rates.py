"""How noise before cleaning, noise after it and the kept share restrict one another."""

from __future__ import annotations

import math

from tokenclean.theory.bounds import check_share

# Measured rates are quotients of counts, so they are rounded.
_ROUNDING = 1e-9


def possible_noise(eta_full: float, kept_share: float) -> tuple[float, float]:
    """The lowest and the highest η̂ that any labels with this η(D̃) and r̂ can have.

    With p = 1 - η(D̃) the share of valid tokens: |p - r̂| where the kept tokens are valid, or the valid ones kept, as far
    as their numbers allow, and min(p + r̂, 2 - p - r̂) where they overlap least. Eq. 6 requires η̂ <= η(D̃), hence it holds
    for no labels that keep less than 1 - 2η(D̃). Raises ValueError outside [0, 1].
    """
    valid, kept = 1 - check_share("eta_full", eta_full), check_share("kept_share", kept_share)
    return abs(valid - kept), min(valid + kept, 2 - valid - kept)


def data_quality(eta_full: float, eta_cleaned: float, kept_share: float) -> float:
    """The data quality term that holds for cleaned labels: by how much L_D can exceed the error on the kept tokens.

    It replaces η̂ in the bounds. It is the total variation between the tokens with Y = 1 and those with Ŷ = 1:

        max(P(Ŷ = 0 | Y = 1), P(Y = 0 | Ŷ = 1)) = (η̂ + |p - r̂|) / (2 max(p, r̂)),   p = P(Y = 1) = 1 - η(D̃)

    since the two share the mass min(1/p, 1/r̂) · P(Y = 1, Ŷ = 1), with P(Y = 1, Ŷ = 1) = (p + r̂ - η̂) / 2. For full
    tokens it is η(D̃), as in Theorem 5.1, and for perfect labels 0. It lies between η̂ / 2 max(p, r̂) and
    η̂ / max(p, r̂): where half of the tokens are valid and cleaning keeps half of those and nothing else, η̂ = 0.25, but
    a model without error on the kept tokens may err on all the others, half of the valid ones.

    ``eta_full``: η(D̃), ``eta_cleaned``: η̂, ``kept_share``: r̂. NaN where no labels have these three
    rates (``possible_noise``), where nothing is kept and where no token is valid. Raises ValueError outside [0, 1].
    """
    lowest, highest = possible_noise(eta_full, kept_share)
    valid, wrong = 1 - eta_full, check_share("eta_cleaned", eta_cleaned)
    if not (lowest - _ROUNDING <= wrong <= highest + _ROUNDING and kept_share > 0 and valid > 0):
        return math.nan
    return min((wrong + abs(valid - kept_share)) / (2 * max(valid, kept_share)), 1.0)
