"""Which response tokens look like noise, by a mixture of two distributions whose share is estimated row by row.

Assumed of a response token x in row r: with chance 1 - ε_r the model's distribution generated it, given the tokens
before; with chance ε_r it is noise, drawn from the unigram distribution of the pool's response tokens whatever
stands before. So the rare word that fits its place is no noise, and the frequent one that does not fit is. What the
model finds likely although it is wrong (boilerplate, fluent errors) cannot be seen this way; for boilerplate see
``repetition``.

Nothing is cut at a fixed share: where losses speak of no noise, ε_r goes to its floor and all weights go to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenclean.errors import NonFiniteError
from tokenclean.ragged import Ragged, offsets_of
from tokenclean.selection.column_checks import check_ids, check_whole, response_indices

# Response tokens fitted together: rows are independent, and a block's arrays should stay in the processor's cache.
_BLOCK_TOKENS = 1 << 16

# exp of this and of its negative are ordinary float64; weights beyond it are 0 or 1 in float32.
_LARGEST_LOG_RATIO = 700.0


@dataclass(frozen=True)
class NoisePrior:
    """What is held of a row's noise rate before its tokens are seen. Raises ValueError outside the bounds."""

    mean: float = 0.005
    """m: the noise rate to expect, in (0, 1)."""
    strength: float = 20.0
    """n0 > 0: how many response tokens the expectation counts as."""
    start: float = 0.1
    """ε_r before the first iteration, in (0, 1)."""
    iterations: int = 30
    """EM iterations, at least 1."""

    def __post_init__(self) -> None:
        for name in ("mean", "start"):
            rate = getattr(self, name)
            if not 0 < rate < 1:  # also False for NaN
                raise ValueError(f"the {name} of a noise rate must lie between 0 and 1, got {rate}")
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be a positive number of tokens, got {self.strength}")
        check_whole("iterations", self.iterations)


DEFAULT_PRIOR = NoisePrior()
"""The constants of the pilot, set once and not tuned."""


@dataclass(frozen=True, eq=False)
class NoiseEstimate:
    """What ``token_posterior`` found."""

    weights: Ragged
    """Posterior that the token is not noise, float32 in [0, 1]; 0.0 outside the response."""
    row_rates: np.ndarray
    """ε_r, the estimated noise rate of each row, float64, shape (N,); NaN for a row without a response token."""


@dataclass(frozen=True, eq=False)
class NoiseRates:
    """Estimated shares of noise among response tokens; all lie in [0, 1], a share of nothing is NaN."""

    pool: float
    """Mean of 1 - w over all response tokens."""
    sources: dict[str, float]
    """The same within each source, in the order in which the sources first appear."""
    rows: np.ndarray
    """ε_r of each row, float64, shape (N,): NaN without a response token. The prior holds a short row's rate low."""

    def worst(self, count: int) -> list[tuple[int, float]]:
        """Up to ``count`` rows as (row number, ε_r), the highest rate first, ties by row number.

        A row without a response token is never among them. Raises ValueError for a negative ``count``.
        """
        if count < 0:
            raise ValueError(f"a number of rows cannot be negative, got {count}")
        rows = np.flatnonzero(~np.isnan(self.rows))
        rows = rows[np.argsort(-self.rows[rows], kind="stable")][:count]
        return list(zip(rows.tolist(), self.rows[rows].tolist(), strict=True))

    def as_document(self, worst: int = 20) -> dict[str, Any]:
        """For JSON: ``pool``, ``sources`` and the ``worst_rows``; a share of nothing is None."""
        return {
            "pool": _none_for_nan(self.pool),
            "sources": {name: _none_for_nan(rate) for name, rate in self.sources.items()},
            "worst_rows": [{"row": row, "rate": rate} for row, rate in self.worst(worst)],
        }


def surprisal_table(input_ids: Ragged, is_response: Ragged, vocabulary: int) -> np.ndarray:
    """Unigram surprisal of each id of the vocabulary in nats, float32, shape (``vocabulary``,).

    u(t) = -log((occurrences of t among the pool's response tokens + 1) / (response tokens + ``vocabulary``)), so an id
    that never occurs has a finite surprisal too. ``input_ids``: integers; ``is_response``: bool ỹ, same rows. Raises
    ValueError for columns that are not aligned or of another dtype, a vocabulary of no id, and an id outside the
    vocabulary, prompt tokens included.
    """
    places = response_indices(is_response, input_ids)
    _check_vocabulary(input_ids, vocabulary)
    counts = np.bincount(input_ids.values[places].astype(np.int64, copy=False), minlength=vocabulary)
    return (math.log(len(places) + vocabulary) - np.log(counts + 1)).astype(np.float32)


def unigram_surprisal(input_ids: Ragged, is_response: Ragged, vocabulary: int) -> Ragged:
    """Unigram surprisal u of each response token in nats, float32, aligned; NaN outside the response.

    Arguments, formula and errors are those of ``surprisal_table``.
    """
    table = surprisal_table(input_ids, is_response, vocabulary)
    surprisal = np.full(len(input_ids.values), np.nan, dtype=np.float32)
    surprisal[is_response.values] = table[input_ids.values[is_response.values]]
    return input_ids.with_values(surprisal)


