"""Losses of a pool in memory, shard by shard: a stopped pass loses no more than its open shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.models.packing import trimmed_lengths
from tokenclean.observer import Progress
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.scoring.loss_shards import (
    LOSSES_VERSION,
    LossShard,
    LossShards,
    MakeStage,
    ScoringPolicy,
    hash_tokens,
    progress_of_part,
)
from tokenclean.scoring.scorer import PACK_TOKENS
from tokenclean.tokens import TokenizedPool

if TYPE_CHECKING:
    import torch

__all__ = ["LOSSES_VERSION", "SHARD_TOKENS", "plan_shards", "sharded_losses"]

SHARD_TOKENS = 1 << 18


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


def sharded_losses(
    make_stage: MakeStage,
    using: Callable[[], AbstractContextManager[torch.nn.Module]],
    tokens: TokenizedPool,
    model: Mapping[str, object],
    *,
    what: str,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    processes: Processes = SINGLE_PROCESS,
    precision: str = "safe",
    pack_tokens: int = PACK_TOKENS,
) -> Ragged:
    """Losses of the whole pool, float32 nats, NaN off the response; finished shards are not computed again.

    Among several ``processes`` each computes its share of the shards, and all get all losses. ``make_stage``, ``using``
    and ``model`` are those of ``LossShards``, ``what`` is a few words for the manifests, ``precision`` and
    ``pack_tokens`` are those of ``Scorer``.
    """
    offsets, total = tokens.input_ids.offsets, len(tokens.input_ids.values)
    longest_row = int(trimmed_lengths(tokens.is_response.values, tokens.is_response.offsets).max(initial=0))
    policy = ScoringPolicy(precision, pack_tokens)
    losses = LossShards(make_stage, using, model, policy, longest_row=longest_row, expected_tokens=total)
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
    values = np.full(total, np.nan, dtype=np.float32)
    for number, (first, last) in enumerate(bounds):
        values[first:last] = (own.get(number) or make(number)).column("loss").values
    if progress is not None and any(not shard.stage.was_reused for shard in own.values()):
        progress(total, total)
    return Ragged(values, offsets)
