"""Losses of the shards of a pool under one model, each shard a stage that is computed once.

A shard is a run of consecutive rows. Its packs are planned from its own rows, so its losses depend on nothing else, and
a shard that was computed once is found again, whichever run or command asks for it; a stopped pass loses no more than
its open shard. Who asks decides how a pool is cut: ``sharded_columns`` does so for a pool in memory, ``pool_pass`` for
one that is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tokenclean.errors import RunFolderError
from tokenclean.executors import LOCAL, Executor, Item, Stages
from tokenclean.models.packing import trimmed_lengths
from tokenclean.observer import Progress
from tokenclean.ragged import Ragged
from tokenclean.recipe import ServedModel
from tokenclean.scoring.model_losses import LossWork, ModelLosses, ModelWork, ScoringPolicy, Using, file_of
from tokenclean.store import Make, Stage, array_hash
from tokenclean.token_table import read_column
from tokenclean.tokens import TokenizedPool

if TYPE_CHECKING:
    from tokenclean.models.loading.load import ModelSource

SHARD_TOKENS = 1 << 18

PassShard = Item[str, TokenizedPool]
"""One shard of a pass, known by the ``hash_tokens`` of the tokens that it gives."""

MakeStage = Callable[[Mapping[str, object], Make], Stage]
"""Finds the stage of the given inputs, or makes it with the given function."""


@dataclass(frozen=True)
class LossShard:
    """The stage of a shard's losses under one model, or one model's part of a stage of pairs."""

    stage: Stage
    is_base: bool = False

    @property
    def of_base(self) -> LossShard:
        """The base's part of a stage of pairs."""
        return LossShard(self.stage, is_base=True)

    @property
    def policy(self) -> Mapping[str, object]:
        """How the losses were computed (``Scorer.policy``)."""
        return self.stage.manifest["results"]["policy"]

    def column(self, name: str) -> Ragged:
        """``loss``, or one of the further columns. Raises TableError where the file cannot be read."""
        return read_column(name, self.stage.path / file_of(name, is_base=self.is_base))


class ShardLosses(Stages[str, TokenizedPool, LossShard], Protocol):
    """What gives the losses of a pool's shards: a model that is loaded (``LossShards``), or one behind a server, which
    only this process asks. ``in_pairs``: each stage holds the losses of a base too."""

    in_pairs: bool

    def unload(self) -> None:
        """Drop what takes memory."""
        ...


class LossShards:
    """Losses of a pool's shards under one model.

    ``using``: gives a block with the model of a ``source`` (``ModelCache.using``), entered for each shard that is
    computed, so two models on one base can take turns. ``model``: inputs of the stages that identify its weights and
    the kind of its device. ``longest_row`` and ``expected_tokens``: see ``ModelWork``. ``base``: the same inputs of the
    base of this model, an adapter: both are then scored in pairs (``models.pairs``), and each stage holds the losses of
    both.
    """

    def __init__(
        self,
        make_stage: MakeStage,
        using: Using,
        source: ModelSource,
        model: Mapping[str, object],
        policy: ScoringPolicy,
        *,
        longest_row: int,
        expected_tokens: int,
        base: Mapping[str, object] | None = None,
    ) -> None:
        self._make_stage, self.in_pairs = make_stage, base is not None
        self._inputs = {**model, "precision": policy.precision, "pack_tokens": policy.pack_tokens}
        if policy.columns:
            self._inputs["columns"] = sorted(policy.columns)
        if base is not None:
            self._inputs["base"] = base["model"]
        self._work = ModelWork(source, policy, longest_row, expected_tokens, self.in_pairs)
        self._losses = ModelLosses(using, self._work)

    @property
    def work(self) -> LossWork:
        """What another process computes a shard from."""
        from tokenclean.models.loading.load import source_fingerprint

        source = self._work.source.absolute  # a node has another current folder
        return LossWork(replace(self._work, source=source), source_fingerprint(source), str(self._inputs["device"]))

    def make(self, item: PassShard, progress: Progress | None = None) -> LossShard:
        """Find the losses of a shard, or compute them. Raises as ``Scorer.score`` and ``Store.stage`` do."""
        return self.store(item.key, lambda folder: self._losses.write(folder, item.given(), item.what, progress))

    def store(self, key: str, make: Make) -> LossShard:
        """Find the losses of the shard with this ``hash_tokens``, or store what ``make`` writes into their folder.

        Raises as ``Store.stage`` does."""
        return LossShard(self._make_stage({"tokens": key, **self._inputs}, make))

    def unload(self) -> None:
        """Drop the reference to the model, so that its memory can be freed."""
        self._losses.unload()


def hash_tokens(tokens: TokenizedPool) -> str:
    """What the stage of a shard's losses knows the shard by: a hash of its ids, offsets and labels."""
    return array_hash(tokens.input_ids.values, tokens.input_ids.offsets, tokens.is_response.values)


