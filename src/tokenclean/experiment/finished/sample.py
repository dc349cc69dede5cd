"""One cleaned answer to look at: a typical row of those that a strategy drops tokens from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.report.viewer.terminal import token_labels
from tokenclean.report.viewer.token_spans import SpanDecoder, TokenSpans

_LEAST_RESPONSE, _MOST_TOKENS = 20, 240


@dataclass(frozen=True)
class CleanedSample:
    """A row of T tokens. ``labels_T``: as of ``token_labels``; ``is_noise_T``: the planted truth, None if unknown."""

    row: int
    spans: TokenSpans
    labels_T: np.ndarray
    is_noise_T: np.ndarray | None = None


def choose_sample(
    input_ids: Ragged, is_response: Ragged, is_kept: Ragged, decoder: SpanDecoder, is_noise: Ragged | None = None
) -> CleanedSample | None:
    """The row with the median share of dropped tokens among those of 20 to 240 tokens that lose some; None for none.

    ``is_noise``: rows with such tokens are preferred. All columns are aligned.
    """
    responses, kept, lengths = is_response.row_sums(), is_kept.row_sums(), input_ids.lengths
    fits = (responses >= _LEAST_RESPONSE) & (lengths <= _MOST_TOKENS) & (kept < responses)
    if is_noise is not None and (fits & (is_noise.row_sums() > 0)).any():
        fits &= is_noise.row_sums() > 0
    rows = np.flatnonzero(fits)
    if not len(rows):
        return None
    share = 1 - kept[rows] / responses[rows]
    row = int(rows[np.argsort(share, kind="stable")[len(rows) // 2]])
    labels_T = token_labels(is_response[row], is_kept[row])
    return CleanedSample(row, decoder.decode(input_ids[row]), labels_T, None if is_noise is None else is_noise[row])
