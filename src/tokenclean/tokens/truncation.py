"""The cut of rows at ``tokens.max_length``."""

from __future__ import annotations

import numpy as np

from tokenclean.tokens.labelled_row import LabelledRow


def cut_row(row: LabelledRow, max_length: int) -> LabelledRow:
    """Its first ``max_length`` tokens, the first of them no target; with the reason where no target is left."""
    is_truncated = len(row.input_ids) > max_length
    labels = row.is_response[:max_length].copy()
    labels[:1] = False
    weight, is_trained = None, labels
    if row.weight is not None:
        is_trained = labels | (row.weight[:max_length] < 0)
        is_trained[:1] = False
        weight = np.where(is_trained, row.weight[:max_length], 0).astype(np.float32)
    reason = ""
    if not is_trained.any():
        reason = f"no target is left after the cut at {max_length} tokens" if is_truncated else "no target"
    return LabelledRow(
        row.input_ids[:max_length], labels, row.spans[:max_length], row.contents, is_truncated, reason, weight
    )
