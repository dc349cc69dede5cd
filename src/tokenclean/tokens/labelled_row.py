"""A conversation in tokens with its training targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenclean.tokens.rendered_text import ContentSpan


@dataclass(frozen=True)
class LabelledRow:
    """One conversation in tokens, L of them.

    ``input_ids``: int64 (L,). ``is_response``: bool (L,), never True at position 0, which has no loss. ``spans``: int32
    (L, 2), the characters of each token. ``reason``: why there is no target, empty if there is one. ``weight``:
    float32 (L,), loss weight of each target, above 0 and at most 1, of a token to unlearn, which is no target, below 0
    and at least −1, and 0 elsewhere; None if all targets weigh 1 and no token is unlearned.
    """

    input_ids: np.ndarray
    is_response: np.ndarray
    spans: np.ndarray
    contents: tuple[ContentSpan, ...] = ()
    is_truncated: bool = False
    reason: str = ""
    weight: np.ndarray | None = None


def empty_row(reason: str) -> LabelledRow:
    """A row without tokens."""
    return LabelledRow(np.empty(0, np.int64), np.empty(0, np.bool_), np.empty((0, 2), np.int32), reason=reason)
