"""Tokenized rows: a trainer's ids and labels in, ids and response flags out."""

from __future__ import annotations

import numpy as np

from tokenclean.pool.conversation import LabelledTokens
from tokenclean.pool.formats.field_types import Row, RowError, quote, read_list

UNTRAINED = -100
TOKEN_MASKS = ("loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "response_mask")
TOKEN_WEIGHTS = ("token_weight", "token_weights", "loss_weights", "loss_scale")


def parse_labelled_tokens(row: Row) -> LabelledTokens:
    """``input_ids`` and ``labels`` of a row, without the positions where ``attention_mask`` is 0 (padding).

    Each is a list of integers or its JSON text. ``labels[t]`` is -100 or ``input_ids[t]``: a label belongs to its own
    token, since only the model call shifts. Position 0 follows nothing, so it is never a target. In TOKEN_MASKS (0 and
    1) a 0 takes a label away, and so does a weight of 0 in TOKEN_WEIGHTS (numbers from −1 to 1), which are the tokens'
    loss weights. A token of negative weight is unlearned and no target, with a label or without; our own files give it
    the label -100. Without ``labels`` the masks alone say what is trained.

    Raises RowError, also where fewer than two tokens, or neither a target nor a token to unlearn, are left.
    """
    input_ids = _convert(_read_values(row, "input_ids"), "input_ids")
    length = len(input_ids)
    has_labels = row.get("labels") is not None or all(row.get(key) is None for key in TOKEN_MASKS)
    labels = _convert(_read_values(row, "labels", length), "labels") if has_labels else input_ids.copy()
    is_token = np.ones(length, bool)
    if row.get("attention_mask") is not None:
        is_token = _read_mask(row, "attention_mask", length)
        if not has_labels:
            labels[~is_token] = UNTRAINED
        _refuse(~is_token & (labels != UNTRAINED), "labels", labels, "-100 where attention_mask is 0")
    _refuse((input_ids < 0) & is_token, "input_ids", input_ids, "a token id of 0 or more")
    _check_labels(labels, input_ids)
    weight = _read_weights(row, length)
    is_response = (labels != UNTRAINED) & (weight > 0)
    for key in TOKEN_MASKS:
        if row.get(key) is not None:
            is_response &= _read_mask(row, key, length)
    input_ids, is_response, weight = input_ids[is_token], is_response[is_token], weight[is_token]
    weight[:1] = np.maximum(weight[:1], 0)  # the first token follows nothing, so it cannot be unlearned
    if len(input_ids) < 2:
        raise RowError(f"input_ids: expected at least 2 tokens, found {len(input_ids)}")
    is_response[0] = False
    is_unlearned = weight < 0
    if not (is_response | is_unlearned).any():
        raise RowError("labels: no target after position 0; expected at least one label other than -100")
    is_plain = (weight[is_response | is_unlearned] == 1).all()
    return LabelledTokens(input_ids, is_response, None if is_plain else weight)


def _check_labels(labels: np.ndarray, input_ids: np.ndarray) -> None:
    is_response = labels != UNTRAINED
    is_wrong = is_response & (labels != input_ids)
    if is_wrong.any():
        targets = np.flatnonzero(is_response[:-1])
        is_shifted = len(targets) and (labels[targets] == input_ids[targets + 1]).all()
        hint = "; every label is the id of the token after it: shifted by one?" if is_shifted else ""
        own = input_ids[is_wrong.argmax()]
        _refuse(is_wrong, "labels", labels, f"-100 or the id of its own token, {own}", hint)


def _refuse(is_wrong: np.ndarray, key: str, values: np.ndarray, expected: str, hint: str = "") -> None:
    """Raise RowError for the first value that is wrong, if there is one."""
    if is_wrong.any():
        position = is_wrong.argmax()
        raise RowError(f"{key}[{position}]: expected {expected}, found {values[position]}{hint}")


def _read_mask(row: Row, key: str, length: int) -> np.ndarray:
    """bool (L,) from numbers 0 and 1, or false and true."""
    values = _read_values(row, key, length)
    if not all(isinstance(value, bool) for value in values):
        integers = _convert(values, key)
        _refuse((integers != 0) & (integers != 1), key, integers, "0 or 1")
    return np.array(values, dtype=bool)


def _read_weights(row: Row, length: int) -> np.ndarray:
    """float32 (L,), the product of the row's token weights; 1 where it has none."""
    weight = np.ones(length, dtype=np.float32)
    for key in TOKEN_WEIGHTS:
        if row.get(key) is None:
            continue
        values = _read_values(row, key, length)
        for position, value in enumerate(values):
            if not isinstance(value, int | float) or isinstance(value, bool) or not -1 <= value <= 1:
                raise RowError(f"{key}[{position}]: expected a number from -1 to 1, found {quote(value)}")
        weight *= np.array(values, dtype=np.float32)
    return weight


def _read_values(row: Row, key: str, length: int | None = None) -> list[object]:
    """The list under ``key``. ``length``: the L it must have, that of ``input_ids``."""
    if row.get(key) is None:
        raise RowError(f"{key}: missing")
    values = read_list(row, key)
    if length is not None and len(values) != length:
        raise RowError(f"{key}: expected {length} numbers, as many as input_ids, found {len(values)}")
    return values


def _convert(values: list[object], key: str) -> np.ndarray:
    """int64 (L,) from a list of integers."""
    # numpy would take true for 1 and cut 1.5 to 1, so the types are looked at first.
    if set(map(type, values)) - {int}:
        position, value = next((n, value) for n, value in enumerate(values) if type(value) is not int)
        raise RowError(f"{key}[{position}]: expected an integer, found {quote(value)}")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        raise RowError(f"{key}: holds a number beyond 64 bits") from None
