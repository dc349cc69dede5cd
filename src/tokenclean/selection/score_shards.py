"""Scores that are in memory a chunk at a time: on disk, or drawn again whenever they are looked at."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tokenclean.errors import RunFolderError
from tokenclean.store.files import disk_refusal


class Shard(Protocol):
    """What a cut needs of some scores in pool order: a numpy array (memory-mapped too) or something that is cut alike.

    ``shard[a:b]`` gives scores a to b (exclusive) as an array of ``dtype``, shape (b - a,).
    """

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

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

    @property
    def shape(self) -> tuple[int]:
        return (self.count,)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, where: slice, /) -> np.ndarray:
        start, stop, _ = where.indices(self.count)
        return np.asarray(np.random.PCG64(self.seed).advance(start).random_raw(max(stop - start, 0)), dtype=np.uint64)


@dataclass(frozen=True)
class _StoredShard:
    file: Any
    start_bytes: int
    count: int
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int]:
        return (self.count,)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, where: slice, /) -> np.ndarray:
        start, stop, _ = where.indices(self.count)
        scores = np.empty(max(stop - start, 0), dtype=self.dtype)
        self.file.seek(self.start_bytes + start * self.dtype.itemsize)
        done = 0
        while done < scores.nbytes:
            got = self.file.readinto(scores.data.cast("B")[done:])
            if not got:
                raise RunFolderError("the temporary file of scores ends early; was it changed? Select again")
            done += got
        return scores


class StoredScores:
    """The scores of each group in a temporary file, for a ``with`` block; it has no name and goes with the block.

    ``beside``: the file in whose folder it lies, which is made with the first score. Read with file reads, not as a
    memory map, whose pages would count as the process's memory as they are touched. Raises RunFolderError where the
    disk takes no more.
    """

    def __init__(self, beside: Path | str) -> None:
        self._beside = Path(beside)
        self._file: Any = None
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
        try:
            self._write(np.ascontiguousarray(scores).data.cast("B"))
        except OSError as error:
            refusal = disk_refusal(error) or error.strerror or error
            raise RunFolderError(f"cannot write scores beside {self._beside}: {refusal}") from error
        start_bytes, self._end_bytes = self._end_bytes, self._end_bytes + scores.nbytes
        if shards and shards[-1].start_bytes + shards[-1].count * scores.itemsize == start_bytes:
            last = shards.pop()
            shards.append(_StoredShard(self._file, last.start_bytes, last.count + len(scores), scores.dtype))
        else:
            shards.append(_StoredShard(self._file, start_bytes, len(scores), scores.dtype))

    def groups(self) -> dict[int, list[_StoredShard]]:
        """The shards of each group, in the order in which its scores were added."""
        return self._shards

    def _write(self, content: memoryview) -> None:
        if self._file is None:
            self._beside.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a full disk is told here, where it can be said what was being written.
            self._file = tempfile.TemporaryFile(dir=self._beside.parent, buffering=0)  # noqa: SIM115
        while content:
            content = content[self._file.write(content) :]
