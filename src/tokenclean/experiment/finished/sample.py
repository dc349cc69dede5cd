"""One cleaned answer to look at: a typical row of those that a strategy drops tokens from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.report.viewer.terminal import token_labels, visible
from tokenclean.report.viewer.token_spans import SpanDecoder, TokenSpans

_LEAST_RESPONSE, _MOST_TOKENS = 20, 240


@dataclass(frozen=True)
class CleanedSample:
    """A row of T tokens. ``labels_T``: as of ``token_labels``; ``is_noise_T``: the planted truth, None if unknown."""

    row: int
    spans: TokenSpans
    labels_T: np.ndarray
    is_noise_T: np.ndarray | None = None

    def pieces(self) -> Iterator[tuple[str, str]]:
        """Text of neighbouring tokens of one label, and ``kept``, ``dropped`` or nothing for what is no response."""
        labels = (
            (int(self.labels_T[token:behind].max()), start, end) for token, behind, start, end in self.spans.spans()
        )
        for label, spans in groupby(labels, key=lambda span: span[0]):
            places = list(spans)
            yield visible(self.spans.text[places[0][1] : places[-1][2]]), ("", "dropped", "kept")[label]


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