def require_losses(losses: ShardLosses, tokens_hash: str, what: str) -> LossShard:
    """The losses of a shard that was computed before. Raises RunFolderError where they are gone or damaged."""
    return losses.store(tokens_hash, refuse_missing(what))


def refuse_missing(what: str) -> Make:
    """In place of the function that makes a stage, where it has to exist already: raises RunFolderError."""

    def refuse(folder: Path) -> Mapping[str, object]:
        raise RunFolderError(
            f"{folder.parent}: {what}: computed earlier, but now missing or damaged; give the command again"
        )

    return refuse


def scores_in_pairs(
    precision: str,
    device: str,
    base: ModelSource | ServedModel,
    model: ModelSource | ServedModel,
    *,
    is_adapter: bool = False,
) -> bool:
    """Whether base and model are scored in pairs: under ``safe``, an adapter on that very base, where products round:
    on a GPU, or on a CPU with bf16. That takes the time of two passes, also where losses of the base alone are stored.

    ``is_adapter``: a plan's model, which is not there yet, will be one.
    """
    from tokenclean.models.kernels.cpu import has_bf16_kernels
    from tokenclean.models.loading.load import has_plain_lora

    if isinstance(base, ServedModel) or isinstance(model, ServedModel):
        return False
    rounds = has_bf16_kernels() if device.startswith("cpu") else device.startswith("cuda")
    if precision != "safe" or not rounds:
        return False
    if replace(model, adapter=None).absolute != base.absolute:
        return False
    return is_adapter or (model.adapter is not None and has_plain_lora(model))


def plan_shards(tokens: TokenizedPool, shard_tokens: int = SHARD_TOKENS) -> list[np.ndarray]:
    """Consecutive rows (int64) in groups of at most ``shard_tokens`` >= 1 tokens, or of one longer row."""
    offsets = tokens.input_ids.offsets
    shards, first = [], 0
    while first < len(tokens):
        last = int(np.searchsorted(offsets, offsets[first] + shard_tokens, side="right")) - 1
        last = max(last, first + 1)
        shards.append(np.arange(first, last, dtype=np.int64))
        first = last
    return shards


def sharded_columns(
    make_stage: MakeStage,
    using: Using,
    source: ModelSource,
    tokens: TokenizedPool,
    model: Mapping[str, object],
    policy: ScoringPolicy,
    *,
    what: str,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    executor: Executor = LOCAL,
    base: Mapping[str, object] | None = None,
) -> list[dict[str, Ragged]]:
    """``loss`` of the whole pool and the policy's further columns (see ``Scorer.score``); finished shards are not
    computed again.

    Of one model, or with a ``base`` of two: the base and the adapter. ``executor``: where shards are computed; of
    several processes each computes its share, and all get all columns. ``make_stage``, ``using``, ``source``,
    ``model``, ``policy`` and ``base`` are those of ``LossShards``, ``what`` is a few words for the manifests.
    """
    total = len(tokens.input_ids.values)
    longest_row = int(trimmed_lengths(tokens.is_response.values, tokens.is_response.offsets).max(initial=0))
    losses = LossShards(
        make_stage, using, source, model, policy, longest_row=longest_row, expected_tokens=total, base=base
    )
    return columns_of_shards(
        losses, tokens, policy.columns, what=what, shard_tokens=shard_tokens, progress=progress, executor=executor
    )


def columns_of_shards(
    losses: ShardLosses,
    tokens: TokenizedPool,
    further: Sequence[str] = (),
    *,
    what: str,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    executor: Executor = LOCAL,
) -> list[dict[str, Ragged]]:
    """``sharded_columns`` of any source of losses; ``further``: columns beside the loss."""
    offsets, total = tokens.input_ids.offsets, len(tokens.input_ids.values)
    shards, processes = plan_shards(tokens, shard_tokens), executor.processes

    def shard_of(number: int) -> PassShard:
        rows = shards[number]
        shard = tokens.take(rows)
        # Indices into the flat values where the shard begins and ends.
        first, last = int(offsets[rows[0]]), int(offsets[rows[-1] + 1])
        part = f"{what}, {number + 1} of {len(shards)}" if len(shards) > 1 else what
        return Item(hash_tokens(shard), number, lambda: shard, part, lambda: shard.ids, first, last - first)

    own = (shard_of(number) for number in range(len(shards)) if processes.owns(number))
    computed = {shard.number: scored for shard, scored in executor.compute(losses, own, progress, total)}
    processes.barrier()  # from here on the shards of the other processes are found, not computed
    scored = [computed.get(number) or losses.make(shard_of(number)) for number in range(len(shards))]
    models = [[shard.of_base for shard in scored], scored] if losses.in_pairs else [scored]
    if progress is not None and any(not shard.stage.was_reused for shard in computed.values()):
        progress(total, total)
    empty = np.empty(0, dtype=np.float32)

    def column(name: str, parts: list[LossShard]) -> Ragged:
        return Ragged(np.concatenate([part.column(name).values for part in parts]) if parts else empty, offsets)

    return [{name: column(name, parts) for name in ("loss", *further)} for parts in models]
