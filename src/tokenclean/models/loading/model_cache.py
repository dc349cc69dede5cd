"""A model that stays in memory between passes: a base once, for itself and for all adapters on it.

An adapter works by putting modules of its own into its base. Here they are put in for a pass with the adapter and
replaced by the base's own modules afterwards. So the base is scored exactly as it was loaded, and no adapter has to be
disabled in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenclean.models.device import give_back_memory
from tokenclean.models.loading.load import ModelSource, adapter_fingerprint, attach_adapter, load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_ABSENT = object()
_MODEL_FILES = (".safetensors", ".json", ".gguf", ".py")
_ELEMENTS_AT_ONCE = 1 << 22


class ModelCache:
    """One set of weights kept in memory between passes: a base serves itself and every adapter on it.

    ``device``: where models are loaded. Before another base is loaded, the one in memory is unloaded. An adapter that
    changes the weights of its base when it is attached (trained biases, the initialisation of PiSSA) gets weights of
    its own.

    For one thread.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._device = device
        self._load: _Load | None = None
        self._changes_base: set[tuple[ModelSource, str]] = set()

    @contextmanager
    def using(self, source: ModelSource) -> Iterator[torch.nn.Module]:
        """Run a block with the source's model: float32, in eval mode, parameters without gradient.

        Without an adapter it is the plain transformers causal LM; with one, the PEFT model around that same object,
        unmerged. A source gives the same object each time, as long as it stays in memory and its files do not change:
        an adapter's folder is compared by content each time, a base's by sizes and times, and a model from the Hub is
        not checked again. The object must not be called outside its block: another adapter may be in it.

        Raises ModelError and MissingExtraError as ``load_model`` does, RuntimeError inside a block that uses another
        source.
        """
        user = self._load.user if self._load is not None and self._load.blocks else None
        if user is not None and user.absolute != source.absolute:
            raise RuntimeError(f"{source}: {user} is in use; leave that block first")
        load, attached = self._find(source.absolute)
        load.user = source
        load.blocks += 1
        try:
            for change in attached.changes:
                change.table[change.name] = change.after
            yield attached.model
        finally:
            load.blocks -= 1
            if not load.blocks:
                _take_out(attached.changes)

    def clear(self) -> None:
        """Unload everything (training needs the memory). A model that a caller still holds stays until it is released.

        Raises RuntimeError inside a block of ``using``.
        """
        if self._load is not None and self._load.blocks:
            raise RuntimeError(f"{self._load.user} is in use; leave its block before unloading it")
        self._load = None
        give_back_memory()

    def _find(self, key: ModelSource) -> tuple[_Load, _Attached]:
        adapter = key.adapter
        content = adapter_fingerprint(adapter) if adapter is not None and Path(adapter).exists() else ""
        if adapter is not None and (key, content) not in self._changes_base:
            load = self._loaded(replace(key, adapter=None))
            attached = load.attached.get(adapter)
            if attached is None or attached.content != content:
                attached = self._attach(load, adapter, content)
            if attached is not None:
                return load, attached
            logger.warning("%s changes its base when it is attached; it gets a load of its own", adapter)
            self._changes_base.add((key, content))
            del load
        load = self._loaded(key, content)
        return load, load.attached[adapter]

    def _loaded(self, key: ModelSource, content: str = "") -> _Load:
        """The load of exactly this source. ``content``: of the adapter that has the load to itself."""
        files = (_stamps(key.base), content)
        if self._load is None or (self._load.key, self._load.files) != (key, files):
            self.clear()
            model = load_model(key, device=self._device)
            model.requires_grad_(False)
            self._load = _Load(key, model, files, {key.adapter: _Attached(model, content)})
        return self._load

    def _attach(self, load: _Load, adapter: str, content: str) -> _Attached | None:
        """Put the adapter on its base and take it out again; None, with the base unloaded, where that left traces."""
        load.attached.pop(adapter, None)
        weights = [*load.model.parameters(), *load.model.buffers()]
        sums, entries = _checksums(weights), _entries(load.model)
        self._load = None  # an error may leave the base half attached
        model = attach_adapter(load.model, adapter).to(self._device).eval().requires_grad_(False)
        changes = _changes(entries)
        _take_out(changes)
        if any(change.after is _ABSENT for change in changes) or _checksums(weights) != sums:
            return None
        self._load = load
        load.attached[adapter] = _Attached(model, content, tuple(changes))
        return load.attached[adapter]


@dataclass(frozen=True)
class _Change:
    """One entry that attaching an adapter changes, in the attributes of a module or in one of its tables."""

    table: dict[str, object]
    name: str
    before: object
    after: object


@dataclass(frozen=True)
class _Attached:
    """A model to score with. ``content``: hash of its adapter's files; ``changes``: those that put the adapter in."""

    model: torch.nn.Module
    content: str = ""
    changes: tuple[_Change, ...] = ()


@dataclass
class _Load:
    """Weights in memory. ``files``: see ``_stamps``, with the adapter's hash; ``attached``: by adapter, None for the
    plain base; ``user``: the source of the ``blocks`` of ``using`` that are open."""

    key: ModelSource
    model: PreTrainedModel
    files: tuple[list[tuple[object, ...]], str]
    attached: dict[str | None, _Attached]
    user: ModelSource | None = None
    blocks: int = 0


def _stamps(base: str) -> list[tuple[object, ...]]:
    """Sizes and times of a local base's files; hashing them would make each switch of models slow."""
    path = Path(base)
    files = sorted(p for p in path.iterdir() if p.suffix in _MODEL_FILES) if path.is_dir() else [path]
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_dev, s.st_ino) for name, s in found]


def _entries(model: PreTrainedModel) -> list[tuple[dict[str, object], dict[str, object]]]:
    """The attributes of all modules and of the configuration, and the tables among them (children, parameters,
    hooks, …): each with a copy."""
    tables = [vars(part) for part in (*model.modules(), model.config)]
    tables += [value for table in list(tables) for value in table.values() if isinstance(value, dict)]
    return [(table, dict(table)) for table in tables]


def _changes(entries: Sequence[tuple[dict[str, object], dict[str, object]]]) -> list[_Change]:
    """How the tables differ from their copies."""
    return [
        _Change(table, name, copy.get(name, _ABSENT), table.get(name, _ABSENT))
        for table, copy in entries
        for name in {**copy, **table}
        if copy.get(name, _ABSENT) is not table.get(name, _ABSENT)
    ]


def _take_out(changes: Sequence[_Change]) -> None:
    for change in changes:
        if change.before is _ABSENT:
            change.table.pop(change.name, None)
        else:
            change.table[change.name] = change.before


def _checksums(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Sums of each tensor's bits mod 2^64, part by part, so that any change of a single element shows."""
    import torch

    integers = torch.int64, torch.int32, torch.int16, torch.uint8
    found = []
    for tensor in tensors:
        flat = tensor.detach().flatten()
        widest = next(t for t in integers if flat.nbytes % t.itemsize == 0)  # at least as wide as an element
        sums = [part.sum(dtype=torch.int64) for part in flat.view(widest).split(_ELEMENTS_AT_ONCE)]
        found.append(torch.stack(sums).tolist())
    return found
