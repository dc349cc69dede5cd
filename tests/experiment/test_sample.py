"""The one cleaned sample that is shown."""

from __future__ import annotations

import numpy as np

from tokenclean.experiment.finished.sample import choose_sample
from tokenclean.ragged import Ragged


def columns(*rows: tuple[int, int, int]) -> tuple[Ragged, Ragged, Ragged]:
    """Rows of (prompt tokens, kept ones, dropped ones)."""
    ids = [np.arange(1, sum(row) + 1) for row in rows]
    response = [np.repeat([False, True], [prompt, kept + dropped]) for prompt, kept, dropped in rows]
    is_kept = [np.repeat([False, True, False], [prompt, kept, dropped]) for prompt, kept, dropped in rows]
    return Ragged.from_rows(ids), Ragged.from_rows(response), Ragged.from_rows(is_kept)


def test_the_median_of_the_rows_that_lose_tokens(smollm2_tokenizer):
    from tokenclean.report.viewer.token_spans import SpanDecoder

    decoder = SpanDecoder(smollm2_tokenizer)
    ids, response, kept = columns((3, 30, 0), (3, 29, 1), (3, 20, 10), (3, 5, 25), (3, 300, 9), (3, 1, 2))
    sample = choose_sample(ids, response, kept, decoder)
    assert sample is not None
    assert sample.row == 2
    pieces = list(sample.pieces())
    assert [label for _, label in pieces] == ["", "kept", "dropped"]
    assert "".join(text for text, _ in pieces).replace("\\", "") != ""

    is_noise = response.with_values(np.zeros(len(response.values), dtype=bool))
    is_noise.values[int(is_noise.offsets[1]) + 5] = True
    assert choose_sample(ids, response, kept, decoder, is_noise).row == 1
    assert choose_sample(*columns((3, 30, 0)), decoder) is None
