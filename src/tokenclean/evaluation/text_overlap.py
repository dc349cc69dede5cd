"""chrF: how much of a text's character n-grams a reference text shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenclean.errors import needs_extra


def chrf_scores(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """chrF2 of each text against its one reference, in [0, 100], float64, shape (N,), by sacrebleu's defaults.

    For an interval give the scores, or the differences of two models' scores, to ``mean_interval``. Raises
    MissingExtraError without sacrebleu, ValueError for another number of references.
    """
    with needs_extra("sacrebleu", "lab", "chrF"):
        from sacrebleu.metrics.chrf import CHRF
    metric = CHRF()
    pairs = zip(texts, references, strict=True)
    return np.array([metric.sentence_score(text, [reference]).score for text, reference in pairs], dtype=np.float64)
