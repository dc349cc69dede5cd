"""Ragged: N rows of unequal length in one flat array, the form of every per-token column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import ArrayLike, DTypeLike


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of unequal length, stored flat.

    ``values``: 1-D numpy array of all T values, row after row. ``offsets``: int64, shape (N+1,), with
    ``offsets[0] == 0`` and ``offsets[-1] == T``; row i is ``values[offsets[i]:offsets[i + 1]]``.

    ``len(r)`` is N, ``r[i]`` a numpy view of row i, ``a - b`` the elementwise difference of two columns with
    equal offsets. Raises ValueError where shapes do not fit.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        offsets = np.asarray(self.offsets, dtype=np.int64)
        if values.ndim != 1 or offsets.ndim != 1 or len(offsets) == 0:
            raise ValueError(f"Ragged needs 1-D values and N+1 offsets, got shapes {values.shape} and {offsets.shape}")
        if offsets[0] != 0 or offsets[-1] != len(values) or np.any(np.diff(offsets) < 0):
            raise ValueError(
                f"Ragged offsets must rise from 0 to the number of values ({len(values)}), "
                f"got {offsets[0]} to {offsets[-1]}"
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", offsets)

    @classmethod
    def from_rows(cls, rows: Sequence[ArrayLike], dtype: DTypeLike | None = None) -> Ragged:
        """Build from one array a row; ``dtype`` is needed where there may be no value at all."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
        return cls(values if dtype is None else values.astype(dtype, copy=False), offsets_of(len(a) for a in arrays))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        row = int(row)
        count = len(self)
        if not -count <= row < count:
            raise IndexError(f"row {row} of a Ragged with {count} rows")
        row %= count
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __sub__(self, other: Ragged) -> Ragged:
        if not isinstance(other, Ragged):
            return NotImplemented
        self.check_aligned(other)
        return Ragged(self.values - other.values, self.offsets)

    def __repr__(self) -> str:
        return f"Ragged({len(self)} rows, {len(self.values)} values, {self.values.dtype})"

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row, int64, shape (N,)."""
        return np.diff(self.offsets)

    def check_aligned(self, other: Ragged) -> None:
        """Raise ValueError unless both have the same rows with the same lengths."""
        if np.array_equal(self.offsets, other.offsets):
            return
        if len(self) != len(other):
            raise ValueError(f"these columns have {len(self)} and {len(other)} rows; they must come from one pool")
        row = int(np.flatnonzero(self.lengths != other.lengths)[0])
        raise ValueError(
            f"these columns differ in row {row}: {self.lengths[row]} and {other.lengths[row]} tokens; "
            "they must come from one tokenization"
        )

    def row_of_value(self) -> np.ndarray:
        """Row number of each value, int64, shape (T,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def locate(self, index: int) -> tuple[int, int]:
        """Row number of the value at a flat index, and its position within that row."""
        row = int(np.searchsorted(self.offsets, index, side="right")) - 1
        return row, int(index - self.offsets[row])

    def row_sums(self) -> np.ndarray:
        """Sum of each row, float64, shape (N,); 0 for an empty row."""
        return np.bincount(self.row_of_value(), weights=self.values.astype(np.float64), minlength=len(self))

    def with_values(self, values: np.ndarray) -> Ragged:
        """The same rows with other values, shape (T,)."""
        return Ragged(values, self.offsets)

    def map_values(self, function: Callable[[np.ndarray], np.ndarray]) -> Ragged:
        """The same rows with ``function(values)``, which must keep the length."""
        return Ragged(function(self.values), self.offsets)

    def take(self, rows: Sequence[int] | np.ndarray) -> Ragged:
        """The given rows in the given order."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[rows]
        offsets = offsets_of(lengths)
        starts = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        return Ragged(self.values[starts + np.arange(offsets[-1])], offsets)

    def to_arrow(self) -> pa.LargeListArray:
        """As an Arrow ``large_list`` array (no copy of the values where Arrow allows it)."""
        import pyarrow as pa

        return pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(self.values))

    @classmethod
    def from_arrow(cls, array: pa.Array | pa.ChunkedArray) -> Ragged:
        """From an Arrow ``list`` or ``large_list`` array without nulls (ValueError otherwise)."""
        import pyarrow as pa

        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            raise ValueError(f"expected a list column, found {array.type}")
        values = array.flatten()
        if array.null_count or values.null_count:
            raise ValueError("a per-token column may not hold nulls")
        offsets = _to_numpy(array.offsets).astype(np.int64)
        return cls(_to_numpy(values), offsets - offsets[0])


def _to_numpy(array: pa.Array) -> np.ndarray:
    """The values of an array without nulls. Arrow's own ``to_numpy`` imports pandas, which takes .3 seconds."""
    import pyarrow as pa

    if pa.types.is_boolean(array.type):
        return np.from_dlpack(array.cast(pa.uint8())).view(bool)
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        values = np.from_dlpack(array)
        values.flags.writeable = False  # the memory is Arrow's
        return values
    return array.to_numpy(zero_copy_only=False)


def offsets_of(lengths: Iterable[int] | np.ndarray) -> np.ndarray:
    """Offsets (int64, N+1) of rows with the given lengths."""
    lengths = np.fromiter(lengths, dtype=np.int64) if not isinstance(lengths, np.ndarray) else lengths
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
