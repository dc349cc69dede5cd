"""Unsigned integers in the order of the scores, for scores of any dtype, or in random order."""

from __future__ import annotations

import numpy as np


def order_keys(scores: np.ndarray) -> np.ndarray:
    """Keys that rise where the scores rise and are equal where the scores are (-0.0 and +0.0 too), same shape.

    ``scores``: finite real numbers of any dtype. float32 gives uint32, all others give uint64. All bits of
    a negative float are flipped, and only the sign of a positive one. Raises ValueError for a dtype without an order.
    """
    kind = scores.dtype.kind
    if kind == "u":
        return scores.astype(np.uint64, copy=False)
    if kind == "i":
        return scores.astype(np.int64, copy=False).view(np.uint64) ^ np.uint64(1 << 63)
    if kind != "f":
        raise ValueError(f"scores must be real numbers, got {scores.dtype}")
    if scores.dtype != np.float32:
        scores = scores.astype(np.float64, copy=False)
    signed, unsigned = (np.int32, np.uint32) if scores.dtype == np.float32 else (np.int64, np.uint64)
    top_bit = 8 * scores.itemsize - 1
    signs = (scores.view(signed) >> top_bit).view(unsigned)  # all bits of a negative score, none of a positive one
    below_zero = unsigned((1 << top_bit) - 1)
    signs |= ~below_zero  # and the top bit, which is flipped in every score
    keys = scores.view(unsigned) ^ signs
    keys += keys == below_zero  # the key of -0.0, one below that of +0.0, which it must equal
    return keys


def score_of_key(key: int, dtype: np.dtype) -> float:
    """The score (of that dtype) whose ``order_keys`` is ``key``; +0.0 for a zero."""
    if dtype.kind == "u":
        return float(key)
    if dtype.kind == "i":
        return float(key - (1 << 63))
    bits, unsigned, floating = (32, np.uint32, np.float32) if dtype == np.float32 else (64, np.uint64, np.float64)
    top = 1 << (bits - 1)
    return float(np.array([key ^ top if key & top else key ^ (2 * top - 1)], dtype=unsigned).view(floating)[0])


def random_keys(seed: int, start: int, stop: int) -> np.ndarray:
    """Random keys (uint64) of tokens ``start`` to ``stop`` (exclusive); the highest are a uniform draw without
    replacement.

    Raw PCG64 output, since numpy keeps that stream the same in all versions but not that of ``Generator.choice``. Any
    part of the stream is drawn without the ones before it.
    """
    return np.asarray(np.random.PCG64(seed).advance(start).random_raw(stop - start), dtype=np.uint64)
