"""Fine-tuned models: each training a stage, stopped ones resumed from their last checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from tokenclean.cleaning.model import Model
from tokenclean.cleaning.run_stages import Stages
from tokenclean.models.device import give_back_memory
from tokenclean.models.loading.load import ModelSource
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.observer import Observer
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.store import CHECKPOINTS, STAGE_VERSIONS, fingerprint, write_json
from tokenclean.tokens import TokenizedPool
from tokenclean.training.checkpoint import last_checkpoint, step_of
from tokenclean.training.fine_tune import train, training_inputs
from tokenclean.training.one_step import STEP, OneStep, null_name, step_settings, write_one_step
from tokenclean.training.online_mixture import OnlineMixture
from tokenclean.training.step_plan import SchedulePart

_NOISE_RATES = "noise_rates.json"


@dataclass(frozen=True)
class TrainingJob:
    """Fine-tune ``start`` on ``tokens``, each token weighted by ``weights`` (float, aligned; 0: not trained).

    ``mixture``: weigh tokens by the training's own losses too. ``part``: what the training takes of a schedule that
    several share; it continues the LoRA of ``start``, with its optimizer state.
    """

    name: str
    start: Model
    tokens: TokenizedPool
    weights: Ragged
    mixture: OnlineMixture | None = None
    part: SchedulePart | None = None

    def inputs(self, recipe: Recipe, device_type: str) -> dict[str, object]:
        """Everything that determines the result; ``device_type``: ``cpu`` or ``cuda``."""
        return training_inputs(
            self.start.identity,
            self.tokens.input_ids,
            self.weights,
            recipe.training,
            seed=recipe.seed,
            device=device_type,
            mixture=self.mixture,
            part=self.part,
        )


@dataclass(frozen=True)
class StepModels:
    """``step``: the start after one gradient step; ``nulls``: after steps with random signs of the rows, each with the
    same key and other weights. ``reached``: what the step reached, in words; empty in a plan."""

    step: Model
    nulls: tuple[Model, ...]
    reached: str = ""


class Trainings(Protocol):
    """What gives a run its fine-tuned models; a plan has one that only records what would be trained."""

    def train(self, job: TrainingJob) -> Model:
        """The model of a training, found or trained."""
        ...

    def noise_rates(self, job: TrainingJob, model: Model) -> np.ndarray:
        """The noise rate that a training with a mixture last found of each of its rows, float64 (N,); NaN for a row
        that was not trained."""
        ...

    def one_step(self, job: TrainingJob, nulls: int) -> StepModels:
        """The start of the job after one plain gradient step on its tokens, and after ``nulls`` steps with random signs
        of the rows (``training.one_step``)."""
        ...


@dataclass(frozen=True)
class ModelTrainings:
    """Trainings of real models, kept as stages. ``base_source``: the base that adapters are trained for."""

    recipe: Recipe
    base_source: ModelSource
    stages: Stages
    observer: Observer
    device: str
    models: ModelCache

    def train(self, job: TrainingJob) -> Model:
        settings, processes = self.recipe.training, self.stages.processes
        inputs = job.inputs(self.recipe, self.device.partition(":")[0])
        checkpoints = self.stages.store.root / CHECKPOINTS / fingerprint([STAGE_VERSIONS["training"], inputs])[:12]

        def compute(folder: Path) -> dict[str, object]:
            tokens = int(np.count_nonzero(job.weights.values))
            before = last_checkpoint(checkpoints) if processes.is_first else None
            resumes = f", resuming after step {step_of(before)}" if before else ""
            self.observer.note(f"training {job.name} on {tokens:,} tokens of {len(job.tokens):,} rows{resumes}")
            self.models.clear()  # the training needs their memory
            trained = train(
                job.start.weights_source,
                job.tokens.input_ids,
                job.weights,
                settings,
                folder,
                seed=self.recipe.seed,
                device=self.device,
                progress=self.observer.progress(f"train {job.name}", "step"),
                mixture=job.mixture,
                checkpoints=checkpoints,
                row_names=job.tokens.ids,
                processes=processes,
                name=job.name,
                part=job.part,
            )
            give_back_memory()
            if job.mixture is not None and processes.is_first:
                write_json(folder / _NOISE_RATES, [trained.row_rates.get(row) for row in range(len(job.tokens))])
            return {"what": job.name, **trained.as_manifest()}

        stage = self.stages.stage_of_all("training", inputs, compute)
        if processes.is_first:
            shutil.rmtree(checkpoints, ignore_errors=True)
        source = (
            replace(self.base_source, adapter=str(stage.path))
            if settings.method == "lora"
            else ModelSource(str(stage.path), trusted=self.base_source.trusted)
        )
        tensors = {name: entry for name, entry in stage.manifest["files"].items() if name.endswith(".safetensors")}
        return Model(job.name, source, stage.key, fingerprint(tensors), stage.manifest["results"])

    def noise_rates(self, job: TrainingJob, model: Model) -> np.ndarray:
        rates = json.loads((model.folder / _NOISE_RATES).read_text(encoding="utf-8"))
        return np.array([np.nan if rate is None else rate for rate in rates], dtype=np.float64)

    def one_step(self, job: TrainingJob, nulls: int) -> StepModels:
        settings, processes = self.recipe.training, self.stages.processes

        def compute(folder: Path) -> dict[str, object]:
            self.observer.note(f"{job.name}: {len(job.tokens):,} rows, and {nulls} steps with random signs of them")
            self.models.clear()  # the step needs their memory
            done = write_one_step(
                job.start.weights_source,
                job.tokens.input_ids,
                job.weights,
                settings,
                folder,
                nulls=nulls,
                seed=self.recipe.seed,
                device=self.device,
                row_names=job.tokens.ids,
                processes=processes,
            )
            give_back_memory()
            return {"what": job.name, **done.as_manifest()}

        inputs = job.inputs(self.recipe, self.device.partition(":")[0])
        inputs |= {"settings": step_settings(settings).model_dump(mode="json"), "nulls": nulls}
        stage = self.stages.stage_of_all("one_step", inputs, compute)

        def model(name: str) -> Model:
            files = {file: entry for file, entry in stage.manifest["files"].items() if file.startswith(f"{name}/")}
            source = replace(self.base_source, adapter=str(stage.path / name))
            return Model(job.name if name == STEP else f"{job.name}, {name}", source, stage.key, fingerprint(files))

        reached = str(OneStep.of_manifest(stage.manifest["results"]))
        return StepModels(model(STEP), tuple(model(null_name(number)) for number in range(nulls)), reached)
