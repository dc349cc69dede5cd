"""What a trainer fed its model, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

Row = tuple[tuple[int, ...], tuple[int, ...]]
"""A row's input_ids and labels."""

LENGTHS = (1377, 12, 1100, 30, 25, 7, 19, 1025, 40, 2, 64, 33)
"""Three rows are longer than 1,024 tokens, and one of them keeps tokens only after the first 1,024."""


def rows_fed(rows: Iterable[tuple[list[int], list[int]]]) -> Counter[Row]:
    """How often each row was fed as (input_ids, labels)."""
    return Counter((tuple(ids), tuple(labels)) for ids, labels in rows)


def trained_tokens(rows: Counter[Row]) -> int:
    """Tokens with a label, all rows together."""
    return sum(count * sum(label != -100 for label in labels) for (_, labels), count in rows.items())
