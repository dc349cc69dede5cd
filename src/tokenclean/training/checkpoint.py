"""Checkpoints of a training: what is trained, the optimizer, the schedule and the random numbers, at one step.

A training that goes on from one makes the very steps that it would have made. No pickle: tensors are safetensors,
the rest JSON, and the folder's manifest comes last, so that a checkpoint is whole or none. The one before is deleted
only after that.
"""

from __future__ import annotations

import json
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

from tokenclean.errors import RunFolderError
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.store import MANIFEST, check_stage, disk_refusal, seal_folder, write_json
from tokenclean.store.lock import RunLock

logger = logging.getLogger(__name__)

_TRAINED, _OPTIMIZER, _RANDOM, _STATE = (
    "trained.safetensors",
    "optimizer.safetensors",
    "random.safetensors",
    "state.json",
)
_PREFIX = "step-"


@contextmanager
def states_beside(output: Path, key: str, note: Callable[[str], None]) -> Iterator[Path]:
    """The folder for the states of the training that will be ``output``: ``.OUTPUT.states/<key>`` beside it.

    ``key``: hash of all that determines the training, so that another one does not go on from its states. All states
    go when the block ends well; those of a stopped training stay. ``note`` is told where there are some to go on from.
    Raises RunFolderError where the folder cannot be made, or another process trains the same output.
    """
    final = output.absolute()
    root = final.with_name(f".{final.name}.states")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot write {output}: {disk_refusal(error) or error}") from error
    lock = RunLock(root, note)
    lock.acquire()
    is_done = False
    try:
        if found := _checkpoints(root / key):
            note(f"{root}: going on after step {max(map(step_of, found))}")
        yield root / key
        is_done = True
    finally:
        if is_done or not any(_checkpoints(place) for place in root.iterdir()):
            shutil.rmtree(root, ignore_errors=True)
        lock.release()


@dataclass(frozen=True)
class SavedState:
    """The state of a training that is not done. ``what``: its name, else that of its folder; ``step`` of ``steps``,
    None where the state does not tell; ``saved``: when, UTC, as in manifests."""

    what: str
    step: int
    steps: int | None
    saved: str


def saved_states(folder: Path) -> list[SavedState]:
    """The last whole state of each training that has one below ``folder``, sorted by name."""
    places = (path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
    found = [state for place in places if (state := last_checkpoint(place)) is not None]
    return sorted((_saved_state(state) for state in found), key=lambda state: (state.what, state.saved))


def _saved_state(path: Path) -> SavedState:
    record, manifest = read_record(path), json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return SavedState(record.get("what") or path.parent.name, step_of(path), record.get("steps"), manifest["finished"])


def save_checkpoint(
    place: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    record: Mapping[str, Any],
    further: Callable[[Path], None] = lambda folder: None,
    processes: Processes = SINGLE_PROCESS,
) -> None:
    """Write ``place/step-N`` and delete older ones. ``record``: JSON, given back by ``read_record``. ``further``:
    writes other files into the folder.

    All ``processes`` have to call it; the first writes, and all go on once the checkpoint is whole. OSError, say of a
    full disk, leaves the checkpoint before as the last.
    """
    from safetensors.torch import save_file

    state = optimizer.state_dict()
    trained = {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}
    moments = {
        f"{number}.{name}": whole(tensor)
        for number, tensors in state["state"].items()
        for name, tensor in tensors.items()
    }
    random_states = _random_states(processes)
    if not processes.is_first:
        processes.barrier()
        return
    final = place / f"{_PREFIX}{step}"
    temporary = place / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file(trained, temporary / _TRAINED)
        save_file(moments, temporary / _OPTIMIZER)
        save_file(random_states, temporary / _RANDOM)
        groups, schedule = state["param_groups"], scheduler.state_dict()
        write_json(temporary / _STATE, {"param_groups": groups, "schedule": schedule, "record": dict(record)})
        further(temporary)
        seal_folder(temporary, _manifest(step))
        shutil.rmtree(final, ignore_errors=True)
        os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for older in _checkpoints(place):
        if older != final:
            shutil.rmtree(older, ignore_errors=True)
    processes.barrier()


def last_checkpoint(place: Path) -> Path | None:
    """The whole checkpoint of the most steps; damaged ones are told and passed over."""
    for path in sorted(_checkpoints(place), key=step_of, reverse=True):
        if not (faults := check_stage(path)):
            return path
        logger.warning("%s is not what was written (%s); it is passed over", path, "; ".join(faults[:2]))
    return None


def step_of(path: Path) -> int:
    """Optimizer steps done."""
    return int(path.name.removeprefix(_PREFIX))


def read_record(path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` was given as ``record``."""
    return json.loads((path / _STATE).read_text(encoding="utf-8"))["record"]


def load_trained(path: Path, model: torch.nn.Module) -> None:
    """Put the trained parameters into the model. Raises KeyError where the checkpoint is of another model."""
    from safetensors.torch import load_file

    saved = load_file(path / _TRAINED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(as_part_of(parameter, saved.pop(name)))
    if saved:
        raise KeyError(f"{path}: parameter {min(saved)} is not trained in this model")


def load_optimizer(path: Path, optimizer: Any, scheduler: Any) -> None:
    """Put the optimizer's and the schedule's state back."""
    from safetensors.torch import load_file

    document = json.loads((path / _STATE).read_text(encoding="utf-8"))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path / _OPTIMIZER).items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = as_part_of(parameters[int(number)], tensor)
    optimizer.load_state_dict({"state": state, "param_groups": document["param_groups"]})
    scheduler.load_state_dict(document["schedule"])


def load_random(path: Path, processes: Processes = SINGLE_PROCESS) -> None:
    """Put torch's random number generators back, of this rank's CPU and GPU.

    Where the checkpoint is of fewer processes, one that it does not know goes on with the numbers it has, and says so.
    """
    from safetensors.torch import load_file

    states = load_file(path / _RANDOM)
    own = {name: states[key] for name in ("cpu", "cuda") if (key := f"{processes.rank}.{name}") in states}
    if not own:
        logger.warning("%s knows no rank %d: dropout goes on with other random numbers", path, processes.rank)
    if "cpu" in own:
        torch.set_rng_state(own["cpu"])
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or what a sharded one is a part of, on every rank; all have to call it."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).contiguous()


def as_part_of(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The whole ``tensor`` sharded as the parameter is; one of another shape, a count of steps, stays as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def _manifest(step: int) -> dict[str, Any]:
    """A checkpoint is sealed, and checked, as a stage is."""
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    empty: dict[str, Any] = {"inputs": {}, "results": {}, "depends_on": []}
    return {"stage": _PREFIX.rstrip("-"), "version": 1, "key": str(step), "finished": finished, "seconds": 0, **empty}


def _checkpoints(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return [path for path in place.iterdir() if path.is_dir() and path.name.removeprefix(_PREFIX).isdecimal()]


def _random_states(processes: Processes) -> dict[str, torch.Tensor]:
    """Of every rank: its CPU's state as ``RANK.cpu``, and its GPU's, if it uses one, as ``RANK.cuda``."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    told = processes.gather({name: bytes(state.tolist()).hex() for name, state in states.items()})
    return {
        f"{rank}.{name}": torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        for rank, texts in enumerate(told)
        for name, text in texts.items()
    }
