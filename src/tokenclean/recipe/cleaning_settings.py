"""The section ``cleaning`` of a recipe: which response tokens are kept."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tokenclean.recipe.base_settings import Section
from tokenclean.recipe.pool_settings import TrustedRows
from tokenclean.recipe.strategies import find_strategy


def _check_strategy(name: str) -> str:
    find_strategy(name)
    return name


def _check_proportion(value: object) -> object:
    """``auto``, or a number above 0 and at most 1, which may be a text of it."""
    if value == "auto":
        return value
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number <= 1:
        raise ValueError(f"expected a number greater than 0 and at most 1, or auto, found {value!r}")
    return number


StrategyName = Annotated[str, AfterValidator(_check_strategy)]


class NoiseMixtureSettings(Section):
    """A token comes from the model's distribution or is noise from the pool's unigram distribution; each row's noise
    rate is fitted by EM."""

    mode: Literal["online", "offline"] = "online"
    """Weigh tokens during training, by its own losses, or before it, by the losses of ``model.reference`` or the
    base."""
    with_repetition: bool = False
    """Let the strategy ``noise_mixture`` drop repeated passages too."""
    mean: float = Field(default=0.005, gt=0, lt=1)
    """Noise rate expected of a row (the mean of its prior)."""
    strength: float = Field(default=20, gt=0)
    """Number of tokens that this expectation counts as."""
    start: float = Field(default=0.1, gt=0, lt=1)
    """Noise rate from which EM starts."""
    iterations: int = Field(default=30, ge=1)
    """Iterations of EM."""


class RepetitionSettings(Section):
    """Response tokens inside an n-gram that many rows share are dropped."""

    n: int = Field(default=6, ge=1)
    """Length of the n-grams in tokens."""
    row_share: float = Field(default=0.03, ge=0, le=1)
    """An n-gram is repeated if at least this share of the rows with response tokens contains it."""
    minimum_rows: int = Field(default=3, ge=1)
    """An n-gram in fewer rows than this is never repeated."""


class CleaningSettings(Section):
    """Which response tokens are kept."""

    strategy: StrategyName = "self_evolving"
    """How tokens are chosen: a strategy of tokenclean or of an installed package by name, or module:function."""
    proportion: Annotated[float | Literal["auto"], BeforeValidator(_check_proportion)] = 0.6
    """Share of response tokens to keep: k of Eq. 4; ``auto`` finds it by trials."""
    level: Literal["global", "source"] = "global"
    """Rank the tokens of ``fixed_model`` and ``self_evolving`` over the whole pool, or within each source."""
    unit: Literal["token", "sentence", "row"] = "token"
    """Rank tokens by their own score, or all tokens of a sentence or a row by what they have together: the sum of their
    scores over the square root of their number."""
    splits: int = Field(default=5, ge=2)
    """Number of splits D̃_0 … D̃_T of the pool; D̃_0 warms up the reference."""
    split_kind: Literal["stratified", "contiguous"] = "stratified"
    """Draw each split with the same share of every source, or cut the pool in its order, as the paper does."""
    warmup: Literal["split", "ds2"] = "split"
    """Warm up the reference on a split like the others, or on the ``ds2_rows`` best-rated rows, which become D̃_0."""
    trusted: TrustedRows | None = None
    """File of conversations that somebody has checked, 50 to 200 of them: they become D̃_0, on which the reference is
    warmed up, and are kept whole. A source like those of ``pool.sources``, or just its path."""
    given: str | None = None
    """File of the scores or weights that the strategy ``given`` takes, by the ids of the rows."""
    ds2_rows: int = Field(default=10_000, ge=1)
    """Number of best-rated training rows that the strategy ``ds2`` trains on."""
    sample_weights: Literal["none", "rating"] = "none"
    """Weigh every token of a row by the row's curated label + 1, scaled to a mean of 1 over the training rows."""
    score_against: Literal["base", "previous"] = "base"
    """Score against θ_0 (the text of §4.3.2) or against θ_{t−1} (the listing of Algorithm 1)."""
    adapters: Literal["fresh", "one"] = "fresh"
    """Let each round of ``self_evolving`` train a fresh LoRA on top of the earlier ones, with its own optimizer and
    learning-rate schedule, or train one LoRA through all rounds, with one optimizer and one schedule."""
    stop_when: Literal["never", "held_out_loss_rises"] = "never"
    """Let ``self_evolving`` go through all splits, or stop at the first model that is worse on the held-out rows than
    the best before it, and return that best one."""
    allow_weak_reference: bool = False
    """Continue when a reference is not better than the base."""
    also: tuple[Literal["noise_mixture", "repetition"], ...] = ()
    """Further strategies whose dropped tokens ``rho``, ``fixed_model``, ``self_evolving``, ``influence``,
    ``noise_mixture`` or ``repetition`` drop too."""
    noise_mixture: NoiseMixtureSettings = NoiseMixtureSettings()
    repetition: RepetitionSettings = RepetitionSettings()

    @property
    def kept_proportion(self) -> float:
        """``proportion`` as a number. Raises ValueError where it is ``auto``, for which a run has to choose one."""
        if self.proportion == "auto":
            raise ValueError("cleaning.proportion is auto: a strategy of a run chooses it; name a number here")
        return self.proportion

    @model_validator(mode="after")
    def _check_ranks(self) -> CleaningSettings:
        record = find_strategy(self.strategy)
        if self.proportion == "auto" and (not record.ranks or record.level == "random"):
            raise ValueError(
                f"cleaning.proportion: auto tries proportions of a strategy that ranks tokens by scores, which "
                f"{self.strategy} does not; name one, such as fixed_model, or give a number"
            )
        if self.unit == "row" and record.level == "sample":
            raise ValueError(
                f"cleaning.unit: row gives all tokens of a row one score, but {self.strategy} ranks tokens within each "
                "row; take sentence, or fixed_model"
            )
        return self
