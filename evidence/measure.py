"""One cell: trains its strategy, and measures the model on the held-out rows and pairs, or on benchmarks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from benchmarks import machine

from evidence.arrays import pack
from evidence.cells import TASKS, Cell
from evidence.setup import Setup
from tokenclean.cleaning import RunContext, StrategyResult, run_strategy
from tokenclean.cleaning.automatic import choose_strategy
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import OpenRun
from tokenclean.cleaning.passes import Passes
from tokenclean.cleaning.run_data import RunData
from tokenclean.cleaning.run_stages import Stages
from tokenclean.cleaning.trainings import StepModels, TrainingJob, Trainings
from tokenclean.experiment.preferences import margins_of_models
from tokenclean.experiment.result_files import kept_share
from tokenclean.observer import Observer
from tokenclean.ragged import Ragged
from tokenclean.recipe import ScoringSettings
from tokenclean.store import Store
from tokenclean.tokens import TokenizedPool

Document = dict[str, Any]


def measure(cell: Cell, setup: Setup) -> Document:
    """The cell's figures as a JSON value; what it shares with others is found in the run folder."""
    started = time.monotonic()
    observer = Observer(note=lambda text: print(text, flush=True))
    store = Store(setup.recipe(cell).folder, note=observer.note)
    with store.lock():
        opened = setup.open(cell, store, observer)
        clock = Clock(opened.device, opened.stages)
        context = replace(
            opened.context,
            passes=TimedPasses(opened.context.passes, clock),
            trainings=TimedTrainings(opened.context.trainings, clock),
        )
        checking = replace(context, data=replace(context.data, heldout=checked_rows(context.data, setup.scale.checked)))
        if cell.step in FIRST_STEPS:
            FIRST_STEPS[cell.step](checking)
            return _taken(clock, started)
        result = run_strategy(checking, cell.strategy)
        if cell.step == "train":
            return {**_reports(checking, result), **_taken(clock, started)}
        if cell.tasks:
            with clock.timed(cell.tasks):
                found = benchmark_figures(cell, opened, result.model)
        else:
            found = heldout_figures(context, result) | _reports(checking, result)
    steps = (result.model.training or {}).get("steps")
    return {**found, "optimizer_steps": steps, **_taken(clock, started)}


def pool_losses(context: RunContext) -> None:
    """The losses of the pool under the base and the reference."""
    context.pair_losses(context.base, context.given_reference or context.warmup)


FIRST_STEPS: dict[str, Callable[[RunContext], object]] = {"passes": pool_losses, "trials": choose_strategy}
"""What a cell's first step computes."""


def _taken(clock: Clock, started: float) -> Document:
    """Time and peak memory of what was computed now, and where."""
    return {
        "stages": [asdict(stage) for stage in clock.stages],
        "seconds": round(time.monotonic() - started, 1),
        "machine": asdict(machine.describe(clock.device)),
    }


def checked_rows(data: RunData, count: int) -> TokenizedPool:
    """The first ``count`` held-out rows of each source: references are checked on these, to save time."""
    seen: Counter[str] = Counter()
    rows = []
    for row, source in enumerate(data.heldout.sources):
        seen[source] += 1
        if seen[source] <= count:
            rows.append(row)
    return data.heldout.take(np.array(rows))


def heldout_figures(context: RunContext, result: StrategyResult) -> Document:
    """Summed loss (nats) and response tokens of each held-out row, margins of the pairs."""
    data, losses = context.data, context.heldout_losses(result.model)
    present = np.isfinite(losses.values)
    of_row = losses.with_values(np.where(present, losses.values, 0.0)).row_sums()
    counts = losses.with_values(present).row_sums().astype(np.int32)
    margins = margins_of_models(context, {"model": result.model}).get("model")
    return {
        "heldout": {
            "rows": pack(_row_numbers(data)),
            "losses": pack(of_row.astype(np.float32)),
            "tokens": pack(counts),
        },
        "margins": None if margins is None else pack(margins.astype(np.float32)),
        "kept_share": kept_share(result, context),
        "training_rows": len(context.tokens),
        "response_tokens": int(context.tokens.is_response.values.sum()),
    }


