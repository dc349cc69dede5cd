"""How well a table's labels and scores find the tokens that people dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokenclean.errors import TableError
from tokenclean.ragged import Ragged
from tokenclean.selection.label_metrics import auroc
from tokenclean.token_table import TokenTable


@dataclass(frozen=True)
class Detection:
    """Of the response tokens that people decided. All shares lie in [0, 1] and are NaN where they are of nothing.

    ``tokens``: decided; ``noise``: of these, dropped by people. ``precision``: of the tokens that the table drops the
    share that people drop; ``recall``: of the tokens that people drop the share that the table drops; NaN for a table
    without labels. ``auroc``: probability that a token which people train has a higher score than one they drop, ties
    half; ``scored``: decided tokens that have a score.
    """

    tokens: int
    noise: int
    precision: float
    recall: float
    auroc: float
    scored: int


def measure_detection(table: TokenTable, decided: Ragged) -> Detection:
    """Compare a table with what people decided. ``decided``: float, aligned with the table, the weight of each decided
    token and NaN elsewhere (``ReviewedPool.decided``). Dropped means the weight 0.

    Labels are the table's ``is_kept``; scores its ``score``, else its ``weight``. Raises TableError for columns that
    are not aligned.
    """
    try:
        table["input_ids"].check_aligned(decided)
    except ValueError as error:
        raise TableError(f"the review is of other rows than the table: {error}") from error
    is_decided = ~np.isnan(decided.values) & table["is_response"].values
    is_noise = decided.values[is_decided] == 0
    precision = recall = math.nan
    if "is_kept" in table.columns:
        is_dropped = ~table["is_kept"].values[is_decided]
        found = int(np.count_nonzero(is_dropped & is_noise))
        precision, recall = (found / int(of.sum()) if of.any() else math.nan for of in (is_dropped, is_noise))
    name = next((name for name in ("score", "weight") if name in table.columns), None)
    scores = np.full(len(is_noise), np.nan) if name is None else table[name].values[is_decided].astype(np.float64)
    has_score = ~np.isnan(scores)
    area = auroc(scores[has_score], ~is_noise[has_score])
    return Detection(len(is_noise), int(is_noise.sum()), precision, recall, area, int(has_score.sum()))
