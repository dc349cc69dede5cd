"""Corollary 5.1.1: when cleaning lowers the error bound, and how many tokens or how large a kept share that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenclean.theory.bounds import LOG_TWO_MODELS, check_share, data_quantity, data_quantity_of_one_token


@dataclass(frozen=True)
class CorollaryCheck:
    """Eq. 6 and what would make it hold."""

    left: float
    """η(D̃) - η̂, the noise removed."""
    right: float
    """sqrt(2 log(4/δ)) · sqrt(1/M) · (sqrt(1/r̂) - 1), the price of fewer tokens; inf where nothing is kept."""
    holds: bool
    """True where left >= right: cleaning has the lower error bound."""
    margin: float
    """left - right, by how much cleaning lowers the error bound; below 0 it raises it, -inf where nothing is kept."""
    least_tokens: float
    """The least M at which Eq. 6 holds at these rates; 0 where it holds for every M, inf where for none."""
    break_even_kept_share: float
    """The least r̂ at which Eq. 6 holds at this η(D̃), η̂ and M; inf where no share suffices (η̂ > η(D̃))."""


def cleaning_helps(
    eta_full: float, eta_cleaned: float, kept_share: float, tokens: float, delta: float = 0.05
) -> CorollaryCheck:
    """Whether cleaning lowers the error bound of learning with full tokens (Corollary 5.1.1, Eq. 6).

    ``eta_full``: η(D̃), ``eta_cleaned``: η̂, ``kept_share``: r̂, shares in [0, 1] as ``selection.label_noise`` gives
    them; ``tokens``: M > 0, the response tokens before cleaning; ``delta``: δ in (0, 1). The statement is claimed to
    hold with probability at least 1 - 2δ, since it uses Eq. 5 twice; the package's docstring lists its assumptions and
    gaps. Raises ValueError outside these ranges.
    """
    gain = _noise_removed(eta_full, eta_cleaned)
    price = data_quantity(tokens, delta, LOG_TWO_MODELS) * _price_of_share(kept_share)
    return CorollaryCheck(
        left=gain,
        right=price,
        holds=gain >= price,
        margin=margin(eta_full, eta_cleaned, kept_share, tokens, delta),
        least_tokens=least_tokens(eta_full, eta_cleaned, kept_share, delta),
        break_even_kept_share=break_even_kept_share(eta_full, eta_cleaned, tokens, delta),
    )


def margin(
    eta_full: float,
    eta_cleaned: float,
    kept_share: float,
    tokens: float,
    delta: float = 0.05,
    log_class_size: float = LOG_TWO_MODELS,
) -> float:
    """By how much cleaning lowers the error bound: left minus right side of Eq. 6.

    (η(D̃) - η̂) - c/sqrt(M) · (sqrt(1/r̂) - 1), c = sqrt(2 (log|F| + log(2/δ))): the bound of M tokens at η(D̃) minus that
    of r̂M tokens at η̂. -inf where nothing is kept. ``log_class_size``: log|F|; by default that of two models, with which
    c is Eq. 6's. The other arguments and the errors are those of ``cleaning_helps``.
    """
    price = data_quantity(tokens, delta, log_class_size) * _price_of_share(kept_share)
    return _noise_removed(eta_full, eta_cleaned) - price


def least_tokens(
    eta_full: float,
    eta_cleaned: float,
    kept_share: float,
    delta: float = 0.05,
    log_class_size: float = LOG_TWO_MODELS,
) -> float:
    """The number of response tokens M at which ``margin`` is 0: it is above 0 for more and below 0 for fewer.

    2 (log|F| + log(2/δ)) · ((sqrt(1/r̂) - 1) / (η(D̃) - η̂))², not rounded to a whole number. 0 where cleaning costs no
    tokens (r̂ = 1) and adds no noise; inf where no M suffices: where the labels are noisier after cleaning, or as noisy
    and fewer, or where nothing is kept. Arguments and errors are those of ``margin``.
    """
    gain, price = _noise_removed(eta_full, eta_cleaned), _price_of_share(kept_share)
    quantity = data_quantity_of_one_token(delta, log_class_size)
    if gain <= 0:
        return 0.0 if gain == price == 0 else math.inf
    root = quantity * price / gain
    return root * root  # inf where it overflows, where ** would raise


def break_even_kept_share(
    eta_full: float,
    eta_cleaned: float,
    tokens: float,
    delta: float = 0.05,
    log_class_size: float = LOG_TWO_MODELS,
) -> float:
    """The kept share r̂ at which ``margin`` is 0: it is above 0 for larger and below 0 for smaller shares.

    (q / (q + η(D̃) - η̂))², q = sqrt(2 (log|F| + log(2/δ)) / M); 1 where cleaning removes no noise, inf where it adds
    some, so that no share suffices. η̂ is held fixed, though other labels have another η̂, and not every share can have
    this one (``possible_noise``). Arguments and errors are those of ``margin``.
    """
    gain, quantity = _noise_removed(eta_full, eta_cleaned), data_quantity(tokens, delta, log_class_size)
    if gain < 0:
        return math.inf
    root = quantity / (quantity + gain)
    return root * root


def _noise_removed(eta_full: float, eta_cleaned: float) -> float:
    return check_share("eta_full", eta_full) - check_share("eta_cleaned", eta_cleaned)


def _price_of_share(kept_share: float) -> float:
    """sqrt(1/r̂) - 1."""
    return math.sqrt(1 / kept_share) - 1 if check_share("kept_share", kept_share) else math.inf
