"""A pass over a pool in shards, each a stage of a run folder: a stopped pass loses no more than its open shard.

A shard is a run of consecutive rows. Its packs are planned from its own rows, so its losses depend on nothing else, and
a shard that was computed once is found again whichever run or command asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenclean.models.packing import trimmed_lengths
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.scoring.scorer import Progress, Scorer
from tokenclean.store import Stage, array_hash
from tokenclean.token_table import read_column, write_column
from tokenclean.tokens import TokenizedPool

if TYPE_CHECKING:
    import torch

# Raise the number when a shard's code comes to mean something else; old shards are then stale and made anew.
LOSSES_VERSION = 2
SHARD_TOKENS = 1 << 18

MakeStage = Callable[[Mapping[str, Any], Callable[[Path], Mapping[str, Any]]], Stage]
"""Finds or makes the stage of the given inputs."""


def plan_shards(tokens: TokenizedPool, shard_tokens: int = SHARD_TOKENS) -> list[np.ndarray]:
    """Consecutive rows (int64) in groups of at most ``shard_tokens`` tokens, or of one longer row.

    Raises ValueError for ``shard_tokens`` < 1.
    """
    if shard_tokens < 1:
        raise ValueError(f"a shard needs at least 1 token, got {shard_tokens}")
    ends = tokens.input_ids.offsets[1:]
    shards, first = [], 0
    while first < len(tokens):
        limit = int(tokens.input_ids.offsets[first]) + shard_tokens
        last = max(int(np.searchsorted(ends, limit, side="right")), first + 1)
        shards.append(np.arange(first, last, dtype=np.int64))
        first = last
    return shards


def sharded_losses(
    make_stage: MakeStage,
    using: Callable[[], AbstractContextManager[torch.nn.Module]],
    tokens: TokenizedPool,
    model: Mapping[str, Any],
    *,
    what: str,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    processes: Processes = SINGLE_PROCESS,
    **options: Any,
) -> Ragged:
    """The losses of the whole pool, shard by shard; shards that are whole are not computed again.

    Among several ``processes`` each computes its share of the shards, and all get all losses.

    ``make_stage``: of the run folder. ``using``: gives the block with the model (``ModelCache.using``), entered
    where the first shard is missing and left with the pass. ``model``: what identifies its weights and the kind of its
    device. ``what``: a few words for the manifests, which tell the scorer's policy too. ``options``: ``precision`` and
    ``pack_tokens`` of ``Scorer``, which compiles the layers where the pool is large enough. Returns float32 nats, NaN
    off the response.
    """
    losses = np.full(len(tokens.input_ids.values), np.nan, dtype=np.float32)
    offsets = tokens.input_ids.offsets
    made: list[bool] = []
    with ExitStack() as stack:
        facts = {"longest_row": _longest_row(tokens), "expected_tokens": len(losses)}
        open_scorer = cache(lambda: Scorer(stack.enter_context(using()), **facts, **options))
        shards = plan_shards(tokens, shard_tokens)

        def stage_of(number: int, rows: np.ndarray) -> Stage:
            shard = tokens.take(rows)
            part = f"{what}, {number + 1} of {len(shards)}" if len(shards) > 1 else what
            report = None if progress is None else _from(progress, int(offsets[rows[0]]), len(losses))
            inputs = {
                "tokens": array_hash(shard.input_ids.values, shard.input_ids.offsets, shard.is_response.values),
                **model,
                **options,
            }
            stage = make_stage(inputs, partial(_make_shard, open_scorer, shard, part, report))
            made.append(not stage.was_reused)
            return stage

        if processes.count > 1:
            for number, rows in enumerate(shards):
                if processes.owns(number):
                    stage_of(number, rows)
            processes.barrier()  # a shard that another rank has finished by now is found below
        for number, rows in enumerate(shards):
            stage = stage_of(number, rows)
            first, last = int(offsets[rows[0]]), int(offsets[rows[-1] + 1])
            losses[first:last] = read_column("loss", stage.path / "losses.parquet").values
    if progress is not None and any(made):
        progress(len(losses), len(losses))
    return Ragged(losses, offsets)


def _make_shard(
    open_scorer: Callable[[], Scorer], shard: TokenizedPool, what: str, progress: Progress | None, folder: Path
) -> Mapping[str, Any]:
    scorer = open_scorer()
    computed = scorer.score(shard, progress)["loss"]
    write_column(computed, "loss", folder / "losses.parquet")
    known = computed.values[np.isfinite(computed.values)]
    mean = float(known.mean(dtype=np.float64)) if len(known) else None
    return {"what": what, "mean_loss_nats": mean, "tokens": len(known), "policy": scorer.policy}


def _longest_row(tokens: TokenizedPool) -> int:
    """Of the pool, not of a shard: a resumed pass then judges the model's sliding window as the whole pass does."""
    return int(trimmed_lengths(tokens.is_response.values, tokens.is_response.offsets).max(initial=0))


def _from(progress: Progress, done_before: int, total: int) -> Progress:
    """Progress of a shard as progress of the pass, whose end is told once, after the last shard, computed or found."""
    return lambda done, of: progress(min(done_before + done, total - 1), total)
