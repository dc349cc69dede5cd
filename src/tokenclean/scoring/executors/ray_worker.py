"""What runs in an actor of Ray: it loads a model once and computes the losses of one shard after another.

An actor stores nothing. It sends the files of a shard's stage to the command that started it, which alone holds the
lock of the run folder and writes there; so nodes need not share a disk, and no actor can write after its command ended.
"""

from __future__ import annotations

import logging
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenclean.errors import MissingExtraError, ModelError
from tokenclean.models.loading.load import ModelSource, source_fingerprint
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.scoring.model_losses import ModelLosses, ModelWork, Using
from tokenclean.store import MadeElsewhere, describe_origin
from tokenclean.store.manifest import describe_software

if TYPE_CHECKING:
    import torch

    from tokenclean.tokens import TokenizedPool


@dataclass(frozen=True)
class SentShard:
    """A computed shard: the content of the files of its stage, what the manifest says of them and of the process that
    computed them, and the warnings of that process."""

    files: Mapping[str, bytes]
    results: Mapping[str, object]
    origin: Mapping[str, object]
    warnings: tuple[str, ...] = ()

    def write(self, folder: Path) -> MadeElsewhere:
        """Write the files into the folder of a stage, as a function that makes one does."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return MadeElsewhere(self.results, self.origin)


class ShardWorker:
    """Computes shards under one model at a time. ``threads``: of this process."""

    def __init__(self, device: str, threads: int) -> None:
        self._device, self._threads = device, threads
        self._node = platform.node()
        self._cache = ModelCache(device)
        self._model: tuple[ModelWork, str] | None = None
        self._losses: ModelLosses | None = None
        self._warnings = _Warnings()

    def start(self, packages: Mapping[str, object]) -> None:
        """Prepare for shards; nothing if that is done. Raises ModelError where this node has other ``packages``, which
        change bits."""
        from tokenclean.models.device import resolve_device

        own = installed_packages()
        if differing := sorted(name for name in own.keys() | packages.keys() if own.get(name) != packages.get(name)):
            versions = ", ".join(f"{name} {own.get(name)} (here {packages.get(name)})" for name in differing)
            raise ModelError(
                f"Ray node {self._node} has other software: {versions}; install the same versions on all nodes"
            )
        import torch

        torch.set_num_threads(self._threads)
        logging.getLogger("tokenclean").addHandler(self._warnings)
        resolve_device(self._device)

    def compute(self, model: tuple[ModelWork, str], tokens: TokenizedPool, what: str) -> SentShard:
        """The losses of a shard, as the files of their stage; the model is loaded if the last shard had another.

        ``model``: what the losses are computed from, and the model's fingerprint where the pass was begun. Raises
        ModelError where it is another here, and as ``ModelLosses.write`` does.
        """
        if self._losses is None or model != self._model:
            work, fingerprint = self._model = model
            self._losses = ModelLosses(self._using_checked(fingerprint), work)
        with tempfile.TemporaryDirectory() as folder:
            started, clock = time.time(), time.monotonic()
            results = self._losses.write(Path(folder), tokens, what)
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
            return SentShard(files, results, describe_origin(started, clock), self._warnings.take())

    def unload(self) -> None:
        """Give back the model's memory until the next pass."""
        self._model = self._losses = None
        self._cache.clear()

    def _using_checked(self, fingerprint: str) -> Using:
        """``ModelCache.using`` of the model with this fingerprint; errors name the node."""
        checked = False

        @contextmanager
        def using(source: ModelSource) -> Iterator[torch.nn.Module]:
            nonlocal checked
            with ExitStack() as block:
                try:
                    if not checked and (found := source_fingerprint(source)) != fingerprint:
                        raise ModelError(
                            f"{source}: its files are not those that the pass was begun with (fingerprint "
                            f"{found[:12]}, expected {fingerprint[:12]}); copy the same model to all nodes"
                        )
                    model = block.enter_context(self._cache.using(source))
                except (ModelError, MissingExtraError, OSError) as error:
                    raise ModelError(
                        f"Ray node {self._node}: {error}; every node needs the model: a Hub id, or a folder under the "
                        "same path"
                    ) from error
                checked = True
                yield model

        return using


class _Warnings(logging.Handler):
    """Keeps warnings of tokenclean until they are sent along with a shard."""

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
    """Versions of Python and of the packages on which losses may depend, as manifests name them."""
    packages = describe_software()["packages"]
    assert isinstance(packages, dict)
    return packages
