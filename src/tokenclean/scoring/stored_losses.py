"""Losses of the shards of a pool under one model, each shard a stage that is computed once.

A shard is a run of consecutive rows. Its packs are planned from its own rows, so its losses depend on nothing else, and
a shard that was computed once is found again, whichever run or command asks for it; a stopped pass loses no more than
its open shard. Who asks decides how a pool is cut: ``sharded_columns`` does so for a pool in memory, ``pool_pass`` for
one that is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tokenclean.errors import RunFolderError
from tokenclean.models.packing import trimmed_lengths
from tokenclean.observer import Progress
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.recipe import ServedModel
from tokenclean.scoring.scorer import PACK_TOKENS, Scorer
from tokenclean.store import Stage, array_hash
from tokenclean.token_table import read_column, write_column
from tokenclean.tokens import TokenizedPool

if TYPE_CHECKING:
    import torch

    from tokenclean.models.loading.load import ModelSource

SHARD_TOKENS = 1 << 18

MakeStage = Callable[[Mapping[str, object], Callable[[Path], Mapping[str, object]]], Stage]
"""Finds the stage of the given inputs, or makes it with the given function."""


@dataclass(frozen=True)
class ScoringPolicy:
    """``precision``, ``pack_tokens`` and ``compile`` of ``Scorer``, and the further ``columns`` wanted of it."""

    precision: str = "safe"
    pack_tokens: int = PACK_TOKENS
    columns: tuple[str, ...] = ()
    compile: str = "auto"


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


class ShardLosses(Protocol):
    """What gives the losses of a pool's shards: a model that is loaded here (``LossShards``), or one behind a server.

    ``in_pairs``: each stage holds the losses of a base too.
    """

    in_pairs: bool

    def make(
        self, tokens_hash: str, tokens: Callable[[], TokenizedPool], what: str, progress: Progress | None = None
    ) -> LossShard:
        """Find the losses of the shard with this ``hash_tokens``, or compute them from its ``tokens()``.

        ``what``: a few words for the manifest."""
        ...

    def find(self, tokens_hash: str, what: str) -> LossShard:
        """The losses of a shard that was computed before. Raises RunFolderError where they are gone or damaged."""
        ...

    def unload(self) -> None:
        """Drop what takes memory."""
        ...


class LossShards:
    """Losses of a pool's shards under one model.

    ``using``: gives a block with the model (``ModelCache.using``), entered for each shard that is computed, so two
    models on one base can take turns. ``model``: inputs of the stages that identify its weights and the kind of its
    device. ``longest_row`` and ``expected_tokens``: those of the whole pool, not of the shards still missing, since a
    resumed pass must choose the kernels that it began with. ``base``: the same inputs of the base of this model, an
    adapter: both are then scored in pairs (``models.pairs``), and each stage holds the losses of both.
    """

    def __init__(
        self,
        make_stage: MakeStage,
        using: Callable[[], AbstractContextManager[torch.nn.Module]],
        model: Mapping[str, object],
        policy: ScoringPolicy,
        *,
        longest_row: int,
        expected_tokens: int,
        base: Mapping[str, object] | None = None,
    ) -> None:
        self._make_stage, self._using, self.in_pairs = make_stage, using, base is not None
        self._inputs = {**model, "precision": policy.precision, "pack_tokens": policy.pack_tokens}
        if policy.columns:
            self._inputs["columns"] = sorted(policy.columns)
        if base is not None:
            self._inputs["base"] = base["model"]
        self._scorer_options = {**asdict(policy), "longest_row": longest_row, "expected_tokens": expected_tokens}
        self._scorer: Scorer | None = None

    def make(
        self, tokens_hash: str, tokens: Callable[[], TokenizedPool], what: str, progress: Progress | None = None
    ) -> LossShard:
        """Find the losses of the shard with this ``hash_tokens``, or compute them from its ``tokens()``.

        ``what``: a few words for the manifest. Raises as ``Scorer.score`` and ``Store.stage`` do.
        """

        def compute(folder: Path) -> Mapping[str, object]:
            with self._using() as model:
                scorer = self._scorer_of(model)
                if self.in_pairs:
                    of_base, columns = scorer.score_pair(tokens(), progress)
                else:
                    of_base, columns = {}, scorer.score(tokens(), progress)
                policy = scorer.pair_policy if self.in_pairs else scorer.policy
            for is_base, scored in ((False, columns), (True, of_base)):
                for name, column in scored.items():
                    write_column(column, name, folder / file_of(name, is_base=is_base))
            return described_losses(what, columns["loss"], policy)

        return LossShard(self._make_stage({"tokens": tokens_hash, **self._inputs}, compute))

    def find(self, tokens_hash: str, what: str) -> LossShard:
        """The losses of a shard that was computed before. Raises RunFolderError where they are gone or damaged."""
        return LossShard(self._make_stage({"tokens": tokens_hash, **self._inputs}, refuse_missing(what)))

    def unload(self) -> None:
        """Drop the reference to the model, so that its memory can be freed."""
        self._scorer = None

    def _scorer_of(self, model: torch.nn.Module) -> Scorer:
        """One scorer serves all shards, until the model comes as another object, which means that it was reloaded."""
        if self._scorer is None or self._scorer.model is not model:
            self._scorer = Scorer(model, **self._scorer_options)
        return self._scorer


def described_losses(what: str, losses: Ragged, policy: Mapping[str, object]) -> dict[str, object]:
    """What the manifest of a shard's losses says."""
    known = losses.values[np.isfinite(losses.values)]
    mean = float(known.mean(dtype=np.float64)) if len(known) else None
    return {"what": what, "mean_loss_nats": mean, "tokens": len(known), "policy": dict(policy)}


