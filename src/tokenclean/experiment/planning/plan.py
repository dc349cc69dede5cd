"""What a run will do and cost, before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import Any

import numpy as np

from tokenclean.cleaning.run_data import RunData
from tokenclean.experiment.planning.dry_run import (
    Recorded,
    RecordedPass,
    RecordedTraining,
    dry_run,
    record_alone,
    training_cost,
)
from tokenclean.experiment.planning.flop import ModelSize, model_size, scoring_flop, training_flop
from tokenclean.experiment.planning.hardware import Hardware
from tokenclean.experiment.planning.measured_speed import Speed, measure_speed
from tokenclean.experiment.planning.memory import (
    model_shape,
    model_without_content,
    process_bytes,
    scoring_memory,
    training_memory,
)
from tokenclean.experiment.run import choosing_text
from tokenclean.models.device import resolve_device
from tokenclean.models.loading.load import load_config
from tokenclean.recipe import CleaningSettings, Recipe, find_strategy
from tokenclean.report.tables import Table

_LOSS_BYTES = 4
"""Of a stored loss, a response token: a float32, which hardly compresses (``benchmarks.scale`` measures 3.7)."""

_TOKEN_BYTES = 8
"""Of a token id, as a process or a worker gets it."""

_SUMMED = {
    "choosing": "score rows to choose by, {} models",
    "held-out": "score held-out rows, {} models",
    "null sample": "score a sample for the null of influence, {} passes",
    "sample": "score samples for the reference checks, {} passes",
}
"""Passes that are one line for all models."""


@dataclass(frozen=True)
class Step:
    """One pass of the run: ``flop`` floating-point operations; ``optimizer_steps`` and ``rate_steps`` (learning rate
    above 0) for a training, else 0. ``memory_bytes``: at its peak, beside the process's own. ``stored_bytes``: that it
    leaves in the run folder. ``is_served``: a server computes it, asked once for each row; neither its FLOP nor its
    time are known here. ``is_one_step``: two passes for one gradient step, which no schedule has a part in."""

    name: str
    rows: int
    tokens: int
    flop: float
    optimizer_steps: int = 0
    rate_steps: int = 0
    batch_size: int = 0
    memory_bytes: int = 0
    stored_bytes: int = 0
    is_served: bool = False
    is_one_step: bool = False


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

    ``flop_per_second``: useful ones, of passes and trainings; measured here by default. ``on``: other hardware to plan
    for.
    """
    device_type = resolve_device(recipe.model.device).partition(":")[0]
    data, recorded = dry_run(recipe, device_type)
    config = load_config(data.base_source)
    size = model_size(config, recipe.training)

    def steps_on(device_type: str) -> list[Step]:
        return _steps(recorded, recipe, size, _Memory(config, recipe, device_type, size.lora))

    steps = steps_on(device_type)
    speed = Speed(flop_per_second, flop_per_second) if flop_per_second else measure_speed(config, recipe, recorded)
    own = process_bytes() if device_type == "cpu" else 0
    memory = own + max(step.memory_bytes for step in steps)
    flop, seconds = sum(step.flop for step in steps), sum(_seconds(step, speed) for step in steps)
    elsewhere = _elsewhere(recipe, steps_on("cuda"), on, 2 * size.total) if on else None
    where = "given" if flop_per_second else "measured here on a few layers of this shape"
    summary = (
        *_pool_lines(recipe, data),
        f"model: {size.total:,} parameters, {size.lora:,} trained"
        if recipe.training.method == "lora"
        else f"model: {size.total:,} parameters, all trained",
        f"in all {flop / 1e15:.2f} PFLOP; peak memory about {memory / 2**30:.1f} GiB; about {_minutes(seconds)} "
        f"at {speed.scoring / 1e9:,.0f} useful GFLOP/s in passes and {speed.training / 1e9:,.0f} in trainings "
        f"({where})",
        *_choice_lines(data, device_type),
        *_served_lines(recipe, steps),
    )
    return Plan(summary, tuple(steps), memory, seconds, _steps_table(steps, own, speed), elsewhere)


def _pool_lines(recipe: Recipe, data: RunData) -> tuple[str, ...]:
    response = int(data.tokens.is_response.values.sum())
    return (
        f"pool: {len(data.tokens):,} training rows, {len(data.tokens.input_ids.values):,} tokens, {response:,} of them "
        f"response; {len(data.heldout):,} held-out rows{choosing_text(data)}, {data.intake.set_aside:,} rows set aside",
        *data.intake.lines(),
        *(data.review.lines() if data.review else ()),
        *_share_lines(recipe.cleaning),
    )


def _choice_lines(data: RunData, device_type: str) -> tuple[str, ...]:
    """What ``auto`` costs beside ordinary training, where the run takes it."""
    if not data.recipe.chooses:
        return ()
    own = "auto" if "auto" in data.recipe.strategies else data.recipe.cleaning.strategy
    chooses, full = (training_cost(record_alone(data, name, device_type), data.recipe) for name in (own, "full_tokens"))
    unknown = (
        " if it tries all that it may: what it tries is known once the noise is estimated" if data.choosing else ""
    )
    return (f"auto: {chooses / full:.2f} times the cost of a run on full tokens{unknown}",)


def _served_lines(recipe: Recipe, steps: Sequence[Step]) -> tuple[str, ...]:
    """What a served reference is asked."""
    served = [step for step in steps if step.is_served]
    if not served:
        return ()
    requests, tokens = sum(step.rows for step in served), sum(step.tokens for step in served)
    return (
        f"served reference {recipe.model.reference}: {requests:,} requests with {tokens:,} prompt tokens of the base's "
        "tokenizer, and a few that try the server; their time is not in the estimate",
    )


