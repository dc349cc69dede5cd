"""How long each cell will take, from a dry run of its strategy: what earlier cells of the same model share is not
counted again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evidence.cells import TASKS, TRUSTED, Cell
from evidence.measure import FIRST_STEPS, checked_rows
from evidence.setup import Setup
from tokenclean.cleaning import RunContext, run_strategy
from tokenclean.cleaning.run_data import RunData
from tokenclean.experiment.planning.dry_run import DryModels, Recorded, RecordedPass
from tokenclean.experiment.planning.flop import ModelSize, model_size, scoring_flop, training_flop
from tokenclean.experiment.planning.hardware import Hardware
from tokenclean.experiment.planning.measured_speed import Speed, measure_speed
from tokenclean.experiment.preferences import margins_of_models
from tokenclean.models.loading.load import load_config
from tokenclean.recipe import Recipe

QUESTIONS = {
    "mmlu": (14_042, 300),
    "truthfulqa": (817, 300),
    "arc_challenge": (1_172, 90),
    "arc_easy": (2_376, 80),
    "hellaswag": (10_042, 190),
    "logiqa": (651, 300),
    "boolq": (3_270, 150),
    "xquad": (3_570, 700),
}
"""Questions of each benchmark, and the tokens that one takes, about."""
_MMLU_SUBJECTS, _LANGUAGES = 57, 3
GPU = "H200"
SMALL_MODEL = 6.0
"""How many times as long as by the data sheet's share, which was measured on a larger model; measured nowhere yet."""
START_SECONDS = 20.0
COST_SECONDS = 600.0
"""Of the cell of the naive way, which no dry run counts: a guess, measured nowhere yet."""


@dataclass(frozen=True)
class Estimate:
    """``alone``: seconds of a cell in an empty run folder; ``after``: where the earlier cells of the list are done."""

    alone: float
    after: float


def estimate(cells: Sequence[Cell], setup: Setup, gflops: float | None = None) -> dict[str, Estimate]:
    """Of every cell whose model is there, by its name; ``cells`` in the order in which they are run. ``gflops``: useful
    ones in a second; by default measured here on a few layers, or those of a GPU's data sheet."""
    found: dict[str, Estimate] = {}
    for model in dict.fromkeys(cell.model for cell in cells):
        of_model = [cell for cell in cells if cell.model == model and setup.missing(cell) is None]
        if of_model:
            found |= _of_model(of_model, setup, gflops)
    return found


def _of_model(cells: Sequence[Cell], setup: Setup, gflops: float | None) -> dict[str, Estimate]:
    device = "cuda" if setup.scale.name == "gpu" else "cpu"
    rows: dict[tuple[bool, bool], RunData] = {}
    shared: DryModels | None = None
    work: dict[str, tuple[Sequence[Recorded], Sequence[Recorded], Recipe]] = {}
    for cell in cells:
        if cell.strategy == "cost":
            continue
        recipe = setup.recipe(cell)
        kind = (cell.reference == TRUSTED, recipe.chooses)
        if kind not in rows:
            rows[kind] = setup.data_of(cell)
        data = replace(rows[kind], recipe=recipe)
        shared = replace(shared, recipe=recipe) if shared else DryModels(recipe, device)
        before = len(shared.recorded)
        _dry(cell, data, shared, setup.scale.checked)
        alone = DryModels(recipe, device)
        _dry(cell, data, alone, setup.scale.checked)
        work[cell.name] = (alone.recorded, shared.recorded[before:], recipe)
    if shared is None:
        return {cell.name: Estimate(COST_SECONDS, COST_SECONDS) for cell in cells}
    data, recipe = next(iter(rows.values())), work[next(iter(work))][2]
    config = load_config(data.base_source)
    size = model_size(config, recipe.training)
    speed = None
    if gflops is not None:
        speed = Speed(gflops * 1e9, gflops * 1e9)
    elif device == "cpu":
        speed = measure_speed(config, recipe, shared.recorded)
    gpu = Hardware.parse(GPU)

    def seconds(scoring: float, training: float) -> float:
        if speed is not None:
            return scoring / speed.scoring + training / speed.training
        return SMALL_MODEL * gpu.seconds(scoring, training, recipe.scoring.precision, recipe.training.precision)

    found = {}
    for cell in cells:
        if cell.strategy == "cost":
            found[cell.name] = Estimate(COST_SECONDS, COST_SECONDS)
            continue
        alone, after, of_cell = work[cell.name]
        further = _question_flop(cell, size, of_cell)
        times = [
            START_SECONDS + seconds(scoring + further, training)
            for scoring, training in (_flop(items, size, of_cell) for items in (alone, after))
        ]
        found[cell.name] = Estimate(*times)
    return found


def _dry(cell: Cell, data: RunData, models: DryModels, checked: int) -> None:
    context = RunContext(data, models, models, note=lambda text: None, is_dry=True)
    checking = replace(context, data=replace(data, heldout=checked_rows(data, checked)))
    if cell.step in FIRST_STEPS:
        FIRST_STEPS[cell.step](checking)
        return
    result = run_strategy(checking, cell.strategy)
    if not cell.tasks and cell.step != "train":
        context.heldout_losses(result.model)
        margins_of_models(context, {"model": result.model})


def _flop(items: Sequence[Recorded], size: ModelSize, recipe: Recipe) -> tuple[float, float]:
    """Of passes, and of trainings."""
    scoring = training = 0.0
    for item in items:
        if isinstance(item, RecordedPass):
            scoring += scoring_flop(size, item.lengths, item.responses)
        else:
            training += training_flop(size, recipe.training, item.lengths, item.selected) * recipe.training.epochs
    return scoring, training


def _question_flop(cell: Cell, size: ModelSize, recipe: Recipe) -> float:
    if not cell.tasks:
        return 0.0
    limits: Mapping[str, int] = dict(recipe.evaluation.limits)
    tokens = 0.0
    for task in TASKS[cell.tasks]:
        count, of_one = QUESTIONS[task]
        most = limits.get(task, recipe.evaluation.limit)
        parts = {"mmlu": _MMLU_SUBJECTS, "xquad": _LANGUAGES}.get(task, 1)
        tokens += of_one * (count if most is None else min(count, most * parts))
    return tokens * 2.0 * (size.body + size.head / 8)
