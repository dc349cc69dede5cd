"""The strategies of a recipe on naive passes and trainings: the other side of ``benchmarks.pipeline``.

Float32, rows in their order in batches of six padded to the longest, every logit; the model is loaded for each pass and
each training, and an adapter is merged before the next training, as scripts do that hand models on through files.
Losses that several strategies need are computed once, as in a run.

    python -m benchmarks.naive_pipeline RECIPE JSON
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.scoring_ways import naive_losses
from benchmarks.training import naive_loss
from tokenclean import Ragged, TokenizedPool
from tokenclean.cleaning import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.run_data import read_run_data
from tokenclean.cleaning.trainings import TrainingJob
from tokenclean.cli.console import quiet_libraries
from tokenclean.experiment.planning.dry_run import RandomRatings
from tokenclean.experiment.run import take_strategies
from tokenclean.models.loading.load import ModelSource, load_model
from tokenclean.recipe import Recipe, load_recipe
from tokenclean.store import array_hash, fingerprint, write_json
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.optimizer import adamw, learning_rates
from tokenclean.training.step_plan import plan_steps


@dataclass
class NaiveModels:
    """``Passes`` and ``Trainings`` of a run, the naive way; ``folder``: for trained models; ``inside``: seconds."""

    recipe: Recipe
    folder: Path
    inside: dict[str, float] = field(default_factory=lambda: {"passes": 0.0, "trainings": 0.0})
    _losses: dict[str, np.ndarray] = field(default_factory=dict)
    _trained: dict[str, Model] = field(default_factory=dict)

    def model(self, name: str, source: ModelSource) -> Model:
        return Model(name, source, fingerprint([name, str(source)]))

    def losses(self, model: Model, tokens: TokenizedPool, what: str, settings: object = None) -> Ragged:
        key = fingerprint([model.key, array_hash(tokens.input_ids.values, tokens.is_response.values)])
        if key not in self._losses:
            with self._timed("passes"):
                self._losses[key] = naive_losses(load_model(model.source), tokens)
        return tokens.input_ids.with_values(self._losses[key])

    def pair(self, base: Model, model: Model, tokens: TokenizedPool, what: str) -> tuple[Ragged, Ragged]:
        return self.losses(base, tokens, what), self.losses(model, tokens, what)

    def train(self, job: TrainingJob) -> Model:
        key = fingerprint(job.inputs(self.recipe, "cpu"))
        if key not in self._trained:
            with self._timed("trainings"):
                self._trained[key] = Model(job.name, self._fine_tune(job, self.folder / key[:12]), key)
        return self._trained[key]

    def noise_rates(self, job: TrainingJob, model: Model) -> np.ndarray:
        raise NotImplementedError("no strategy of this benchmark asks for noise rates")

    def _fine_tune(self, job: TrainingJob, folder: Path) -> ModelSource:
        """Train a fresh LoRA on the model so far, merge it, and write the whole model."""
        settings = self.recipe.training
        torch.manual_seed(self.recipe.seed)
        wrapped = add_fresh_lora(load_model(job.start.source), settings.lora, None)
        rows = np.flatnonzero(job.weights.map_values(lambda weights: weights != 0).row_sums())
        plan = plan_steps(len(rows), settings)
        optimizer, rate = adamw(wrapped, settings), learning_rates(settings, plan)
        wrapped.train()
        random, step = np.random.default_rng(self.recipe.seed), 0
        for _ in range(settings.epochs):
            order = random.permutation(rows)
            for start in range(0, len(order), plan.batch_size):
                batch = order[start : start + plan.batch_size]
                naive_loss(wrapped, job.tokens.take(batch), job.weights.take(batch))
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
        merged = wrapped.merge_and_unload()
        merged.save_pretrained(folder)
        return ModelSource(str(folder))

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.inside[kind] += time.perf_counter() - started


def run(recipe_path: str) -> dict[str, object]:
    """The naive run: seconds inside passes and trainings, and its last held-out loss."""
    quiet_libraries()
    recipe = load_recipe(recipe_path)
    with tempfile.TemporaryDirectory() as folder:
        models = NaiveModels(recipe, Path(folder))
        context = RunContext(read_run_data(recipe, RandomRatings), models, models, note=lambda text: None)
        _, measured, _ = take_strategies(context, {})
    return {"inside": models.inside, "loss": measured[-1].loss}


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), run(sys.argv[1]))
