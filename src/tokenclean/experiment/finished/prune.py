"""Delete what a run folder keeps only to compute nothing twice: passes, trainings, checkpoints, damaged stages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenclean.errors import RunFolderError
from tokenclean.experiment.finished.finished_run import results_of
from tokenclean.store import CHECKPOINTS, DAMAGED, SERVED, STAGES, Store

_RESULTS_AMONG_STAGES = ("comparison-", "sweep-")
"""Stages that a report reads."""


@dataclass(frozen=True)
class Pruned:
    """``folders``: those deleted, or to be deleted; ``freed_bytes``: what that frees, without files that the results
    share with them."""

    folders: tuple[Path, ...]
    freed_bytes: int


def prune(run: Path, *, only_say: bool = False) -> Pruned:
    """Delete the stages that the results of a run do not need; results, comparisons, sweeps and pages stay.

    The results have models of their own, which share their files with the trainings. The same run again computes
    everything again. ``only_say``: delete nothing. Raises RunFolderError for a folder without results, or one in use.
    """
    results_of(run)
    store = Store(run)
    with store.lock():
        folders = tuple(_unneeded(run))
        freed = sum(_freed_bytes(folder) for folder in folders)
        if not only_say:
            for folder in folders:
                try:
                    shutil.rmtree(folder)
                except OSError as error:
                    raise RunFolderError(f"{folder}: cannot be deleted: {error}") from error
    return Pruned(folders, freed)


def _unneeded(run: Path) -> Iterator[Path]:
    for folder in sorted((run / STAGES).iterdir()):
        if folder.is_dir() and not folder.name.startswith(_RESULTS_AMONG_STAGES):
            yield folder
    yield from (run / name for name in (CHECKPOINTS, SERVED, DAMAGED) if (run / name).is_dir())


def _freed_bytes(folder: Path) -> int:
    """Size of the files that have no further name."""
    states = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum(state.st_size for state in states if state.st_nlink == 1)
