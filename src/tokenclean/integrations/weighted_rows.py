"""Rows of token ids with a weight a token, as the weighted trainers take them, and the sum that divides their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenclean.errors import RecipeError, TableError

if TYPE_CHECKING:
    from transformers import Trainer

WEIGHT = "token_weight"
UNTRAINED = -100
SMALLEST = 1e-30  # divides the loss of a batch without any weight, which is 0


def weighted_row(row: Mapping[str, Sequence[float]], name: str) -> dict[str, list[int] | list[float]]:
    """``input_ids``, ``labels`` and ``token_weight`` of one row of L tokens, checked.

    ``row``: ``input_ids`` and ``token_weight``, L each, and ``labels`` where it has them: a token whose label is −100
    then has the weight 0, unless it has one below 0, as ``cleaned.parquet`` marks what is unlearned. The labels that
    come out are −100 where the weight is 0, else the id. ``name``: for errors.

    Raises TableError for a column that is missing, of another length, or holds a weight that is NaN or infinite, and
    for a weight on the row's first token, which has no loss.
    """
    for key in ("input_ids", WEIGHT):
        if row.get(key) is None:
            raise TableError(
                f"{name}: no {key}; expected input_ids and {WEIGHT}, one float a token, as in cleaned.parquet. A plain "
                f"Trainer drops {WEIGHT} where remove_unused_columns is true"
            )
    ids, weights = np.asarray(row["input_ids"], np.int64), np.array(row[WEIGHT], np.float32)
    if weights.shape != ids.shape:
        raise TableError(
            f"{name}: {WEIGHT} has {weights.size:,} values for {ids.size:,} input_ids; write the row again"
        )
    if row.get("labels") is not None:
        labels = np.asarray(row["labels"], np.int64)
        if labels.shape != ids.shape:
            raise TableError(
                f"{name}: labels has {labels.size:,} values for {ids.size:,} input_ids; write the row again"
            )
        weights[(labels == UNTRAINED) & (weights > 0)] = 0
    if not np.isfinite(weights).all():
        place = int(np.flatnonzero(~np.isfinite(weights))[0])
        raise TableError(f"{name}, token {place}: {WEIGHT} is {weights[place]}; a weight must be finite")
    if weights[:1].any():
        raise TableError(
            f"{name}, token 0: {WEIGHT} is {weights[0]:g}, but the first token of a row has nothing before it and so "
            "no loss; its weight must be 0"
        )
    labels = np.where(weights != 0, ids, UNTRAINED)
    return {"input_ids": ids.tolist(), "labels": labels.tolist(), WEIGHT: weights.tolist()}


def total_weight(trainer: Trainer, batches: Sequence[Mapping[str, torch.Tensor]], device: torch.device) -> torch.Tensor:
    """Σ |w| of the batches that one optimizer step accumulates: float32, one value.

    Of all processes together where the trainer's ``average_tokens_across_devices`` says so, as the trainer itself
    counts labels.
    """
    total = torch.stack([batch[WEIGHT].abs().sum() for batch in batches]).sum().to(device)
    if trainer.args.average_tokens_across_devices and trainer.args.world_size > 1:
        gathered: object = trainer.accelerator.gather(total)
        assert isinstance(gathered, torch.Tensor)
        total = gathered.sum() / trainer.get_tp_size()
    return total


def check_options(trainer: Trainer, *problems: str) -> None:
    """Raise RecipeError listing ``problems`` and what else keeps the trainer from minimising Σ w·ℓ / Σ |w|."""
    config = trainer.accelerator.parallelism_config
    is_split = config is not None and (config.cp_enabled or config.sp_enabled)
    faults = {
        "label_smoothing_factor must be 0: the smoothed loss takes no weights": trainer.args.label_smoothing_factor
        != 0,
        "compute_loss_func must be None: the weighted loss takes its place": trainer.compute_loss_func is not None,
        "context and sequence parallelism split rows without their weights: use data parallelism": is_split,
    }
    if found := [*problems, *(problem for problem, is_so in faults.items() if is_so)]:
        raise RecipeError(found, type(trainer).__name__)
