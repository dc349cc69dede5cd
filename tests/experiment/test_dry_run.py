"""A plan records the passes and trainings that the real run then does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from test_runs import WITHOUT_FILES, recipe_of

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.open_run import open_run
from tokenclean.cleaning.passes import Passes
from tokenclean.cleaning.trainings import Trainings
from tokenclean.experiment.demo import pool_path
from tokenclean.experiment.planning.dry_run import RecordedPass, dry_run
from tokenclean.experiment.planning.plan import plan
from tokenclean.experiment.run import take_strategies
from tokenclean.recipe import Recipe
from tokenclean.scoring.stored_losses import scores_in_pairs
from tokenclean.store import array_hash

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "one adapter": {"cleaning": {"adapters": "one"}},
    "against previous": {"cleaning": {"score_against": "previous"}},
    "two splits": {"cleaning": {"splits": 2, "split_kind": "contiguous"}},
    "within sources": {"cleaning": {"level": "source"}},
    "noise removed too": {"cleaning": {"also": ["noise_mixture", "repetition"]}},
    "offline mixture": {"cleaning": {"also": ["noise_mixture"], "noise_mixture": {"mode": "offline"}}},
    "given reference": {"model": {}},
    "epochs, rows set aside": {"training": {"epochs": 2, "eval_rows": 3, "warmup_ratio": 0.1}},
    "full fine-tuning": {"training": {"method": "full", "learning_rate": 1e-4}},
}


@dataclass
class Watched:
    """Real passes and trainings, each different one noted as the dry run notes it."""

    recipe: Recipe
    passes: Passes
    trainings: Trainings
    done: dict[tuple, tuple] = field(default_factory=dict)

    def model(self, name, source):
        return self.passes.model(name, source)

    def losses(self, model, tokens, what, settings=None):
        rows = array_hash(tokens.input_ids.values, tokens.is_response.offsets, tokens.is_response.values)
        key = (*model.identity, rows, settings or self.recipe.scoring)
        self.done.setdefault(key, ("score", what, model.name, tuple(tokens.input_ids.lengths), key[-1]))
        return self.passes.losses(model, tokens, what, settings)

    def pair(self, base, model, tokens, what):
        settings = self.recipe.scoring
        if not scores_in_pairs(settings.precision, "cpu", base.source, model.source):
            return self.losses(base, tokens, what), self.losses(model, tokens, what)
        rows = array_hash(tokens.input_ids.values, tokens.is_response.offsets, tokens.is_response.values)
        twice = tuple(tokens.input_ids.lengths) * 2
        names = f"{base.name} and {model.name}"
        self.done.setdefault((*base.identity, *model.identity, rows), ("score", what, names, twice, settings))
        return self.passes.pair(base, model, tokens, what)

    def train(self, job):
        model = self.trainings.train(job)
        lengths = tuple(job.tokens.input_ids.lengths)
        self.done.setdefault((model.key,), ("train", model.name, lengths, model.training["steps"]))
        return model

    def noise_rates(self, job, model):
        return self.trainings.noise_rates(job, model)

    def one_step(self, job, nulls):
        models = self.trainings.one_step(job, nulls)
        lengths = tuple(job.tokens.input_ids.lengths) * 2
        self.done.setdefault((models.step.key,), ("train", job.name, lengths, 2))
        return models


def planned(recipe: Recipe) -> list[tuple]:
    return [
        ("score", item.what, item.model, tuple(item.lengths), item.settings)
        if isinstance(item, RecordedPass)
        else ("train", item.name, tuple(item.lengths), item.steps.steps)
        for item in dry_run(recipe, "cpu")[1]
    ]


def done(recipe: Recipe) -> list[tuple]:
    opened = open_run(recipe)
    watched = Watched(recipe, opened.context.passes, opened.context.trainings)
    take_strategies(RunContext(opened.context.data, watched, watched, opened.observer.note), {})
    return list(watched.done.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_each_strategy_alone(name, small_pool, tiny_model_folder, tmp_path):
    cleaning = {"strategy": name, "proportion": 0.9}
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path, cleaning=cleaning, evaluation={"controls": []})
    assert planned(recipe) == done(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_all_strategies_with_every_option_that_changes_the_work(
    option, small_pool, tiny_model_folder, other_model_folder, tmp_path
):
    sections = {name: dict(section) for name, section in OPTIONS[option].items()}
    sections["cleaning"] = {"proportion": 0.9, **sections.get("cleaning", {})}
    if "model" in sections:
        sections["model"] = {"reference": str(other_model_folder)}
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path, **sections)
    assert planned(recipe) == done(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("section", [{}, {"scoring": {"precision": "safe"}, "training": {"method": "full"}}])
def test_influence_with_trusted_rows(section, small_pool, tiny_model_folder, tmp_path):
    trusted = tmp_path / "trusted.jsonl"
    trusted.write_text("".join(pool_path().read_text(encoding="utf-8").splitlines(keepends=True)[60:72]))
    cleaning = {"strategy": "influence", "trusted": str(trusted)}
    evaluation = {"controls": ["fixed_model"]}  # a run that finds nothing would share the training of full tokens
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path, cleaning=cleaning, evaluation=evaluation, **section)
    found = planned(recipe)
    assert found == done(recipe)
    assert [item[1] for item in found].count("null sample") >= 8
    beside = recipe.model_copy(
        update={"evaluation": recipe.evaluation.model_copy(update={"controls": ("full_tokens",)})}
    )
    steps = plan(beside, flop_per_second=1e9).steps
    assert {"train full_tokens", "train influence"} <= {step.name for step in steps}
    (step,) = (step for step in steps if step.is_one_step)
    assert (step.name, step.rows, step.optimizer_steps) == ("step on trusted rows", 2 * 12, 2)
    (null,) = (step for step in steps if "null of influence" in step.name)
    assert null.rows >= 9 * 20
