"""Arrays as short texts in JSON."""

from __future__ import annotations

import base64
import zlib

import numpy as np


def pack(values: np.ndarray) -> str:
    """The array, of any dtype and one dimension, as text: dtype, then the compressed bytes."""
    values = np.ascontiguousarray(values)
    kind = values.dtype.newbyteorder("<")
    compressed = zlib.compress(values.astype(kind).tobytes(), 9)
    return f"{kind.str}:{base64.b85encode(compressed).decode()}"


def unpack(text: str) -> np.ndarray:
    """What ``pack`` was given."""
    kind, _, content = text.partition(":")
    return np.frombuffer(zlib.decompress(base64.b85decode(content)), dtype=np.dtype(kind))
