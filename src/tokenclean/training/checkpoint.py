"""Checkpoints of a training: what is trained, the optimizer's moments and the random numbers, after some step.

A training that continues from one takes the very steps that it would have taken. No pickle: tensors are safetensors,
the rest is in the folder's manifest, which is written last, so that a checkpoint is whole or none. The one before is
deleted only after that.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.store import check_stage, explained_refusals, read_manifest, seal_folder
from tokenclean.store.lock import RunLock
from tokenclean.training.optimizer import MOMENTS, load_moments, named_moments
from tokenclean.training.sharding import as_part_of, whole

logger = logging.getLogger(__name__)

_TRAINED, _RANDOM = "trained.safetensors", "random.safetensors"
_PREFIX = "step-"
_VERSION = 2
"""To be raised with the format; a training whose checkpoints have another one starts from the beginning."""


@contextmanager
def states_beside(output: Path, key: str, note: Callable[[str], None]) -> Iterator[Path]:
    """The folder for the states of the training that will be ``output``: ``.OUTPUT.states/<key>`` beside it.

    ``key``: hash of all that determines the training, so that another one does not continue from its states. All
    states are deleted when the block ends well; those of a stopped training stay. ``note`` gets a line if there are
    some to continue from. Raises RunFolderError if the folder cannot be created, or another process trains the same
    output.
    """
    final = output.absolute()
    root = final.with_name(f".{final.name}.states")
    with explained_refusals(f"cannot write {output}"):
        root.mkdir(parents=True, exist_ok=True)
    is_done = False
    with RunLock(root, note).hold():
        try:
            if (found := last_checkpoint(root / key)) is not None:
                note(f"{root}: resuming after step {step_of(found)}")
            yield root / key
            is_done = True
        finally:
            if is_done or not any(_checkpoints(place) for place in root.iterdir()):
                shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True)
class SavedState:
    """The state of an unfinished training. ``what``: its name, else that of its folder; ``step`` of ``steps``, None
    where the state does not say; ``saved``: when, UTC, as in manifests."""

    what: str
    step: int
    steps: int | None
    saved: str


def saved_states(folder: Path) -> list[SavedState]:
    """The last whole state of each training that has one below ``folder``, sorted by name."""
    found = []
    for place in folder.iterdir() if folder.is_dir() else ():
        if (path := last_checkpoint(place)) is not None:
            manifest = read_manifest(path)
            record = manifest["results"]
            what, steps = record.get("what") or place.name, record.get("steps")
            found.append(SavedState(what, step_of(path), steps, manifest["finished"]))
    return sorted(found, key=lambda state: (state.what, state.saved))


def save_checkpoint(
    place: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    record: Mapping[str, object],
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Write ``place/step-N`` and delete older ones. ``record``: JSON, which ``load_checkpoint`` returns.

    All ``processes`` have to call it; the first writes, and all continue once the checkpoint is whole. After an
    OSError, such as a full disk, the checkpoint before is still the last.
    """
    tensors = {
        _TRAINED: {name: whole(p) for name, p in model.named_parameters() if p.requires_grad},
        MOMENTS: named_moments(model, optimizer),
        _RANDOM: _random_states(processes),
    }
    if processes.is_first:
        _write(place / f"{_PREFIX}{step}", tensors, record)
        for older in _checkpoints(place):
            if step_of(older) != step:
                shutil.rmtree(older, ignore_errors=True)
    processes.barrier()


def _write(final: Path, tensors: Mapping[str, dict[str, torch.Tensor]], record: Mapping[str, object]) -> None:
    """Write the folder ``final``; it is sealed, and checked, as a stage is, with the record as its results."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    name, _, number = final.name.partition("-")
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    named = {"stage": name, "version": _VERSION, "key": number, "finished": finished, "seconds": 0}
    try:
        temporary.mkdir(parents=True)
        for file, content in tensors.items():
            save_file(content, temporary / file)
        seal_folder(temporary, {**named, "inputs": {}, "results": record, "depends_on": []})
        shutil.rmtree(final, ignore_errors=True)
        os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def last_checkpoint(place: Path) -> Path | None:
    """The whole checkpoint of the most steps; damaged ones, and those of another format, are logged and skipped."""
    for path in sorted(_checkpoints(place), key=step_of, reverse=True):
        if faults := check_stage(path):
            logger.warning("%s is not what was written (%s); skipped", path, "; ".join(faults[:2]))
        elif read_manifest(path)["version"] != _VERSION:
            logger.warning("%s was written by another version of tokenclean; skipped", path)
        else:
            return path
    return None


def load_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, processes: Processes = SINGLE_PROCESS
) -> dict[str, Any]:
    """Load what ``save_checkpoint`` was given into the model, the optimizer and torch's generators of random numbers.

    Returns the record. Raises KeyError or TrainingError if the checkpoint is of another model.
    """
    saved = load_file(path / _TRAINED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(as_part_of(parameter, saved.pop(name)))
    if saved:
        raise KeyError(f"{path}: parameter {min(saved)} is not trained in this model")
    load_moments(path, model, optimizer)
    _load_random(path, processes)
    return read_manifest(path)["results"]


def _load_random(path: Path, processes: Processes) -> None:
    """The states of this process's generators. In a checkpoint of fewer processes some have none, and keep theirs."""
    states = load_file(path / _RANDOM)
    own = {name: states[key] for name in ("cpu", "cuda") if (key := f"{processes.rank}.{name}") in states}
    if not own:
        logger.warning("%s knows no rank %d: dropout continues with other random numbers", path, processes.rank)
    if "cpu" in own:
        torch.set_rng_state(own["cpu"])
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])


def _random_states(processes: Processes) -> dict[str, torch.Tensor]:
    """State of every process's CPU generator as ``RANK.cpu`` and, if it uses a GPU, of that one's as ``RANK.cuda``."""
    states = {"cpu": torch.get_rng_state().tolist()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state().tolist()
    return {
        f"{rank}.{name}": torch.tensor(state, dtype=torch.uint8)
        for rank, states in enumerate(processes.gather(states))
        for name, state in states.items()
    }


def _checkpoints(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return [path for path in place.iterdir() if path.is_dir() and path.name.removeprefix(_PREFIX).isdecimal()]


def step_of(path: Path) -> int:
    """Optimizer steps done."""
    return int(path.name.removeprefix(_PREFIX))
