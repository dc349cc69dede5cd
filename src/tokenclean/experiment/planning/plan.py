"""What a run will do and cost, before any weight is loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from tokenclean.cleaning.rows import (
    check_best_rated,
    check_rendered,
    open_mixture,
    split_heldout,
    split_rows,
    take_rows,
    tokens_options,
)
from tokenclean.cleaning.schedule import check_base, schedule_parts
from tokenclean.experiment.planning.hardware import Hardware
from tokenclean.experiment.planning.memory import (
    model_shape,
    model_without_content,
    process_bytes,
    scoring_memory,
    training_memory,
)
from tokenclean.models.device import resolve_device
from tokenclean.models.loading.load import load_config, load_tokenizer, resolve_source
from tokenclean.recipe import Recipe
from tokenclean.report.tables import Table
from tokenclean.tokens import TokenizedPool, tokenize_pool
from tokenclean.training.step_plan import SchedulePart, plan_steps

USEFUL_SHARE = 0.45
"""Share of the measured matrix-product speed that a pass makes useful; the estimate's only constant."""


_ON_FULL_TOKENS = ("full_tokens", "noise_mixture", "repetition")
"""Strategies that train every response token, or about as many."""


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
    """Read pool, tokenizer and configuration, and lay out the run. ``flop_per_second``: measured here by default.

    ``on``: other hardware to lay it out for.
    """
    mixture = open_mixture(recipe)
    pool = mixture.pool
    settings = recipe.pool.curation
    if settings is not None and settings.rows is not None and settings.rows < len(pool):
        pool = pool.take(_in_place_of_best(len(pool), settings.rows))
    pool, heldout_pool = split_heldout(take_rows(pool, recipe), recipe)
    trusted = recipe.model.trust_remote_code
    source = resolve_source(recipe.model.base, revision=recipe.model.revision, trusted=trusted)
    check_base(recipe, source)
    tokenizer = load_tokenizer(source)
    tokens, heldout = (tokenize_pool(p, tokenizer, **tokens_options(recipe)) for p in (pool, heldout_pool))
    intake = check_rendered(mixture, recipe, tokens.rendered_rows, heldout.rendered_rows)
    config = load_config(source)
    size = model_size(config, recipe)
    device_type = resolve_device(recipe.model.device).partition(":")[0]
    memory_of = partial(_Memory, config, recipe, lora=size.lora)
    steps = _steps(recipe, tokens, heldout, size, memory_of(device_type))
    speed = flop_per_second or measure_speed(recipe)
    flop = sum(step.flop for step in steps)
    seconds = flop / (speed * USEFUL_SHARE)
    own = process_bytes() if device_type == "cpu" else 0
    memory = own + max(step.memory_bytes for step in steps)
    response = int(tokens.is_response.values.sum())
    summary = (
        f"pool: {len(tokens):,} training rows, {len(tokens.input_ids.values):,} tokens, {response:,} of them response; "
        f"{len(heldout):,} held-out rows, {intake.set_aside:,} rows set aside",
        *intake.lines(),
        f"kept: {recipe.cleaning.proportion:.0%} of the response tokens; splits: {recipe.cleaning.splits} "
        f"({recipe.cleaning.split_kind})",
        f"model: {size.total:,} parameters, {size.lora:,} trained"
        if recipe.training.method == "lora"
        else f"model: {size.total:,} parameters, all trained",
        f"in all {flop / 1e15:.2f} PFLOP; peak memory about {memory / 2**30:.1f} GiB; about {_minutes(seconds)} at "
        f"{speed * USEFUL_SHARE / 1e9:,.0f} useful GFLOP/s (matrix products measured here, {USEFUL_SHARE:.0%} of them)",
    )
    rows = tuple(
        (
            s.name,
            f"{s.rows:,}",
            f"{s.tokens:,}",
            f"{s.optimizer_steps}" if s.optimizer_steps else "–",
            f"{s.batch_size}" if s.batch_size else "–",
            f"{(own + s.memory_bytes) / 2**30:,.1f}",
            f"{s.flop / 1e12:,.1f}",
            _minutes(s.flop / (speed * USEFUL_SHARE)),
        )
        for s in steps
    )
    columns = ("pass", "rows", "tokens", "steps", "batch", "GiB", "TFLOP", "time")
    elsewhere = None
    if on:
        there = steps if device_type == "cuda" else _steps(recipe, tokens, heldout, size, memory_of("cuda"))
        elsewhere = _elsewhere(recipe, there, on)
    return Plan(summary, tuple(steps), memory, seconds, Table("Passes of the run", columns, rows), elsewhere)


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


