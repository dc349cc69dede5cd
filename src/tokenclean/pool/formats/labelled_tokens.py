"""Rows that came tokenized: a trainer's ids and labels in, ids and response flags out."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenclean.pool.conversation import LabelledTokens
from tokenclean.pool.formats.field_types import Row, RowError, quote, read_list

UNTRAINED = -100
TOKEN_MASKS = ("loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "response_mask")
TOKEN_WEIGHTS = ("token_weight", "token_weights", "loss_weights", "loss_scale")


def parse_labelled_tokens(row: Row) -> LabelledTokens:
    """``input_ids`` and ``labels`` of a row, without the positions where ``attention_mask`` is 0 (padding).

    Each is a list of integers, its JSON text, or an integer array (L,). ``labels[t]`` is -100 or ``input_ids[t]``: a
    label stands on its own token, since only the model call shifts. Position 0 follows nothing, so it is never a
    target. Of TOKEN_MASKS (0 and 1) a 0 takes a label away, and so does a weight of 0 among TOKEN_WEIGHTS (numbers
    from 0 to 1), which are the tokens' loss weights. Without ``labels`` the masks alone say what is trained.

    Raises RowError, also where fewer than two tokens or no target are left.
    """
    input_ids = _read_integers(row, "input_ids")
    if row.get("labels") is None and any(row.get(key) is not None for key in TOKEN_MASKS):
        labels = input_ids.copy()  # the masks say what is trained
    else:
        labels = _read_integers(row, "labels", len(input_ids))
    is_token = np.ones(len(input_ids), bool)
    if row.get("attention_mask") is not None:
        is_token = _read_mask(row, "attention_mask", len(labels))
        labels = labels if row.get("labels") is not None else np.where(is_token, labels, UNTRAINED)
        if (position := _find_first(~is_token & (labels != UNTRAINED))) is not None:
            found = f"expected -100 where attention_mask is 0, found {labels[position]}"
            raise RowError(f"labels[{position}]: {found}")
    _check_ids(input_ids, is_token)
    _check_labels(labels, input_ids)
    weight = _read_weights(row, len(input_ids))
    is_response = (labels != UNTRAINED) & (weight > 0)
    for key in TOKEN_MASKS:
        if row.get(key) is not None:
            is_response &= _read_mask(row, key, len(input_ids))
    input_ids, is_response, weight = input_ids[is_token], is_response[is_token], weight[is_token]
    if len(input_ids) < 2:
        raise RowError(f"input_ids: expected at least 2 tokens, found {len(input_ids)}")
    is_response[0] = False
    if not is_response.any():
        raise RowError("labels: no target behind position 0; expected at least one label other than -100")
    return LabelledTokens(input_ids, is_response, None if (weight[is_response] == 1).all() else weight)


def _read_mask(row: Row, key: str, length: int) -> np.ndarray:
    """bool (L,) from numbers 0 and 1, or false and true."""
    values = row[key] if isinstance(row[key], np.ndarray) else read_list(row, key)
    if isinstance(values, list) and values and all(isinstance(value, bool) for value in values):
        values = np.array(values)
    if isinstance(values, np.ndarray) and values.dtype == np.bool_:
        values = values.astype(np.int64)
    mask = _read_integers({key: values}, key, length)
    if (position := _find_first((mask != 0) & (mask != 1))) is not None:
        raise RowError(f"{key}[{position}]: expected 0 or 1, found {mask[position]}")
    return mask == 1


def _read_weights(row: Row, length: int) -> np.ndarray:
    """float32 (L,), the product of the row's token weights; 1 where it has none."""
    weight = np.ones(length, dtype=np.float32)
    for key in TOKEN_WEIGHTS:
        if row.get(key) is None:
            continue
        values = row[key] if isinstance(row[key], np.ndarray) else read_list(row, key)
        if len(values) != length:
            raise RowError(f"{key}: expected {length} numbers, as many as input_ids, found {len(values)}")
        wrong = next((i for i, v in enumerate(values) if not _is_number(v) or not 0 <= v <= 1), None)
        if wrong is not None:
            raise RowError(f"{key}[{wrong}]: expected a number from 0 to 1, found {quote(values[wrong])}")
        weight *= np.asarray(values, dtype=np.float32)
    return weight


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _check_ids(input_ids: np.ndarray, is_token: np.ndarray) -> None:
    if (position := _find_first((input_ids < 0) & is_token)) is not None:
        raise RowError(f"input_ids[{position}]: expected a token id of 0 or more, found {input_ids[position]}")


def _check_labels(labels: np.ndarray, input_ids: np.ndarray) -> None:
    is_response = labels != UNTRAINED
    position = _find_first(is_response & (labels != input_ids))
    if position is None:
        return
    targets = np.flatnonzero(is_response[:-1])
    hint = ""
    if len(targets) and (labels[targets] == input_ids[targets + 1]).all():
        hint = "; every label is the id of the token after it: shifted by one?"
    raise RowError(
        f"labels[{position}]: expected -100 or the id of its own token, {input_ids[position]}, "
        f"found {labels[position]}{hint}"
    )


def _read_integers(row: Row, key: str, length: int | None = None) -> np.ndarray:
    """int64 (L,) from the list or array under ``key``. ``length``: the L it must have, that of ``input_ids``."""
    if row.get(key) is None:
        raise RowError(f"{key}: missing")
    values = row[key]
    if not isinstance(values, np.ndarray):
        values = read_list(row, key)
    if length is not None and len(values) != length:
        raise RowError(f"{key}: expected {length} numbers, as many as input_ids, found {len(values)}")
    return _convert_array(values, key) if isinstance(values, np.ndarray) else _convert_list(values, key)


def _convert_list(values: list[Any], key: str) -> np.ndarray:
    # numpy would take true for 1 and cut 1.5 to 1, so the types are looked at first.
    wrong = {kind for kind in set(map(type, values)) if kind is not int and not issubclass(kind, np.integer)}
    if wrong:
        position, value = next((i, value) for i, value in enumerate(values) if type(value) in wrong)
        raise RowError(f"{key}[{position}]: expected an integer, found {quote(value)}")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        raise RowError(f"{key}: holds a number beyond 64 bits") from None


def _convert_array(values: np.ndarray, key: str) -> np.ndarray:
    if values.ndim == 1 and values.dtype.kind == "O":
        return _convert_list(values.tolist(), key)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise RowError(f"{key}: expected a list of integers, found an array {values.shape} of {values.dtype}")
    if values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any():
        raise RowError(f"{key}: holds a number beyond 64 bits")
    return values.astype(np.int64)


def _find_first(flags: np.ndarray) -> int | None:
    """Index of the first True."""
    return int(flags.argmax()) if flags.any() else None
