"""What a run will do and cost, before any weight is loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import Any

import numpy as np

from tokenclean.cleaning.run_data import RunData
from tokenclean.experiment.planning.dry_run import Recorded, RecordedPass, RecordedTraining, dry_run
from tokenclean.experiment.planning.hardware import Hardware
from tokenclean.experiment.planning.memory import (
    model_shape,
    model_without_content,
    process_bytes,
    scoring_memory,
    training_memory,
)
from tokenclean.models.device import resolve_device
from tokenclean.models.loading.load import load_config
from tokenclean.recipe import CleaningSettings, Recipe, find_strategy
from tokenclean.report.tables import Table

USEFUL_SHARE = 0.45
"""Share of the measured matrix-product speed that a pass makes useful; the estimate's only constant."""


_SUMMED = {
    "held-out": "score held-out rows, {} models",
    "sample": "score samples for the reference checks, {} passes",
}
"""Passes that are one line for all models."""


@dataclass(frozen=True)
class ModelSize:
    """``body``: parameters of the layers; ``head``: of the output layer; ``total``: stored (tied weights once);
    ``lora``: trained by the recipe's LoRA; ``attention``: layers × hidden size."""

    body: int
    head: int
    total: int
    lora: int
    attention: int


@dataclass(frozen=True)
class Step:
    """One pass of the run: ``flop`` floating-point operations; ``optimizer_steps`` and ``rate_steps`` (learning rate
    above 0) for a training, else 0. ``memory_bytes``: at its peak, beside the process's own."""

    name: str
    rows: int
    tokens: int
    flop: float
    optimizer_steps: int = 0
    rate_steps: int = 0
    batch_size: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """Counts, passes, the run's peak memory in bytes and the estimated time in seconds.

    Memory is the process's resident memory on a CPU, on a GPU what torch holds there. ``elsewhere``: the run on other
    hardware, None where none was asked for.
    """

    summary: tuple[str, ...]
    steps: tuple[Step, ...]
    memory_bytes: int
    seconds: float
    table: Table
    elsewhere: Table | None = None


def plan(recipe: Recipe, *, flop_per_second: float | None = None, on: Sequence[Hardware] = ()) -> Plan:
    """Read pool, tokenizer and configuration, and run the strategies dry.

    ``flop_per_second``: measured here by default. ``on``: other hardware to plan for.
    """
    device_type = resolve_device(recipe.model.device).partition(":")[0]
    data, recorded = dry_run(recipe, device_type)
    config = load_config(data.base_source)
    size = model_size(config, recipe)

    def steps_on(device_type: str) -> list[Step]:
        return _steps(recorded, recipe, size, _Memory(config, recipe, device_type, size.lora))

    steps = steps_on(device_type)
    speed = (flop_per_second or measure_speed(recipe)) * USEFUL_SHARE
    own = process_bytes() if device_type == "cpu" else 0
    memory = own + max(step.memory_bytes for step in steps)
    flop = sum(step.flop for step in steps)
    elsewhere = _elsewhere(recipe, steps_on("cuda"), on) if on else None
    summary = (
        *_pool_lines(recipe, data),
        f"model: {size.total:,} parameters, {size.lora:,} trained"
        if recipe.training.method == "lora"
        else f"model: {size.total:,} parameters, all trained",
        f"in all {flop / 1e15:.2f} PFLOP; peak memory about {memory / 2**30:.1f} GiB; about {_minutes(flop / speed)} "
        f"at {speed / 1e9:,.0f} useful GFLOP/s (matrix products measured here, {USEFUL_SHARE:.0%} of them)",
    )
    return Plan(summary, tuple(steps), memory, flop / speed, _steps_table(steps, own, speed), elsewhere)


