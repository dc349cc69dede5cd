"""The stages of a run: found or computed, counted, and shared by the processes that run together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenclean.errors import RunFolderError
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.store import STAGE_VERSIONS, MadeElsewhere, Make, Stage, Store

_SHARED_DISK_SECONDS = 120


@dataclass(frozen=True)
class Stages:
    """The stages of one run folder.

    ``computed``: names of the stages that this run computed, in order. ``used``: names of all stages asked for;
    ``for_strategy`` starts a new count of these, since what a strategy would have computed alone is worth reporting.
    """

    store: Store
    processes: Processes = SINGLE_PROCESS
    computed: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    _found: set[str] = field(default_factory=set)

    def for_strategy(self) -> Stages:
        """The same stages with a count of their own of what is used."""
        return replace(self, used=set())

    @property
    def reused(self) -> list[str]:
        """Names of the stages that an earlier run computed, sorted."""
        return sorted(self._found)

    def stage(self, name: str, inputs: Mapping[str, object], compute: Make, within: str = "stages") -> Stage:
        """The stage ``name`` in its present version, found or computed. Raises as ``Store.stage``."""
        stage = self.store.stage(name, STAGE_VERSIONS[name], inputs, compute, within=within)
        self.used.add(stage.path.name)
        if not stage.was_reused:
            self.computed.append(stage.path.name)
        elif stage.path.name not in self.computed:
            self._found.add(stage.path.name)
        return stage

    def stage_of_all(self, name: str, inputs: Mapping[str, object], compute: Make) -> Stage:
        """The stage ``name``, found, or computed by all processes together; the first one's folder is kept."""
        processes = self.processes
        if processes.count == 1:
            return self.stage(name, inputs, compute)
        if not processes.is_first:
            if processes.gather(None)[0]:  # the first process has not found it
                with tempfile.TemporaryDirectory() as scratch:
                    compute(Path(scratch))
            processes.barrier()
            return self._stage_of_first(name, inputs)

        def compute_with_all(folder: Path) -> Mapping[str, object] | MadeElsewhere | None:
            processes.gather(True)
            return compute(folder)

        stage = self.stage(name, inputs, compute_with_all)
        if stage.was_reused:
            processes.gather(False)
        processes.barrier()
        return stage

    def _stage_of_first(self, name: str, inputs: Mapping[str, object]) -> Stage:
        """A stage that the first process has finished, once this machine's view of the shared disk has it too."""

        def missing(folder: Path) -> Mapping[str, object]:
            raise RunFolderError(
                f"{self.store.root}: rank {self.processes.rank} does not see the stage {name} that rank 0 has made; "
                "all processes need the same run folder, on a disk that they share"
            )

        deadline = time.monotonic() + _SHARED_DISK_SECONDS
        while True:
            try:
                return self.stage(name, inputs, missing)
            except RunFolderError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
