"""Scores that are read a chunk at a time: from disk, or drawn again each time."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

import numpy as np

from tokenclean.errors import RunFolderError
from tokenclean.store.files import explained_refusals


class Shard(Protocol):
    """Some scores in pool order: a 1-D numpy array (memory-mapped too) or something that can be sliced like one.

    ``shard[a:b]`` gives scores a to b (exclusive) as an array of ``dtype``, shape (b - a,).
    """

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class RandomRanks:
    """A random number (uint64) for each of ``count`` tokens; the highest are a uniform draw without replacement.

    Raw PCG64 output, since numpy keeps that stream the same in all versions but not that of ``Generator.choice``. Any
    part of the stream is drawn without the ones before it.
    """

    count: int
    seed: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, where: slice, /) -> np.ndarray:
        start, stop, _ = where.indices(self.count)
        return np.asarray(np.random.PCG64(self.seed).advance(start).random_raw(max(stop - start, 0)), dtype=np.uint64)


@dataclass(frozen=True)
class _StoredShard:
    file: FileIO
    start_bytes: int
    count: int
    dtype: np.dtype

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, where: slice, /) -> np.ndarray:
        start, stop, _ = where.indices(self.count)
        wanted = max(stop - start, 0)
        self.file.seek(self.start_bytes + start * self.dtype.itemsize)
        scores = np.fromfile(self.file, self.dtype, wanted)
        if len(scores) < wanted:
            raise RunFolderError("the temporary file of scores ends early; was it changed? Select again")
        return scores


class StoredScores:
    """The scores of each group, in an unnamed temporary file that exists until the ``with`` block ends.

    ``beside``: a file in the folder to use; the folder is created with the first score. The file is read in chunks, not
    memory-mapped, since mapped pages would count as the process's memory. Raises RunFolderError where it cannot be
    written.
    """

    def __init__(self, beside: Path | str) -> None:
        self._beside = Path(beside)
        self._file: FileIO | None = None
        self._end_bytes = 0
        self._shards: dict[int, list[_StoredShard]] = {}

    def __enter__(self) -> StoredScores:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, group: int, scores: np.ndarray) -> None:
        """Add the next scores of a group: 1-D, any dtype, but the same for all of one group."""
        shards = self._shards.setdefault(group, [])
        if not len(scores):
            return
        with explained_refusals(f"cannot write scores beside {self._beside}"):
            file = self._write(np.ascontiguousarray(scores).data.cast("B"))
        start_bytes, self._end_bytes = self._end_bytes, self._end_bytes + scores.nbytes
        count = len(scores)
        if shards and shards[-1].start_bytes + shards[-1].count * scores.itemsize == start_bytes:
            last = shards.pop()
            start_bytes, count = last.start_bytes, last.count + count
        shards.append(_StoredShard(file, start_bytes, count, scores.dtype))

    def groups(self) -> dict[int, list[_StoredShard]]:
        """The shards of each group, in the order in which its scores were added."""
        return self._shards

    def _write(self, content: memoryview) -> FileIO:
        if self._file is None:
            self._beside.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that a full disk is reported here, where the message can say what was being written.
            self._file = tempfile.TemporaryFile(dir=self._beside.parent, buffering=0)  # noqa: SIM115
        while content:
            content = content[self._file.write(content) :]
        return self._file