def hash_tokens(tokens: TokenizedPool) -> str:
    """What the stage of a shard's losses knows the shard by: a hash of its ids, offsets and labels."""
    return array_hash(tokens.input_ids.values, tokens.input_ids.offsets, tokens.is_response.values)


def refuse_missing(what: str) -> Callable[[Path], Mapping[str, object]]:
    """In place of the function that makes a stage, where it has to exist already: raises RunFolderError."""

    def refuse(folder: Path) -> Mapping[str, object]:
        raise RunFolderError(
            f"{folder.parent}: {what}: computed earlier, but now missing or damaged; give the command again"
        )

    return refuse


def progress_of_part(progress: Progress, start: int, span: int, total: int) -> Progress:
    """Progress of a part that covers ``span`` of ``total`` from ``start``, in units of the whole.

    It never reaches ``total``: the end is reported once, after the last part, computed or found.
    """
    return lambda done, of: progress(min(start + span * done // max(of, 1), total - 1), total)


def file_of(column: str, *, is_base: bool = False) -> str:
    """The file in a stage that holds this column."""
    file = "losses.parquet" if column == "loss" else f"{column}.parquet"
    return f"base_{file}" if is_base else file


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
    using: Callable[[], AbstractContextManager[torch.nn.Module]],
    tokens: TokenizedPool,
    model: Mapping[str, object],
    policy: ScoringPolicy,
    *,
    what: str,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    processes: Processes = SINGLE_PROCESS,
    base: Mapping[str, object] | None = None,
) -> list[dict[str, Ragged]]:
    """``loss`` of the whole pool and the policy's further columns (see ``Scorer.score``); finished shards are not
    computed again.

    Of one model, or with a ``base`` of two: the base and the adapter. Among several ``processes`` each computes its
    share of the shards, and all get all columns. ``make_stage``, ``using``, ``model``, ``policy`` and ``base`` are
    those of ``LossShards``, ``what`` is a few words for the manifests.
    """
    total = len(tokens.input_ids.values)
    longest_row = int(trimmed_lengths(tokens.is_response.values, tokens.is_response.offsets).max(initial=0))
    losses = LossShards(make_stage, using, model, policy, longest_row=longest_row, expected_tokens=total, base=base)
    return columns_of_shards(
        losses, tokens, policy.columns, what=what, shard_tokens=shard_tokens, progress=progress, processes=processes
    )


def columns_of_shards(
    losses: ShardLosses,
    tokens: TokenizedPool,
    further: Sequence[str] = (),
    *,
    what: str,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> list[dict[str, Ragged]]:
    """``sharded_columns`` of any source of losses; ``further``: columns beside the loss."""
    offsets, total = tokens.input_ids.offsets, len(tokens.input_ids.values)
    shards = plan_shards(tokens, shard_tokens)
    # Indices into the flat values where each shard begins and ends.
    bounds = [(int(offsets[rows[0]]), int(offsets[rows[-1] + 1])) for rows in shards]

    def make(number: int) -> LossShard:
        shard, (first, last) = tokens.take(shards[number]), bounds[number]
        part = f"{what}, {number + 1} of {len(shards)}" if len(shards) > 1 else what
        report = None if progress is None else progress_of_part(progress, first, last - first, total)
        return losses.make(hash_tokens(shard), lambda: shard, part, report)

    own = {number: make(number) for number in range(len(shards)) if processes.owns(number)}
    processes.barrier()  # from here on the shards of the other processes are found, not computed
    scored = [own.get(number) or make(number) for number in range(len(shards))]
    models = [[shard.of_base for shard in scored], scored] if losses.in_pairs else [scored]
    if progress is not None and any(not shard.stage.was_reused for shard in own.values()):
        progress(total, total)
    empty = np.empty(0, dtype=np.float32)

    def column(name: str, parts: list[LossShard]) -> Ragged:
        return Ragged(np.concatenate([part.column(name).values for part in parts]) if parts else empty, offsets)

    return [{name: column(name, parts) for name in ("loss", *further)} for parts in models]