def token_posterior(
    losses: Ragged, surprisal: Ragged, is_response: Ragged, prior: NoisePrior = DEFAULT_PRIOR
) -> NoiseEstimate:
    """The posterior of each response token that it is not noise, and each row's noise rate.

    w(t) = σ(logit(1 - ε_r) + u(t) - ℓ(t)), where ε_r comes by EM over the row's n response tokens: from
    ``prior.start``, ``prior.iterations`` times ε_r ← (Σ_t (1 - w(t)) + n0·m) / (n + n0). The weights belong to the last
    ε_r. A row without any sign of noise ends at n0·m / (n + n0), below the prior's mean.

    ``losses``: ℓ in nats under any model; ``surprisal``: u in nats (``unigram_surprisal``); ``is_response``: bool ỹ;
    all aligned, and values outside the response are never read. Rows do not bear on each other. Raises ValueError for
    columns that are not aligned or an ``is_response`` that is not bool, NonFiniteError for NaN or inf on a response
    token.
    """
    places = response_indices(is_response, losses, surprisal)
    row_R = is_response.row_of_value()[places]
    lengths = np.bincount(row_R, minlength=len(is_response))
    log_ratio = _finite("loss", losses, places) - _finite("unigram surprisal", surprisal, places)
    # How much likelier the token is as noise than as the model's: e^(ℓ - u).
    ratio_R = np.exp(np.clip(log_ratio, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))

    weights = np.zeros(len(is_response.values), dtype=np.float32)
    row_rates = np.empty(len(is_response))
    starts = offsets_of(lengths)
    for first, last in _row_blocks(starts):
        tokens = slice(starts[first], starts[last])
        row_rates[first:last], weights[places[tokens]] = _fit_rows(
            ratio_R[tokens], row_R[tokens] - first, lengths[first:last], prior
        )
    row_rates[lengths == 0] = np.nan
    return NoiseEstimate(is_response.with_values(weights), row_rates)


def noise_rates(estimate: NoiseEstimate, is_response: Ragged, sources: Sequence[str]) -> NoiseRates:
    """How much noise was found: in the pool, in each source and in each row.

    ``is_response`` as for ``token_posterior``; ``sources`` gives one name a row. Raises ValueError where these do not
    fit the estimate.
    """
    places = response_indices(is_response, estimate.weights)
    rows = len(is_response)
    if not len(sources) == len(estimate.row_rates) == rows:
        raise ValueError(
            f"sources and row rates must be one a row: got {len(sources)} and {len(estimate.row_rates)} for {rows} rows"
        )
    number_of = {name: number for number, name in enumerate(dict.fromkeys(sources))}
    source_N = np.array([number_of[name] for name in sources], dtype=np.int64)
    source_R = source_N[is_response.row_of_value()[places]]
    noise_R = 1.0 - estimate.weights.values[places].astype(np.float64)
    noise = np.bincount(source_R, weights=noise_R, minlength=len(number_of)).tolist()
    tokens = np.bincount(source_R, minlength=len(number_of)).tolist()
    return NoiseRates(
        pool=_share(float(noise_R.sum()), len(places)),
        sources={name: _share(noise[number], tokens[number]) for name, number in number_of.items()},
        rows=estimate.row_rates,
    )


def _fit_rows(
    ratio: np.ndarray, row: np.ndarray, lengths: np.ndarray, prior: NoisePrior
) -> tuple[np.ndarray, np.ndarray]:
    """ε_r of each row and w of each token, given e^(ℓ - u) and the row of each token, and the length of each row.

    In these terms w = (1 - ε) / ((1 - ε) + ε·e^(ℓ - u)), which neither overflows nor divides by zero: ε <= 1, and
    the ratio is finite and above 0.
    """
    rates = np.full(len(lengths), float(prior.start))
    for _ in range(prior.iterations):
        as_noise = rates[row] * ratio
        noise = as_noise / (as_noise + (1 - rates)[row])
        rates = np.bincount(row, weights=noise, minlength=len(lengths)) + prior.strength * prior.mean
        rates /= lengths + prior.strength
    as_model = (1 - rates)[row]
    return rates, as_model / (as_model + rates[row] * ratio)


def _row_blocks(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Consecutive rows (first, last + 1) with ``_BLOCK_TOKENS`` together, or one longer row; ``starts``: (N+1,)."""
    first, rows = 0, len(starts) - 1
    while first < rows:
        last = int(np.searchsorted(starts, starts[first] + _BLOCK_TOKENS, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _finite(name: str, column: Ragged, places: np.ndarray) -> np.ndarray:
    """The column's values at ``places`` as float64; NonFiniteError that names the first row where one is not finite."""
    values = column.values[places].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row, position = column.locate(places[bad[0]])
        raise NonFiniteError(
            f"the {name} of row {row}, position {position} is {values[bad[0]]}; {len(bad)} of {len(places)} response "
            f"tokens have no finite {name}. Usual causes: is_response True at position 0, a row was not scored, a "
            "model overflowed"
        )
    return values


def _check_vocabulary(input_ids: Ragged, vocabulary: int) -> None:
    check_ids(input_ids)
    check_whole("vocabulary", vocabulary)
    ids = input_ids.values
    if not len(ids) or (ids.min() >= 0 and ids.max() < vocabulary):
        return
    place = int(((ids < 0) | (ids >= vocabulary)).argmax())
    row, position = input_ids.locate(place)
    raise ValueError(
        f"row {row}, position {position} has id {ids[place]}, outside a vocabulary of {vocabulary}; give the number of "
        "ids of the tokenizer that made the pool's tokens"
    )


def _share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan


def _none_for_nan(rate: float) -> float | None:
    return None if math.isnan(rate) else rate