def _pool_lines(recipe: Recipe, data: RunData) -> tuple[str, ...]:
    response = int(data.tokens.is_response.values.sum())
    return (
        f"pool: {len(data.tokens):,} training rows, {len(data.tokens.input_ids.values):,} tokens, {response:,} of them "
        f"response; {len(data.heldout):,} held-out rows, {data.intake.set_aside:,} rows set aside",
        *data.intake.lines(),
        *(data.review.lines() if data.review else ()),
        *_share_lines(recipe.cleaning),
    )


def _share_lines(cleaning: CleaningSettings) -> tuple[str, ...]:
    if not find_strategy(cleaning.strategy).ranks:
        return ()
    kept = f"kept: {cleaning.proportion:.0%} of the response tokens"
    return (f"{kept}; splits: {cleaning.splits} ({cleaning.split_kind})",)


def _steps_table(steps: Sequence[Step], own: int, speed: float) -> Table:
    """``own``: the process's own memory in bytes; ``speed``: useful FLOP/s."""
    rows = tuple(
        (
            s.name,
            f"{s.rows:,}",
            f"{s.tokens:,}",
            f"{s.optimizer_steps}" if s.optimizer_steps else "–",
            f"{s.batch_size}" if s.batch_size else "–",
            f"{(own + s.memory_bytes) / 2**30:,.1f}",
            f"{s.flop / 1e12:,.1f}",
            _minutes(s.flop / speed),
        )
        for s in steps
    )
    return Table("Passes of the run", ("pass", "rows", "tokens", "steps", "batch", "GiB", "TFLOP", "time"), rows)


def _elsewhere(recipe: Recipe, steps: Sequence[Step], on: Sequence[Hardware]) -> Table:
    """Time, GPU hours and memory of the run on each hardware."""
    training = sum(step.flop for step in steps if step.optimizer_steps)
    scoring = sum(step.flop for step in steps) - training
    memory = max(step.memory_bytes for step in steps)
    rows = []
    for hardware in on:
        seconds = hardware.seconds(scoring, training, recipe.scoring.precision, recipe.training.precision)
        gigabytes = f"{memory / 1e9:,.0f} of {hardware.gpu.memory_gb:,.0f} GB"
        fits = "fits" if memory < hardware.gpu.memory_gb * 1e9 else "does not fit: smaller packs, or nf4"
        rows.append((str(hardware), _minutes(seconds), f"{seconds / 3600 * hardware.count:,.1f}", gigabytes, fits))
    title = "On other hardware (data sheets' rates; useful shares of them measured on an H200, see docs/benchmarks.md)"
    return Table(title, ("GPUs", "time", "GPU hours", "peak memory", ""), tuple(rows))


def model_size(config: Any, recipe: Recipe) -> ModelSize:
    """Count parameters on the meta device, where no weight takes memory."""
    import torch

    model = model_without_content(config)
    layer = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    head = layer.weight.numel()
    total = sum(p.numel() for p in model.parameters())
    is_tied = layer.weight is embedding
    body = total - embedding.numel() - (0 if is_tied else head)
    targets = recipe.training.lora.target_modules
    lora = sum(
        recipe.training.lora.rank * (m.in_features + m.out_features)
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear)
        and m is not layer
        and (targets == "all-linear" or name.split(".")[-1] in targets)
    )
    text = config.get_text_config()
    return ModelSize(body, head, total, lora, text.num_hidden_layers * text.hidden_size)


def measure_speed(recipe: Recipe, seconds: float = 0.5) -> float:
    """FLOP/s of a linear layer as scoring computes it under the recipe's policy on its device."""
    import torch

    from tokenclean.models.precision import precision_policy

    device = resolve_device(recipe.model.device)
    layer = torch.nn.Linear(1024, 1024, bias=False, device=device)
    x = torch.randn(1024, 1024, device=device)
    with torch.no_grad(), precision_policy(layer, recipe.scoring.precision):
        layer(x).sum().item()
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            product = layer(x)
            count += 1
        product.sum().item()  # pyright: ignore[reportPossiblyUnboundVariable]  # waits for a GPU
        return count * 2 * 1024**3 / (time.perf_counter() - started)