def _row_numbers(data: RunData) -> np.ndarray:
    """Of each held-out row that is reported on, its line in the pool's file, from 0."""
    lines = {row.id: row.line - 1 for row in data.heldout_pool}
    return np.array([lines[id] for id in data.heldout.ids], dtype=np.int32)


def _reports(context: RunContext, result: StrategyResult) -> Document:
    """References and their checks, self-evolving cleaning's models round by round, what ``auto`` chose."""
    models = list(result.rounds) if len(result.rounds) > 1 else []
    rounds = []
    for model in models:
        against = None if model is models[0] else asdict(context.against(model, models[0]))
        loss = context.against(model, context.base).loss
        rounds.append({"name": model.name, "loss": loss, "against_first": against})
    checks = [
        {"name": check.model.name, "against_base": asdict(check.heldout), "faults": check.faults}
        for check in result.checks
    ]
    choice = None if result.choice is None else result.choice.to_json()
    return {"rounds": rounds, "references": checks, "choice": choice}


def benchmark_figures(cell: Cell, opened: OpenRun, model: Model) -> Document:
    """Every item's score on the cell's benchmarks."""
    from tokenclean.evaluation.task_data import load_benchmarks
    from tokenclean.experiment.comparing.task_scores import benchmark_scores

    recipe = opened.context.recipe
    settings = recipe.evaluation.model_copy(update={"tasks": TASKS[cell.tasks]})
    loaded = load_benchmarks(settings, opened.context.data.tokenizer, recipe.tokens)
    figures = {}
    for name, found in benchmark_scores(opened, model, loaded).items():
        parts = None if found.groups is None else np.unique(found.groups, return_inverse=True)[1].astype(np.uint8)
        figures[name] = {
            "scores": pack(found.scores.astype(np.float32)),
            "parts": None if parts is None else pack(parts),
            "computed_tokens": found.manifest["computed_tokens"],
        }
    return {"benchmarks": figures}


@dataclass(frozen=True)
class TimedStage:
    """A pass or a training that was computed, not found: ``seconds`` of it, and the most memory held meanwhile."""

    kind: str
    name: str
    seconds: float
    peak_bytes: int


@dataclass
class Clock:
    """Time and peak memory of everything computed on ``device``, by whether ``run_stages`` came to hold more."""

    device: str
    run_stages: Stages
    stages: list[TimedStage] = field(default_factory=list)

    @contextmanager
    def timed(self, name: str, kind: str = "benchmarks") -> Iterator[None]:
        before, started = len(self.run_stages.computed), time.perf_counter()
        machine.reset_peak_memory(self.device)
        yield
        if len(self.run_stages.computed) > before:
            seconds = round(time.perf_counter() - started, 2)
            self.stages.append(TimedStage(kind, name, seconds, machine.peak_memory(self.device)))


@dataclass(frozen=True)
class TimedPasses:
    """``Passes`` that note what each takes."""

    passes: Passes
    clock: Clock

    def model(self, name: str, source: Any) -> Model:
        return self.passes.model(name, source)

    def losses(self, model: Model, tokens: TokenizedPool, what: str, settings: ScoringSettings | None = None) -> Ragged:
        with self.clock.timed(f"{what} under {model.name}", "pass"):
            return self.passes.losses(model, tokens, what, settings)

    def pair(self, base: Model, model: Model, tokens: TokenizedPool, what: str) -> tuple[Ragged, Ragged]:
        with self.clock.timed(f"{what} under {base.name} and {model.name}", "pass"):
            return self.passes.pair(base, model, tokens, what)

    def served_policy(self, model: Model) -> Mapping[str, object] | None:
        return self.passes.served_policy(model)


@dataclass(frozen=True)
class TimedTrainings:
    """``Trainings`` that note what each takes."""

    trainings: Trainings
    clock: Clock

    def train(self, job: TrainingJob) -> Model:
        with self.clock.timed(job.name, "training"):
            return self.trainings.train(job)

    def noise_rates(self, job: TrainingJob, model: Model) -> np.ndarray:
        return self.trainings.noise_rates(job, model)

    def one_step(self, job: TrainingJob, nulls: int) -> StepModels:
        with self.clock.timed(job.name, "training"):
            return self.trainings.one_step(job, nulls)
