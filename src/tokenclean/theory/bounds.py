"""The error bounds of Theorem 5.1 and Corollary 5.1.1: what noise and fewer tokens cost, and when cleaning pays."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOG_TWO_MODELS = math.log(2)
"""log|F| of a class of two models, for which the bound of a class is Eq. 5."""

# Measured rates are quotients of counts, so they are rounded.
_ROUNDING = 1e-9


def error_bound(noise_rate: float, tokens: float, delta: float = 0.05, log_class_size: float = LOG_TWO_MODELS) -> float:
    """Upper bound of the 0-1 error when learning from noisy token labels, for a finite class F of models.

    η + sqrt(2 (log|F| + log(2/δ)) / M), claimed to hold with probability at least 1 - δ over the draw of the M tokens.
    For |F| = 2 this is Theorem 5.1 (Eq. 5), η + sqrt(2 log(4/δ) / M), whose proof leaves out the size of the class: its
    two models are θ̂ and θ_D̃, as if both were known before the draw. The package's docstring lists what else the proof
    assumes and leaves out. Derivation:

    - For a fixed θ the losses 1{θ(x_prev) ≠ x_next} of the tokens trained on are independent, lie in [0, 1] and have
      the mean L_D̃(θ). Hoeffding bounds their average L̂: P(|L̂(θ) - L_D̃(θ)| > ε) <= 2 exp(-2Mε²).
    - θ̂ depends on the draw, so this must hold for all of F at once. By the union bound it fails for some θ of F with
      probability at most 2|F| exp(-2Mε²), which is δ at ε = sqrt((log|F| + log(2/δ)) / 2M).
    - Where it fails for none: L_D̃(θ̂) <= L̂(θ̂) + ε <= L̂(θ_D̃) + ε <= L_D̃(θ_D̃) + 2ε = 2ε, since θ̂ minimises L̂ and θ_D̃,
      the best model of F, makes no error (assumption 3).
    - For full tokens L_D(θ) - L_D̃(θ) = η (P(θ ≠ X_next | Y = 1) - P(θ ≠ X_next | Y = 0)) <= η for every θ and
      every draw.

    For cleaned tokens M is their number and η is replaced by ``data_quality``. A bound above 1 says nothing.

    ``noise_rate``: η in [0, 1]; ``tokens``: M > 0, the response tokens trained on; ``delta``: δ in (0, 1);
    ``log_class_size``: log|F| >= 0 in nats, finite; at most b·P·log 2 for models of P trained parameters of b bits.
    Raises ValueError outside these ranges.
    """
    return _share("noise_rate", noise_rate) + _data_quantity(tokens, delta, log_class_size)


@dataclass(frozen=True)
class CorollaryCheck:
    """Whether cleaning lowers the error bound of learning with full tokens (Corollary 5.1.1, Eq. 6).

    ``eta_full``: η(D̃), ``eta_cleaned``: η̂, ``kept_share``: r̂, shares in [0, 1] as ``selection.label_noise`` gives
    them; ``tokens``: M > 0, the response tokens before cleaning; ``delta``: δ in (0, 1); ``log_class_size``: log|F|, by
    default that of two models, as in Eq. 6. The statement is claimed to hold with probability at least 1 - 2δ, since it
    uses Eq. 5 twice; the package's docstring lists its assumptions and gaps. Raises ValueError outside these ranges.
    """

    eta_full: float
    eta_cleaned: float
    kept_share: float
    tokens: float
    delta: float = 0.05
    log_class_size: float = LOG_TWO_MODELS

    def __post_init__(self) -> None:
        for name in ("eta_full", "eta_cleaned", "kept_share"):
            _share(name, getattr(self, name))
        _data_quantity(self.tokens, self.delta, self.log_class_size)

    @property
    def left(self) -> float:
        """η(D̃) - η̂, the noise removed."""
        return self.eta_full - self.eta_cleaned

    @property
    def right(self) -> float:
        """c/sqrt(M) · (sqrt(1/r̂) - 1), c = sqrt(2 (log|F| + log(2/δ))): the price of fewer tokens; inf where nothing is
        kept."""
        return _data_quantity(self.tokens, self.delta, self.log_class_size) * self._price_of_share

    @property
    def margin(self) -> float:
        """left - right, by how much cleaning lowers the error bound: the bound of M tokens at η(D̃) minus that of r̂M
        tokens at η̂. Below 0 cleaning raises it; -inf where nothing is kept."""
        return self.left - self.right

    @property
    def holds(self) -> bool:
        """True where left >= right: cleaning has the lower error bound."""
        return self.left >= self.right

    @property
    def least_tokens(self) -> float:
        """The number of response tokens M at which ``margin`` is 0: it is above 0 for more and below 0 for fewer.

        2 (log|F| + log(2/δ)) · ((sqrt(1/r̂) - 1) / (η(D̃) - η̂))², not rounded to a whole number. 0 where cleaning costs
        no tokens (r̂ = 1) and adds no noise; inf where no M suffices: where the labels are noisier after cleaning, or as
        noisy and fewer, or where nothing is kept.
        """
        gain, price = self.left, self._price_of_share
        if gain <= 0:
            return 0.0 if gain == price == 0 else math.inf
        root = _data_quantity(1, self.delta, self.log_class_size) * price / gain
        return root * root  # inf where it overflows, where ** would raise

    @property
    def break_even_kept_share(self) -> float:
        """The kept share r̂ at which ``margin`` is 0: it is above 0 for larger and below 0 for smaller shares.

        (q / (q + η(D̃) - η̂))², q = sqrt(2 (log|F| + log(2/δ)) / M); 1 where cleaning removes no noise, inf where it adds
        some, so that no share suffices. η̂ is held fixed, though other labels have another η̂, and not every share can
        have this one (``possible_noise``).
        """
        if self.left < 0:
            return math.inf
        quantity = _data_quantity(self.tokens, self.delta, self.log_class_size)
        root = quantity / (quantity + self.left)
        return root * root

    @property
    def _price_of_share(self) -> float:
        """sqrt(1/r̂) - 1."""
        return math.sqrt(1 / self.kept_share) - 1 if self.kept_share else math.inf


def possible_noise(eta_full: float, kept_share: float) -> tuple[float, float]:
    """The lowest and the highest η̂ that any labels with this η(D̃) and r̂ can have.

    With p = 1 - η(D̃) the share of valid tokens: |p - r̂| where the kept tokens are valid, or the valid ones kept, as far
    as their numbers allow, and min(p + r̂, 2 - p - r̂) where they overlap least. Eq. 6 requires η̂ <= η(D̃), hence it holds
    for no labels that keep less than 1 - 2η(D̃). Raises ValueError outside [0, 1].
    """
    valid, kept = 1 - _share("eta_full", eta_full), _share("kept_share", kept_share)
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
    valid, wrong = 1 - eta_full, _share("eta_cleaned", eta_cleaned)
    if not (lowest - _ROUNDING <= wrong <= highest + _ROUNDING and kept_share > 0 and valid > 0):
        return math.nan
    return min((wrong + abs(valid - kept_share)) / (2 * max(valid, kept_share)), 1.0)


def _data_quantity(tokens: float, delta: float, log_class_size: float) -> float:
    """sqrt(2 (log|F| + log(2/δ)) / M), the second term of the bounds; for |F| = 2 that of Eq. 5."""
    if not 0 < tokens < math.inf:
        raise ValueError(f"tokens must be a positive number, got {tokens:g}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta:g}")
    if not 0 <= log_class_size < math.inf:
        raise ValueError(f"log_class_size must be a finite number of at least 0, got {log_class_size:g}")
    return math.sqrt(2 * (log_class_size + math.log(2) - math.log(delta))) / math.sqrt(tokens)


def _share(name: str, value: float) -> float:
    """The value; ValueError unless it lies in [0, 1]."""
    if not 0 <= value <= 1:  # also False for NaN
        raise ValueError(f"{name} must lie in [0, 1], got {value:g}")
    return value