class _Memory:
    """Of the passes, by the tokens of their largest pack."""

    def __init__(self, config: Any, recipe: Recipe, device_type: str, lora: int) -> None:
        self._config, self._recipe, self._device_type, self._lora = config, recipe, device_type, lora
        self._shape = model_shape(model_without_content(config))
        self._training = cache(partial(training_memory, config, recipe.training, device_type))

    def scoring(self, lengths: np.ndarray) -> int:
        total, longest = int(lengths.sum()), int(lengths.max(initial=0))
        pack = max(longest, min(self._recipe.scoring.pack_tokens, total))
        return scoring_memory(self._config, self._shape, self._recipe, self._device_type, pack, total).total

    def training(self, lengths: np.ndarray, batch_size: int, earlier_rounds: int) -> int:
        longest = np.sort(lengths)[::-1]
        budget = self._recipe.training.pack_tokens_on(self._device_type)
        pack = max(int(longest[:1].sum()), min(budget, int(longest[:batch_size].sum())))
        return self._training(pack).total + 4 * earlier_rounds * self._lora


def _steps(recorded: Sequence[Recorded], recipe: Recipe, size: ModelSize, memory: _Memory) -> list[Step]:
    """A line for each training and each pass over training rows; those over held-out rows and samples come last."""
    steps: list[Step] = []
    for _, same in groupby(recorded, key=_group):
        items = list(same)
        passes = [item for item in items if isinstance(item, RecordedPass)]
        if passes and passes[0].what not in _SUMMED:
            whats = [item.what for item in passes]
            what = whats[0] if len(whats) == 1 else f"{whats[0]} to {whats[-1]}"
            steps.append(_scoring_step(f"score {what} under {passes[0].model}", passes, size, memory))
        steps += [_training_step(item, recipe, size, memory) for item in items if isinstance(item, RecordedTraining)]
    for what, name in _SUMMED.items():
        passes = [item for item in recorded if isinstance(item, RecordedPass) and item.what == what]
        if passes:
            steps.append(_scoring_step(name.format(len(passes)), passes, size, memory))
    return steps


def _group(item: Recorded) -> tuple[str, str]:
    """Passes over several splits under one model, one after the other, are one line."""
    if isinstance(item, RecordedTraining):
        return "train", item.name
    return ("score " + item.what, "") if item.what in _SUMMED else ("score", item.model)


def _scoring_step(name: str, passes: Sequence[RecordedPass], size: ModelSize, memory: _Memory) -> Step:
    return Step(
        name,
        sum(len(p.lengths) for p in passes),
        sum(int(p.lengths.sum()) for p in passes),
        sum(_forward(size, p.lengths, p.responses) for p in passes),
        memory_bytes=max(memory.scoring(p.lengths) for p in passes),
    )


def _training_step(training: RecordedTraining, recipe: Recipe, size: ModelSize, memory: _Memory) -> Step:
    settings, lengths = recipe.training, training.lengths
    backward = 1.0 if settings.method == "lora" else 2.0
    flop = _forward(size, lengths, training.selected) * (1 + backward) + 2 * size.head * float(training.selected.sum())
    if settings.method == "lora":
        flop += 6 * size.lora * float(lengths.sum())
    return Step(
        f"train {training.name}",
        len(lengths),
        int(lengths.sum()) * settings.epochs,
        flop * settings.epochs,
        training.steps.steps,
        training.steps.effective_steps,
        training.steps.batch_size,
        memory.training(lengths, training.steps.batch_size, training.adapters),
    )


def _forward(size: ModelSize, lengths: np.ndarray, responses: np.ndarray) -> float:
    """2 FLOP a parameter and token, the head on response tokens only, causal attention 2·layers·hidden·L² a row."""
    attention = 2.0 * size.attention * float(np.square(lengths.astype(np.float64)).sum())
    return 2.0 * size.body * float(lengths.sum()) + 2.0 * size.head * float(responses.sum()) + attention


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
