"""A pass over a pool in shards, each a stage of a run folder: a stopped pass loses no more than its open shard.

A shard is a run of consecutive rows. Its packs are planned from its own rows, so its losses depend on nothing else, and
a shard that was computed once is found again whichever run or command asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.scoring.engine import Progress, token_losses
from tokenclean.store import Stage, array_hash
from tokenclean.tokens import TokenizedPool
from tokenclean.tokens.table import read_column, write_column

if TYPE_CHECKING:
    import torch

# Raise the number when a shard's code comes to mean something else; old shards are then stale and made anew.
LOSSES_VERSION = 1
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
    load: Callable[[], torch.nn.Module],
    tokens: TokenizedPool,
    model: Mapping[str, Any],
    *,
    what: str,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
    **options: Any,
) -> Ragged:
    """``token_losses`` of the whole pool, shard by shard; shards that are whole are not computed again.

    ``make_stage``: of the run folder. ``load``: gives the model, called only where a shard is missing. ``model``:
    what identifies its weights and the kind of its device. ``what``: a few words for the manifests. ``options``:
    ``precision`` and ``pack_tokens`` of ``token_losses``. Returns float32 nats, NaN off the response.
    """
    losses = np.full(len(tokens.input_ids.values), np.nan, dtype=np.float32)
    offsets = tokens.input_ids.offsets
    made: list[bool] = []
    for number, rows in enumerate(shards := plan_shards(tokens, shard_tokens), start=1):
        shard = tokens.take(rows)
        part = f"{what}, {number} of {len(shards)}" if len(shards) > 1 else what
        first, last = int(offsets[rows[0]]), int(offsets[rows[-1] + 1])
        report = None if progress is None else _from(progress, first, len(losses))

        def make(
            folder: Path, shard: TokenizedPool = shard, part: str = part, report: Progress | None = report
        ) -> Mapping[str, Any]:
            computed = token_losses(load(), shard, progress=report, **options)
            write_column(computed, "loss", folder / "losses.parquet")
            known = computed.values[np.isfinite(computed.values)]
            mean = float(known.mean(dtype=np.float64)) if len(known) else None
            return {"what": part, "mean_loss_nats": mean, "tokens": len(known)}

        inputs = {
            "tokens": array_hash(shard.input_ids.values, shard.input_ids.offsets, shard.is_response.values),
            **model,
            **options,
        }
        stage = make_stage(inputs, make)
        made.append(not stage.was_reused)
        losses[first:last] = read_column("loss", stage.path / "losses.parquet").values
    if progress is not None and any(made):
        progress(len(losses), len(losses))
    return Ragged(losses, offsets)


def _from(progress: Progress, done_before: int, total: int) -> Progress:
    """Progress of a shard as progress of the pass, whose end is told once, after the last shard, computed or found."""
    return lambda done, of: progress(min(done_before + done, total - 1), total)
