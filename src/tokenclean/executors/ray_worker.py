"""What runs in an actor of Ray: it opens a work once, such as by loading a model, and computes one item after another.

An actor stores nothing. It sends what it made to the command that started it, which alone holds the lock of the run
folder and writes there; so nodes need not share a disk, and no actor can write after its command ended.
"""

from __future__ import annotations

import logging
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from tokenclean.errors import MissingExtraError, ModelError
from tokenclean.executors.executor import FileWork, Given, Work
from tokenclean.store import MadeElsewhere, describe_origin
from tokenclean.store.manifest import describe_software


@dataclass(frozen=True)
class SentFiles:
    """The files of a stage that was computed elsewhere: their content, what the manifest says of them and of the
    process that computed them."""

    files: Mapping[str, bytes]
    results: Mapping[str, object]
    origin: Mapping[str, object]

    def write(self, folder: Path) -> MadeElsewhere:
        """Write the files into the folder of a stage, as a function that makes one does."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return MadeElsewhere(self.results, self.origin)


@dataclass(frozen=True)
class SendFiles(Generic[Given]):
    """The ``Work`` that sends what a ``FileWork`` writes. An item gives what that one gets, and its ``what``."""

    work: FileWork[Given]

    @contextmanager
    def opened(self) -> Iterator[Callable[[tuple[Given, str]], SentFiles]]:
        """As ``Work.opened``."""
        with self.work.opened() as write:

            def compute(given: tuple[Given, str]) -> SentFiles:
                with tempfile.TemporaryDirectory() as folder:
                    started, clock = time.time(), time.monotonic()
                    results = write(Path(folder), *given)
                    files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
                    return SentFiles(files, results, describe_origin(started, clock))

            yield compute


class Worker:
    """Computes items of the works that are open in it. ``threads``: of this process."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._node = platform.node()
        self._open: dict[int, tuple[ExitStack, Callable[[Any], object]]] = {}
        self._warnings = _Warnings()

    def start(self, packages: Mapping[str, object]) -> None:
        """Prepare for works; nothing if that is done. Raises ModelError where this node has other ``packages``, which
        change bits."""
        own = installed_packages()
        if differing := sorted(name for name in own.keys() | packages.keys() if own.get(name) != packages.get(name)):
            versions = ", ".join(f"{name} {own.get(name)} (here {packages.get(name)})" for name in differing)
            raise ModelError(
                f"Ray node {self._node} has other software: {versions}; install the same versions on all nodes"
            )
        import torch

        torch.set_num_threads(self._threads)
        logging.getLogger("tokenclean").addHandler(self._warnings)

    def compute(self, number: int, work: Work[Any, object], given: object) -> tuple[object, tuple[str, ...]]:
        """The result of an item of the work with this ``number``, which is opened if it is not, and warnings.

        Raises ModelError, naming the node, where it cannot be opened; as the work does.
        """
        if number not in self._open:
            block = ExitStack()
            try:
                self._open[number] = block, block.enter_context(work.opened())
            except (ModelError, MissingExtraError, OSError) as error:
                raise ModelError(
                    f"Ray node {self._node}: {error}; every node needs the model: a Hub id, or a folder under the same "
                    "path"
                ) from error
        _, compute = self._open[number]
        return compute(given), self._warnings.take()

    def close(self, number: int) -> None:
        """Give back what an open work holds, such as a model."""
        if number in self._open:
            self._open.pop(number)[0].close()


class _Warnings(logging.Handler):
    """Keeps warnings of tokenclean until they are sent along with a result."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def take(self) -> tuple[str, ...]:
        taken = tuple(dict.fromkeys(self._texts))
        self._texts.clear()
        return taken


def installed_packages() -> Mapping[str, object]:
    """Versions of Python and of the packages on which results may depend, as manifests name them."""
    packages = describe_software()["packages"]
    assert isinstance(packages, dict)
    return packages