def _share_lines(cleaning: CleaningSettings) -> tuple[str, ...]:
    if not find_strategy(cleaning.strategy).ranks:
        return ()
    share = "what trials choose" if cleaning.proportion == "auto" else f"{cleaning.proportion:.0%}"
    kept = f"kept: {share} of the response tokens"
    return (f"{kept}; splits: {cleaning.splits} ({cleaning.split_kind})",)


def _seconds(step: Step, speed: Speed) -> float:
    return step.flop / (speed.training if step.optimizer_steps else speed.scoring)


def _steps_table(steps: Sequence[Step], own: int, speed: Speed) -> Table:
    """``own``: the process's own memory in bytes."""
    rows = tuple(
        (
            s.name,
            f"{s.rows:,}",
            f"{s.tokens:,}",
            f"{s.optimizer_steps}" if s.optimizer_steps else "–",
            f"{s.batch_size}" if s.batch_size else "–",
            "–" if s.is_served else f"{(own + s.memory_bytes) / 2**30:,.1f}",
            "–" if s.is_served else f"{s.flop / 1e12:,.1f}",
            "server" if s.is_served else _minutes(_seconds(s, speed)),
        )
        for s in steps
    )
    return Table("Passes of the run", ("pass", "rows", "tokens", "steps", "batch", "GiB", "TFLOP", "time"), rows)


def _elsewhere(recipe: Recipe, steps: Sequence[Step], on: Sequence[Hardware], weights: int) -> Table:
    """Time, GPU hours, memory, disk and network of the run on each hardware. ``weights``: the base's bytes in bf16,
    which every GPU loads."""
    training = sum(step.flop for step in steps if step.optimizer_steps)
    scoring = sum(step.flop for step in steps) - training
    memory = max(step.memory_bytes for step in steps)
    stored, tokens = sum(step.stored_bytes for step in steps), sum(step.tokens for step in steps)
    rows = []
    for hardware in on:
        seconds = hardware.seconds(scoring, training, recipe.scoring.precision, recipe.training.precision)
        gigabytes = f"{memory / 1e9:,.0f} of {hardware.gpu.memory_gb:,.0f} GB"
        fits = "fits" if memory < hardware.gpu.memory_gb * 1e9 else "does not fit: smaller packs, or nf4"
        hours, sent = seconds / 3600 * hardware.count, weights * hardware.count + _TOKEN_BYTES * tokens + stored
        disk, network = (f"{size / 1e9:,.1f} GB" for size in (stored, sent))
        rows.append((str(hardware), _minutes(seconds), f"{hours:,.1f}", disk, network, gigabytes, fits))
    title = "On other hardware (data sheets' rates; useful shares of them measured on an H200, see docs/benchmarks.md)"
    return Table(title, ("GPUs", "time", "GPU hours", "disk", "network", "peak memory", ""), tuple(rows))


class _Memory:
    """Of the passes, by the tokens of their largest pack."""

    def __init__(self, config: Any, recipe: Recipe, device_type: str, lora: int) -> None:
        self._recipe, self._device_type, self._lora = recipe, device_type, lora
        self._shape = model_shape(model_without_content(config))
        self._training = cache(partial(training_memory, config, recipe.training, device_type))

    def scoring(self, lengths: np.ndarray) -> int:
        total, longest = int(lengths.sum()), int(lengths.max(initial=0))
        pack = max(longest, min(self._recipe.scoring.pack_tokens, total))
        return scoring_memory(self._shape, self._recipe, self._device_type, pack).total

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
        here, served = [p for p in passes if p.served is None], [p for p in passes if p.served is not None]
        if here:
            steps.append(_scoring_step(name.format(len(here)), here, size, memory))
        if served:
            steps.append(_scoring_step(f"score {what} under {served[0].model}", served, size, memory))
    return steps


def _group(item: Recorded) -> tuple[str, str]:
    """Passes over several splits under one model, one after the other, are one line."""
    if isinstance(item, RecordedTraining):
        return "train", item.name
    return ("score " + item.what, "") if item.what in _SUMMED else ("score", item.model)


def _scoring_step(name: str, passes: Sequence[RecordedPass], size: ModelSize, memory: _Memory) -> Step:
    rows, tokens = sum(len(p.lengths) for p in passes), sum(int(p.lengths.sum()) for p in passes)
    if passes[0].served is not None:
        return Step(f"{name}, served", rows, tokens, 0.0, is_served=True)
    return Step(
        name,
        rows,
        tokens,
        sum(scoring_flop(size, p.lengths, p.responses) for p in passes),
        memory_bytes=max(memory.scoring(p.lengths) for p in passes),
        stored_bytes=_LOSS_BYTES * sum(int(p.responses.sum()) for p in passes),
    )


def _training_step(training: RecordedTraining, recipe: Recipe, size: ModelSize, memory: _Memory) -> Step:
    settings, lengths = recipe.training, training.lengths
    epochs = 1 if training.is_one_step else settings.epochs
    return Step(
        training.name if training.is_one_step else f"train {training.name}",
        len(lengths),
        int(lengths.sum()) * epochs,
        training_flop(size, settings, lengths, training.selected) * epochs,
        training.steps.steps,
        training.steps.effective_steps,
        training.steps.batch_size,
        memory.training(lengths, training.steps.batch_size, training.adapters),
        4 * (size.lora if settings.method == "lora" else size.total),
        is_one_step=training.is_one_step,
    )


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
