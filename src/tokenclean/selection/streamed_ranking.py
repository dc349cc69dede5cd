"""Eq. 4 over scores that need not fit in memory: the exact global cut, and the kept mask of each part.

Scores are ranked by their keys, unsigned integers in the same order (``order_keys``); at level ``random`` by random
keys (``random_keys``). Keys come in pool order, a chunk at a time. The result is that of ``select_tokens`` at the
global level: exactly ``kept_count(total, proportion)`` tokens are kept, everything above the threshold and then the
first equal keys.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from tokenclean.errors import RunFolderError
from tokenclean.selection.ranking import kept_count
from tokenclean.store.files import disk_refusal

CHUNK_KEYS = 1 << 17
"""Keys processed together: enough to hide Python's overhead, few enough to stay in the processor's cache."""

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS


@dataclass(frozen=True)
class Cut:
    """Where Eq. 4 cuts: keep each key above ``threshold`` and the first ``ties`` that equal it, in pool order."""

    threshold: int
    """The lowest kept key; the highest possible key when nothing is kept."""
    ties: int
    """How many of the keys equal to ``threshold`` are kept."""
    total: int
    """Number of keys (response tokens)."""
    kept: int
    """Number of kept keys, ``kept_count(total, proportion)``."""


def find_cut(passes: Callable[[], Iterable[np.ndarray]], proportion: float, *, bits: int) -> Cut:
    """The cut that keeps the selected token ``proportion`` of all keys, by a radix select in 3 MiB of memory.

    ``passes`` gives all keys (uint32 or uint64, that is 32 or 64 ``bits``) in chunks, the same at every call. Each call
    settles 16 bits of the threshold, from the top downwards, with a histogram of the keys that begin with the bits
    settled before. Raises ValueError unless 0 <= ``proportion`` <= 1.
    """
    threshold = ties = total = kept = 0
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        is_first = shift == bits - _DIGIT_BITS
        counts = np.zeros(_DIGITS, dtype=np.int64)
        for keys in passes():
            left = keys if is_first else keys[keys >> (shift + _DIGIT_BITS) == threshold]
            counts += np.bincount(((left >> shift) & (_DIGITS - 1)).astype(np.intp), minlength=_DIGITS)
        if is_first:
            total = int(counts.sum())
            kept = ties = kept_count(total, proportion)
            if not kept:
                return Cut((1 << bits) - 1, 0, total, 0)
        from_top = np.cumsum(counts[::-1])
        digit = _DIGITS - 1 - int(np.searchsorted(from_top, ties))
        ties -= int(from_top[_DIGITS - 1 - digit] - counts[digit])
        threshold = threshold << _DIGIT_BITS | digit
    return Cut(threshold, ties, total, kept)


def mask_of(keys: np.ndarray, cut: Cut, ties_taken: int = 0) -> tuple[np.ndarray, int]:
    """Which of the next ``keys`` in pool order the cut keeps: bool, same shape. Any number may be given at a time.

    ``ties_taken``: how many keys equal to the threshold earlier calls kept; returned with those of this call added.
    """
    is_kept = keys > cut.threshold
    room = cut.ties - ties_taken
    if room > 0:
        tied = np.flatnonzero(keys == cut.threshold)[:room]
        is_kept[tied] = True
        ties_taken += len(tied)
    return is_kept, ties_taken


class StoredKeys:
    """The keys of each group, in an unnamed temporary file that exists until the ``with`` block ends.

    ``beside``: a file in the folder to use; the folder is created with the first key. The file is read in chunks, not
    memory-mapped, since mapped pages would count as the process's memory. Raises RunFolderError where it cannot be
    written.
    """

    def __init__(self, beside: Path | str) -> None:
        self._beside = Path(beside)
        self._file: FileIO | None = None
        self._end_bytes = 0
        self._places: dict[int, list[tuple[int, int]]] = {}
        self.dtype = np.dtype(np.uint32)

    def __enter__(self) -> StoredKeys:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, group: int, keys: np.ndarray) -> None:
        """Add the next keys of a group: 1-D, of one dtype in all groups."""
        places = self._places.setdefault(group, [])
        if not len(keys):
            return
        self.dtype = keys.dtype
        try:
            self._write(np.ascontiguousarray(keys).data.cast("B"))
        except OSError as error:
            refusal = disk_refusal(error) or error.strerror or error
            raise RunFolderError(f"cannot write scores beside {self._beside}: {refusal}") from error
        start, self._end_bytes = self._end_bytes, self._end_bytes + keys.nbytes
        if places and places[-1][1] == start:
            start, _ = places.pop()
        places.append((start, self._end_bytes))

    @property
    def groups(self) -> list[int]:
        """The groups, in the order in which they were first added to."""
        return list(self._places)

    def chunks(self, group: int) -> Iterator[np.ndarray]:
        """The keys of a group in the order in which they were added. Raises RunFolderError for a file that lost its
        end."""
        if self._file is None:
            return
        for start, end in self._places[group]:
            for place in range(start, end, CHUNK_KEYS * self.dtype.itemsize):
                wanted = min(CHUNK_KEYS, (end - place) // self.dtype.itemsize)
                self._file.seek(place)
                keys = np.fromfile(self._file, self.dtype, wanted)
                if len(keys) < wanted:
                    raise RunFolderError("the temporary file of scores ends early; was it changed? Select again")
                yield keys

    def _write(self, content: memoryview) -> None:
        if self._file is None:
            self._beside.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that a full disk is reported here, where the message can say what was being written.
            self._file = tempfile.TemporaryFile(dir=self._beside.parent, buffering=0)  # noqa: SIM115
        while content:
            content = content[self._file.write(content) :]
