"""The threshold of Eq. 4: which response tokens keep their label, given their scores.

``streamed_ranking`` follows the same rule for ties over scores that need not fit in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.selection.response_tokens import finite_values, on_response, response_indices
from tokenclean.selection.sortable_keys import random_keys

Level = Literal["global", "sample", "source", "random"]


def kept_count(total: int, proportion: float) -> int:
    """How many of ``total`` tokens the selected token proportion keeps (k% of Eq. 4).

    ``int(total * proportion)`` with the product in float64, truncated: 0.7 of 90 is 62, since 90 * 0.7 is
    62.99999999999999. Every level and every streaming path uses this count. Raises ValueError unless
    0 <= ``proportion`` <= 1 and ``total`` >= 0.
    """
    check_proportion(proportion)
    if total < 0:
        raise ValueError(f"a number of tokens cannot be negative, got {total}")
    return int(int(total) * float(proportion))


def lowest_kept(scores: Ragged | None, kept: Ragged) -> float | None:
    """The threshold τ of Eq. 4: the lowest score that was kept (nats); None without scores."""
    if scores is None:
        return None
    values = scores.values[kept.values]
    values = values[np.isfinite(values)]  # a warm-up split is kept whole, without scores
    # -0.0 + 0.0 is +0.0: the two are equal, so which of them is the minimum depends on their order.
    return float(values.min()) + 0.0 if len(values) else None


def select_tokens(
    scores: Ragged | None,
    is_response: Ragged,
    *,
    proportion: float,
    level: Level = "global",
    sources: Sequence[str] | None = None,
    seed: int | None = None,
) -> Ragged:
    """Cleaned token labels ŷ (Eq. 4): of each group of response tokens, the ``kept_count`` with the highest scores.

    ``scores``: Eq. 3, one number a token (higher is better), ranked in their own dtype; values on tokens outside the
    response are never read and may be NaN. ``is_response``: bool ỹ, same rows. Returns a bool column aligned with
    ``is_response``; a token outside the response is never kept. Equal scores (-0.0 equals +0.0) go to the earlier
    (row, position).

    ``level`` says what a group is:

    - ``global``: all rows together, so a row may lose every token (the paper's, section 4.3.1);
    - ``sample``: each row (RHO, Lin et al. 2024);
    - ``source``: all rows with the same name in ``sources``, which gives one name a row;
    - ``random``: all rows together, drawn uniformly without replacement from ``seed``; ``scores`` is ignored and may be
      None. With one seed, a larger proportion keeps a superset.

    Raises ValueError for columns that are not aligned, an ``is_response`` that is not bool, an unknown level, a
    proportion outside [0, 1] or a missing argument; NonFiniteError for NaN or inf on a response token.
    """
    check_level(level)
    check_proportion(proportion)
    at_response = response_indices(is_response)
    if level == "random":
        scores_R = random_keys(check_seed(seed), 0, len(at_response))
    else:
        scores_R = _response_scores(scores, is_response, at_response)

    if level == "sample":
        row_R = is_response.row_of_value()[at_response]
        kept_R = _keep_top_of_groups(scores_R, np.bincount(row_R, minlength=len(is_response)), proportion)
    elif level == "source":
        source_R = _source_numbers(sources, len(is_response))[is_response.row_of_value()[at_response]]
        # A stable order keeps (row, position) inside each source, so ties are broken as they are globally.
        by_source = np.argsort(source_R, kind="stable")
        kept_R = np.empty(len(at_response), dtype=bool)
        kept_R[by_source] = _keep_top_of_groups(scores_R[by_source], np.bincount(source_R), proportion)
    else:
        kept_R = _keep_top(scores_R, kept_count(len(scores_R), proportion))
    return on_response(is_response, kept_R)


def _keep_top(scores: np.ndarray, count: int) -> np.ndarray:
    """True on the ``count`` highest scores along the last axis, ties to the lower index; O(n), bool, same shape."""
    if count == 0:
        return np.zeros(scores.shape, dtype=bool)
    at_threshold = scores.shape[-1] - count
    threshold = np.partition(scores, at_threshold, axis=-1)[..., at_threshold, None]
    is_above = scores > threshold
    is_tied = scores == threshold
    room_for_tied = count - is_above.sum(axis=-1, keepdims=True)
    return is_above | (is_tied & (np.cumsum(is_tied, axis=-1) <= room_for_tied))


def _keep_top_of_groups(scores: np.ndarray, sizes: np.ndarray, proportion: float) -> np.ndarray:
    """``_keep_top`` of each group of consecutive ``scores``; ``sizes`` (int) sum to the number of scores."""
    is_kept = np.zeros(len(scores), dtype=bool)
    starts = np.cumsum(sizes) - sizes
    # Groups of one size keep the same number, so they are ranked together as one matrix; rows have few distinct sizes.
    for size in np.unique(sizes).tolist():
        group_G_S = starts[sizes == size, None] + np.arange(size)
        is_kept[group_G_S] = _keep_top(scores[group_G_S], kept_count(size, proportion))
    return is_kept


def _response_scores(scores: Ragged | None, is_response: Ragged, at_response: np.ndarray) -> np.ndarray:
    """The scores of the response tokens, after checking that they can be ranked."""
    if scores is None:
        raise ValueError("scores are needed at every level except 'random'")
    is_response.check_aligned(scores)
    if scores.values.dtype.kind not in "iuf":
        raise ValueError(f"scores must be real numbers, got a column of {scores.values.dtype}")
    return finite_values("score", scores, at_response)


def check_level(level: str) -> None:
    """Raise ValueError, which lists the levels, for an unknown one."""
    if level not in get_args(Level):
        raise ValueError(f"unknown selection level {level!r}; known levels: {', '.join(get_args(Level))}")


def check_seed(seed: int | None) -> int:
    """The seed of level ``random``; ValueError without one."""
    if seed is None:
        raise ValueError("level 'random' needs a seed, for example seed=42")
    return seed


def _source_numbers(sources: Sequence[str] | None, rows: int) -> np.ndarray:
    """A number for each row's source, int64, shape (N,)."""
    if sources is None:
        raise ValueError("level 'source' needs sources, one name a row")
    if len(sources) != rows:
        raise ValueError(f"sources must give one name a row: got {len(sources)} names for {rows} rows")
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in sources], dtype=np.int64)


def check_proportion(proportion: float) -> None:
    """Raise ValueError unless the selected token proportion lies in [0, 1]."""
    if not 0.0 <= proportion <= 1.0:  # also False for NaN
        raise ValueError(f"the selected token proportion must lie in [0, 1], got {proportion}")
