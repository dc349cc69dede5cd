"""Rows that came tokenized: a trainer's ids and labels in, ids and response flags out."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenclean.pool.conversation import LabelledTokens
from tokenclean.pool.formats.fields import Row, RowError, quote, read_list

UNTRAINED = -100


def parse_labelled_tokens(row: Row) -> LabelledTokens:
    """``input_ids`` and ``labels`` of a row, without the positions where ``attention_mask`` is 0 (padding).

    Each is a list of integers, its JSON text, or an integer array (L,). ``labels[t]`` is -100 or ``input_ids[t]``: a
    label stands on its own token, since only the model call shifts. Position 0 follows nothing, so it is never a
    target. Raises RowError, also where fewer than two tokens or no target are left.
    """
    input_ids = _read_integers(row, "input_ids")
    labels = _read_integers(row, "labels", len(input_ids))
    is_token = np.ones(len(input_ids), bool)
    if row.get("attention_mask") is not None:
        is_token = _read_mask(row, labels)
    _check_ids(input_ids, is_token)
    _check_labels(labels, input_ids)
    input_ids, is_response = input_ids[is_token], labels[is_token] != UNTRAINED
    if len(input_ids) < 2:
        raise RowError(f"input_ids: expected at least 2 tokens, found {len(input_ids)}")
    is_response[0] = False
    if not is_response.any():
        raise RowError("labels: no target behind position 0; expected at least one label other than -100")
    return LabelledTokens(input_ids, is_response)


def _read_mask(row: Row, labels: np.ndarray) -> np.ndarray:
    """True (L,) where a position is a token, False where it is padding."""
    mask = _read_integers(row, "attention_mask", len(labels))
    if (position := _find_first((mask != 0) & (mask != 1))) is not None:
        raise RowError(f"attention_mask[{position}]: expected 0 or 1, found {mask[position]}")
    if (position := _find_first((mask == 0) & (labels != UNTRAINED))) is not None:
        raise RowError(f"labels[{position}]: expected -100 where attention_mask is 0, found {labels[position]}")
    return mask == 1


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
