"""What a trainer fed its model, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

Row = tuple[tuple[int, ...], tuple[int, ...]]
"""A row's input_ids and labels."""

UNTRAINED, PADDING = -100, 0

LENGTHS = (1377, 12, 1100, 30, 25, 7, 19, 1025, 40, 2, 64, 33)
"""Three rows are longer than 1,024 tokens, and one of them keeps tokens only after the first 1,024."""


def rows_fed(rows: Iterable[tuple[list[int], list[int]]]) -> Counter[Row]:
    """How often each row was fed as (input_ids, labels)."""
    return Counter((tuple(ids), tuple(labels)) for ids, labels in rows)


def trained_tokens(rows: Counter[Row]) -> int:
    """Tokens with a label, all rows together."""
    return sum(count * sum(label != -100 for label in labels) for (_, labels), count in rows.items())


def rows_of_batch(
    batch: Mapping[str, list[list[int]]], column: str = "labels", empty: int = UNTRAINED
) -> Iterator[tuple[list[int], list[int]]]:
    """The rows of a batch as (input_ids, labels), without padding and taken out of their packs.

    Positions that begin at 0 again show a pack's rows; ``attention_mask`` shows padding, and so does a row of a pack
    that is nothing but PADDING without a label. ``column``: what to give beside the ids, ``empty``: its value for an
    untrained token. Raises AssertionError for padding that is trained.
    """
    for number, (ids, values) in enumerate(zip(batch["input_ids"], batch[column], strict=True)):
        length = len(ids)
        if "attention_mask" in batch:
            length = sum(value != 0 for value in batch["attention_mask"][number])
        assert all(value == empty for value in values[length:]), "padding is trained"
        positions = batch["position_ids"][number] if "position_ids" in batch else range(len(ids))
        starts = [place for place in range(length) if positions[place] == 0]
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            if any(token != PADDING for token in ids[start:end]) or any(v != empty for v in values[start:end]):
                yield ids[start:end], values[start:end]
