"""Loss weights given by a row, a message or a part of one: how much each of its tokens counts in training.

===============================  ==============================================================================
key                              value
===============================  ==============================================================================
``train``, ``training``          true or false, or a number from −1 to 1 (axolotl)
``loss``                         true or false, or 1 and 0 (ms-swift); another number may be a measured loss
``weight``                       a number from −1 to 1 (OpenAI: 1 or 0)
``loss_weight``, ``loss_scale``  a number from −1 to 1 (LLaMA-Factory v1, ms-swift); also ``sample_weight``
``mask``                         true: not trained, false: trained
``train_detail``                 list of ``{begin_offset, end_offset, train}``, characters of the content, the last
                                 one included (axolotl); also ``training_detail``
===============================  ==============================================================================

A negative weight asks the model to unlearn: training raises the loss of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tokenclean.pool.formats.field_types import Row, RowError, check_object, holds_nothing, quote

if TYPE_CHECKING:
    from tokenclean.pool.formats.row_options import RowContext

FLAG_KEYS = ("train", "training", "loss", "mask")
NUMBER_KEYS = ("weight", "loss_weight", "loss_scale", "sample_weight")
DETAIL_KEYS = ("train_detail", "training_detail")
WEIGHT_KEYS = (*FLAG_KEYS, *NUMBER_KEYS, *DETAIL_KEYS)
_STATING_KEYS = frozenset((*FLAG_KEYS, *NUMBER_KEYS))

Span = tuple[int, int, float]
"""Characters [start, end) of a content, and their weight."""


def read_weight(row: Row, where: str) -> float | None:
    """The weight that the keys of ``row`` (a message, a part, a row) give together; None where they give none.

    ``where``: path to the keys. Raises RowError for a value that is no weight, and where two keys disagree.
    """
    if _STATING_KEYS.isdisjoint(row):
        return None
    prefix = f"{where}: " if where else ""
    flags, weights = _read_all(row, where, FLAG_KEYS), _read_all(row, where, NUMBER_KEYS)
    for stated in (flags, weights):
        if len(set(stated.values())) > 1:
            raise RowError(f"{prefix}{' and '.join(stated)} disagree on the weight of the text")
    if not flags or not weights:
        return next(iter((flags or weights).values()), None)
    flag, weight = next(iter(flags.values())), next(iter(weights.values()))
    if (flag == 0) != (weight == 0):
        raise RowError(f"{prefix}{' and '.join((*flags, *weights))} disagree on whether the text is trained")
    return flag * weight


def read_details(row: Row, length: int, weight: float, where: str, context: RowContext) -> tuple[Span, ...]:
    """The spans that ``train_detail`` gives for a content of ``length`` characters, in order.

    ``weight``: the weight of trained spans. Raises RowError for a span outside the content, or two that overlap.
    """
    key = next((key for key in DETAIL_KEYS if row.get(key) is not None), None)
    if key is None:
        return ()
    spans: list[Span] = []
    for index, detail in enumerate(context.read_list(row, key, f"{where}.")):
        place = f"{where}.{key}[{index}]"
        detail = check_object(detail, place)
        first, last = (_read_offset(detail, name, place) for name in ("begin_offset", "end_offset"))
        if not 0 <= first <= last < length:
            raise RowError(
                f"{place}: expected 0 <= begin_offset <= end_offset < {length}, the content's length, found "
                f"{first} and {last}"
            )
        stated = read_weight({"train": detail.get("train")}, place)
        spans.append((first, last + 1, weight * (1.0 if stated is None else stated)))
    spans.sort()
    if any(after[0] < before[1] for before, after in pairwise(spans)):
        raise RowError(f"{where}.{key}: two spans overlap")
    return tuple(spans)


def _read_all(row: Row, where: str, keys: Sequence[str]) -> dict[str, float]:
    """Key -> weight, for the keys that have a value."""
    prefix = f"{where}." if where else ""
    return {key: _read_one(row[key], key, f"{prefix}{key}") for key in keys if not holds_nothing(row.get(key))}


def _read_one(value: object, key: str, place: str) -> float:
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, bool):
        return float(value != (key == "mask"))
    if key == "mask":
        raise RowError(f"{place}: expected true (not trained) or false (trained), found {quote(value)}")
    if not isinstance(value, int | float):
        expected = "true or false" if key in FLAG_KEYS else "a number from -1 to 1"
        raise RowError(f"{place}: expected {expected}, found {quote(value)}")
    if key == "loss" and value not in (0, 1):
        raise RowError(
            f"{place}: expected true or false, found {quote(value)}; "
            "a weight is named loss_weight, a measured loss can be ignored",
            "--ignore loss",
        )
    if not -1 <= value <= 1:  # NaN too
        raise RowError(f"{place}: expected a number from -1 to 1, found {quote(value)}")
    return float(value)


def _from_text(text: str) -> object:
    """The value of a CSV cell: true, false or a number; else the text itself."""
    word = text.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    try:
        return float(word)
    except ValueError:
        return text


def _read_offset(detail: Row, key: str, place: str) -> int:
    value = detail.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowError(f"{place}.{key}: expected a number of characters, found {quote(value)}")
    return value
