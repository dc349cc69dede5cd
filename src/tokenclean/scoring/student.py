"""Student's t distribution, exact to rounding."""

from __future__ import annotations

import math
from statistics import NormalDist

_NORMAL = NormalDist()
# From here on the normal distribution plus one term in 1/degrees is as close as the continued fraction.
_MANY_DEGREES = 1e5
_TINY = 1e-300


def t_tail(t: float, degrees: float) -> float:
    """P(T > t) for T of Student's t distribution with ``degrees`` > 0 degrees of freedom, whole or not; inf is normal.

    For t ≥ 0 it is ½ I_x(degrees/2, ½) at x = degrees/(degrees + t²), I the regularised incomplete beta function.
    Raises ValueError for degrees that are not positive or a t that is NaN.
    """
    if not degrees > 0 or math.isnan(t):
        raise ValueError(f"Student's t needs positive degrees of freedom and a number, got {degrees} and {t}")
    if t < 0:
        return 1 - t_tail(-t, degrees)
    if degrees >= _MANY_DEGREES:
        tail = 0.5 * math.erfc(t / math.sqrt(2))
        return tail + _NORMAL.pdf(t) * (t**3 + t) / (4 * degrees)
    return 0.5 * _incomplete_beta(degrees, t)


def t_quantile(probability: float, degrees: float) -> float:
    """The t with P(T ≤ t) = ``probability``, in (0, 1). Raises ValueError as ``t_tail`` does, and outside (0, 1)."""
    if not 0 < probability < 1:
        raise ValueError(f"a quantile needs a probability between 0 and 1, got {probability}")
    tail = min(probability, 1 - probability)
    sign = 1 if probability >= 0.5 else -1
    # Newton from the normal quantile, which lies below the root: the tail is convex, so each step stays below it.
    t = max(-_NORMAL.inv_cdf(tail), 0.0)
    for _ in range(100):
        step = (t_tail(t, degrees) - tail) / _density(t, degrees)
        t += step
        if abs(step) <= 1e-13 * (1 + t):
            break
    return sign * t


def _density(t: float, degrees: float) -> float:
    if degrees >= _MANY_DEGREES:
        return _NORMAL.pdf(t)
    log_constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    return math.exp(log_constant - (degrees + 1) / 2 * math.log1p(t * t / degrees))


def _incomplete_beta(degrees: float, t: float) -> float:
    """I_x(degrees/2, ½) at x = degrees/(degrees + t²), by the continued fraction of DLMF 8.17.22."""
    a, b = degrees / 2, 0.5
    x, rest = degrees / (degrees + t * t), t * t / (degrees + t * t)
    if rest == 0:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    # log x from 1 + t²/degrees, since x itself rounds to 1 for small t.
    log_front += -a * math.log1p(t * t / degrees) + b * math.log(rest)
    if x < (a + 1) / (a + b + 2):  # where the fraction converges fast; its mirror image elsewhere
        return math.exp(log_front) * _fraction(a, b, x) / a
    return 1 - math.exp(log_front) * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    """By Lentz's method."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            change = c * d
            value *= change
        if abs(change - 1) < 1e-15:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