def _steps(
    recipe: Recipe, tokens: TokenizedPool, heldout: TokenizedPool, size: ModelSize, memory: _Memory
) -> list[Step]:
    everything = np.arange(len(tokens))
    has_ds2 = "ds2" in recipe.strategies or recipe.cleaning.warmup == "ds2"
    best_rated = np.zeros(0, dtype=np.int64)
    if has_ds2:
        check_best_rated(recipe.cleaning.ds2_rows, len(tokens))
        best_rated = _in_place_of_best(len(tokens), recipe.cleaning.ds2_rows)
    splits = split_rows(tokens.sources, recipe, best_rated if recipe.cleaning.warmup == "ds2" else None)
    parts = schedule_parts(recipe, tokens, splits)
    unseen = np.concatenate(splits[1:])
    steps: list[Step] = []
    measured = 1

    def score(name: str, of: TokenizedPool, rows: np.ndarray) -> None:
        lengths, responses = of.input_ids.lengths[rows], of.is_response.row_sums()[rows]
        flop, held = _forward(size, lengths, responses), memory.scoring(lengths)
        steps.append(Step(f"score {name}", len(rows), int(lengths.sum()), flop, memory_bytes=held))

    def train(
        name: str, rows: np.ndarray, share: float, part: SchedulePart | None = None, earlier_rounds: int = 0
    ) -> None:
        nonlocal measured
        measured += 1
        lengths = tokens.input_ids.lengths[rows]
        responses = tokens.is_response.row_sums()[rows] * share
        usable = int((tokens.is_response.row_sums()[rows] > 0).sum())
        backward = 1.0 if recipe.training.method == "lora" else 2.0
        flop = _forward(size, lengths, responses) * (1 + backward) + 2 * size.head * float(responses.sum())
        if recipe.training.method == "lora":
            flop += 6 * size.lora * float(lengths.sum())
        planned = plan_steps(max(usable - recipe.training.eval_rows, 1), recipe.training, part)
        epochs = recipe.training.epochs
        steps.append(
            Step(
                f"train {name}",
                len(rows),
                int(lengths.sum()) * epochs,
                flop * epochs,
                planned.steps,
                planned.effective_steps,
                planned.batch_size,
                memory.training(lengths, planned.batch_size, earlier_rounds if part is None else 0),
            )
        )

    strategies, k = recipe.strategies, recipe.cleaning.proportion
    is_warmup_ds2 = recipe.cleaning.warmup == "ds2"
    is_fixed = bool({"rho", "fixed_model"} & set(strategies))
    uses_mixture = "noise_mixture" in strategies or "noise_mixture" in recipe.cleaning.also
    scores_noise = uses_mixture and recipe.cleaning.noise_mixture.mode == "offline"
    has_reference = recipe.model.reference is not None
    starts_warm = bool({"full_tokens_from_warmup", "self_evolving"} & set(strategies))
    has_own_warmup = starts_warm and parts[0] is not None
    has_warmup = (starts_warm and not has_own_warmup) or (is_fixed and not has_reference)
    needs_base = is_fixed or (scores_noise and not has_reference)
    if needs_base or "self_evolving" in strategies:
        score("pool with the base", tokens, everything if needs_base else unseen)
    if has_warmup:
        train("warm-up on D0, full tokens", splits[0], 1.0)
    if has_own_warmup:
        train("reference-0 on D0, full tokens", splits[0], 1.0, parts[0])
    if is_fixed or (scores_noise and has_reference):
        score("pool with the reference", tokens, everything)
    for name in strategies:
        if name == "self_evolving":
            for number, rows in enumerate(splits[1:], start=1):
                if number > 1 or has_own_warmup or not is_fixed:
                    score(f"D{number} with its reference", tokens, rows)
                train(f"reference-{number} on D{number}", rows, k, parts[number], number)
        elif name == "full_tokens_from_warmup" and has_own_warmup:
            for number, rows in enumerate(splits[1:], start=1):
                train(f"{name} on D{number}", rows, 1.0, parts[number])
            measured -= len(splits) - 2  # its last model alone
        elif name == "full_tokens_from_warmup":
            train(f"{name} on D1 to D{len(splits) - 1}", unseen, 1.0, earlier_rounds=1)
        elif name == "ds2":
            if not (is_warmup_ds2 and has_warmup):  # else it is the warm-up
                train(name, best_rated, 1.0)
        elif name != "none":
            train(name, everything, 1.0 if name in _ON_FULL_TOKENS else k)
    count = len(heldout) * measured
    lengths, responses = heldout.input_ids.lengths, heldout.is_response.row_sums()
    flop = _forward(size, lengths, responses) * measured
    name = f"score held-out rows, {measured} models"
    held = memory.scoring(lengths)
    steps.append(Step(name, count, int(lengths.sum()) * measured, flop, memory_bytes=held))
    return steps


def _in_place_of_best(rows: int, count: int) -> np.ndarray:
    """Rows drawn at random, where DS² would choose the best: a plan does not embed the pool."""
    return np.sort(np.random.Generator(np.random.PCG64(0)).choice(rows, count, replace=False))


def _forward(size: ModelSize, lengths: np.ndarray, responses: np.ndarray) -> float:
    """2 FLOP a parameter and token, the head on response tokens only, causal attention 2·layers·hidden·L² a row."""
    attention = 2.0 * size.attention * float(np.square(lengths.astype(np.float64)).sum())
    return 2.0 * size.body * float(lengths.sum()) + 2.0 * size.head * float(responses.sum()) + attention


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
