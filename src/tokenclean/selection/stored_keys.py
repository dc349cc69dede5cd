"""The keys of scores in a temporary file, to be read a chunk at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np

from tokenclean.errors import RunFolderError
from tokenclean.selection.streaming import CHUNK_KEYS
from tokenclean.store.files import disk_refusal


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
