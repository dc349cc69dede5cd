"""Self-evolving cleaning with one adapter, one optimizer and one schedule through all rounds (cleaning.adapters)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_rounds import lines_of, self_evolving_of
from test_runs import recipe_of as run_recipe

from tokenclean.cleaning import run_strategy, trainings
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import open_run
from tokenclean.errors import ModelError
from tokenclean.experiment.finished.status import describe_run
from tokenclean.experiment.planning.plan import plan
from tokenclean.experiment.run import run
from tokenclean.models.loading.load import load_model, resolve_source
from tokenclean.observer import Observer
from tokenclean.recipe import Recipe
from tokenclean.scoring import token_losses
from tokenclean.store import fingerprint
from tokenclean.store.layout import CHECKPOINTS
from tokenclean.training.optimizer import MOMENTS
from tokenclean.training.step_plan import plan_steps

CONTROL = "full_tokens_from_warmup"
CONTROLS = ("fixed_model", CONTROL)
MODELS = ("reference-0", "reference-1", "reference-2", "reference-3")
ADAPTER = "adapter_model.safetensors"


def recipe_of(
    pool: Path, model: Path, output: Path, controls: tuple[str, ...] = (), training: dict | None = None, **cleaning
) -> Recipe:
    return run_recipe(
        pool,
        model,
        output,
        cleaning={"splits": 4, "adapters": "one", **cleaning},
        evaluation={"controls": list(controls)},
        training={
            "batch_size": 3,
            "minimum_steps": 0,
            "warmup_ratio": 0.1,
            "lora": {"rank": 4, "dropout": 0.2},
            **(training or {}),
        },
    )


def manifest_of(model: Model) -> dict:
    return json.loads((model.folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def finished(small_pool: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    opened = open_run(recipe_of(small_pool, tiny_model_folder, tmp_path_factory.mktemp("runs"), CONTROLS))
    return opened, run(opened)


def test_each_round_goes_on_with_the_adapter_and_the_moments_of_the_one_before(finished):
    opened, result = finished
    rounds = self_evolving_of(result).rounds
    assert tuple(model.name for model in rounds) == MODELS
    steps = [model.training["steps"] for model in rounds]
    planned = [
        plan_steps(len(rows), opened.context.recipe.training, part).steps
        for rows, part in zip(opened.context.data.splits, opened.context.data.parts, strict=True)
    ]
    total, start, taken = sum(planned), 0, 0
    before = opened.context.base
    for number, model in enumerate(rounds):
        inputs = manifest_of(model)["inputs"]
        assert inputs["start"] == before.identity
        assert inputs["part"] == {"start": start, "end": start + planned[number], "total": total}
        assert {t.shape[0] for k, t in load_file(model.folder / ADAPTER).items() if "lora_A" in k} == {4}
        start, taken, before = start + planned[number], taken + steps[number], model
        if number < 3:
            counts = {float(v) for k, v in load_file(model.folder / MOMENTS).items() if k.startswith("step.")}
            assert counts == {float(taken)}
    assert not (rounds[-1].folder / MOMENTS).exists()
    assert steps[0] == planned[0]


def test_the_moments_are_part_of_what_a_training_starts_from(finished):
    """Another state of the optimizer is another start, even under the same weights."""
    _, result = finished
    first = self_evolving_of(result).rounds[0]
    files = manifest_of(first)["files"]
    assert {name for name in files if name.endswith(".safetensors")} == {ADAPTER, MOMENTS}
    assert first.weights == fingerprint({name: files[name] for name in (ADAPTER, MOMENTS)})
    assert first.weights in manifest_of(self_evolving_of(result).rounds[1])["inputs"]["start"]


def test_the_results_hold_ordinary_adapters_and_no_moments(finished):
    opened, result = finished
    outcome = self_evolving_of(result)
    assert not list(result.folder.rglob(MOMENTS))
    for name in (*MODELS[:-1], "model"):
        folder = result.folder / "self_evolving" / name
        assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", ADAPTER, "journal.jsonl"]
    copied = resolve_source(str(result.folder / "self_evolving" / "model"))
    assert copied.base == opened.context.recipe.model.base
    losses = token_losses(load_model(copied, device=opened.device), opened.context.heldout)
    np.testing.assert_array_equal(losses.values, opened.context.heldout_losses(outcome.model).values)


def test_rounds_are_recorded_and_shown_as_ever(finished):
    opened, result = finished
    records = self_evolving_of(result).round_records
    assert tuple(r.model.name for r in records) == MODELS
    assert list(lines_of(result)) == ["base", *MODELS, CONTROL]
    table = next(t for t in result.tables if "round by round" in t.title)
    assert [row[:2] for row in table.rows][:5] == [("base", "–"), *((m, f"D{n}") for n, m in enumerate(MODELS))]
    # What the first selection would keep of the held-out rows is told by the reference that made it.
    first = records[1].selection
    scores = opened.context.heldout_losses(opened.context.base) - opened.context.heldout_losses(records[0].model)
    kept = int((scores.values[opened.context.heldout.is_response.values] >= first.threshold).sum())
    written = json.loads((result.folder / "result.json").read_text())
    assert written["rounds"]["heldout_tokens"]["kept_first"] == kept
    assert written["training"].keys() >= {*MODELS, "warm-up", CONTROL, f"{CONTROL}-1", f"{CONTROL}-2"}


def test_other_strategies_keep_the_warm_up_that_they_have_without_the_option(
    finished, small_pool, tiny_model_folder, tmp_path
):
    opened, result = finished
    assert opened.context.warmup.key != opened.context.initial_reference.key
    assert "part" not in manifest_of(opened.context.warmup)["inputs"]
    fixed = next(o for o in result.results if o.strategy == "fixed_model")
    assert [check.model.key for check in fixed.checks] == [opened.context.warmup.key]
    fresh = open_run(recipe_of(small_pool, tiny_model_folder, tmp_path, adapters="fresh"))
    assert fresh.context.warmup.identity == fresh.context.initial_reference.identity == opened.context.warmup.identity


def test_the_control_takes_the_rest_of_the_same_schedule_from_the_same_start(finished):
    opened, result = finished
    control = next(o for o in result.results if o.strategy == CONTROL)
    assert control.rounds[0].identity == self_evolving_of(result).rounds[0].identity
    assert [m.name for m in control.rounds] == ["reference-0", f"{CONTROL}-1", f"{CONTROL}-2", CONTROL]
    parts = [manifest_of(model)["inputs"]["part"] for model in control.rounds]
    assert parts == [asdict(part) for part in opened.context.data.parts]
    assert [m.training["trained_rows"] for m in control.rounds] == [len(rows) for rows in opened.context.data.splits]
    assert sum(m.training["steps"] for m in control.rounds) == opened.context.data.parts[-1].total
    assert control.model is control.rounds[-1]
    np.testing.assert_array_equal(control.kept.values, opened.context.tokens.is_response.values)


@pytest.mark.slow
def test_with_everything_kept_self_evolving_and_the_control_are_one(small_pool, tiny_model_folder, tmp_path):
    opened = open_run(recipe_of(small_pool, tiny_model_folder, tmp_path, proportion=1.0))
    outcomes = [run_strategy(opened.context, name) for name in ("self_evolving", CONTROL)]
    assert outcomes[0].model.identity == outcomes[1].model.identity
    assert sum(name.startswith("training-") for name in opened.stages.computed) == 4


def test_the_same_run_again_makes_nothing_and_every_stage_is_valid(finished):
    opened, result = finished
    again = open_run(opened.context.recipe)
    assert run(again).folder == result.folder
    assert again.stages.computed == []
    described = describe_run(opened.stages.store.root)
    assert {row[-1] for row in described.table.rows} == {"valid"}
    assert not (opened.stages.store.root / CHECKPOINTS).exists() or not list(
        (opened.stages.store.root / CHECKPOINTS).iterdir()
    )


def test_the_plan_counts_every_training_of_the_run(finished):
    opened, result = finished
    planned = plan(opened.context.recipe, flop_per_second=1e9)
    trainings = {step.name: step for step in planned.steps if step.optimizer_steps}
    assert list(trainings) == [
        "train reference-0",
        *(f"train {CONTROL}{part}" for part in ("-1", "-2", "")),
        "train warm-up",
        "train fixed_model",
        *(f"train reference-{number}" for number in (1, 2, 3)),
    ]
    assert len(trainings) == sum(name.startswith("training-") for name in opened.stages.computed)
    for number, part in enumerate(opened.context.data.parts):
        name = f"train reference-{number}"
        assert trainings[name].optimizer_steps == part.end - part.start
        assert trainings[name].rate_steps == part.end - part.start - (number == 0)
    control = next(o for o in result.results if o.strategy == CONTROL)
    of_control = [trainings[f"train {CONTROL}{part}"] for part in ("-1", "-2", "")]
    assert [step.optimizer_steps for step in of_control] == [m.training["steps"] for m in control.rounds[1:]]
    assert [step.rate_steps for step in of_control] == [m.training["effective_steps"] for m in control.rounds[1:]]
    # Base, two warm-ups, three rounds, the fixed model and the control's last model are measured.
    assert planned.steps[-2].name == "score held-out rows, 8 models"
    assert "score D1 under reference-0" in [step.name for step in planned.steps]


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_run_killed_inside_a_later_round_ends_bit_equal(finished, small_pool, tiny_model_folder, tmp_path):
    _, undisturbed = finished
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path, training={"checkpoint_minutes": 0})

    def progress(label: str, unit: str):
        def reported(done: int, total: int) -> None:
            if label == "train reference-2" and done == 3:
                raise Stopped

        return reported

    with pytest.raises(Stopped):
        run_strategy(open_run(recipe, Observer(progress=progress)).context, "self_evolving")
    ((state,),) = [list(place.glob("step-*")) for place in (recipe.folder / CHECKPOINTS).iterdir()]
    assert state.name == "step-2"
    outcome = run_strategy(open_run(recipe).context, "self_evolving")
    for expected, found in zip(self_evolving_of(undisturbed).rounds, outcome.rounds, strict=True):
        assert expected.identity == found.identity
        for file in sorted(expected.folder.glob("*.safetensors")):
            first, second = load_file(file), load_file(found.folder / file.name)
            assert first.keys() == second.keys()
            assert all(torch.equal(second[k], v) for k, v in first.items())


def ruin_training(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the training with this number, from 0, end with an adapter that is torn apart."""
    train, calls = trainings.train, []

    def ruined(source, ids, weights, settings, folder, **options):
        trained = train(source, ids, weights, settings, folder, **options)
        if len(calls) == number:
            tensors = load_file(folder / ADAPTER)
            save_file({k: 3 * torch.randn_like(v) for k, v in tensors.items()}, folder / ADAPTER)
        calls.append(number)
        return trained

    monkeypatch.setattr(trainings, "train", ruined)


@pytest.mark.parametrize("worse", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_round_that_raises_the_held_out_loss_is_rolled_back(
    small_pool, tiny_model_folder, tmp_path, monkeypatch, worse
):
    ruin_training(monkeypatch, worse)
    gentle = {"learning_rate": 1e-3}  # no other round raises it
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path, training=gentle, stop_when="held_out_loss_rises")
    opened = open_run(recipe)
    result = run(opened)
    outcome = self_evolving_of(result)
    assert outcome.model.name == MODELS[worse - 1]
    assert tuple(m.name for m in outcome.rounds) == MODELS[:worse]
    assert [r.is_rolled_back for r in outcome.round_records] == [False] * worse + [True]
    folder = result.folder / "self_evolving" / "model"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", ADAPTER, "journal.jsonl"]
    assert (folder / ADAPTER).read_bytes() == (outcome.model.folder / ADAPTER).read_bytes()


def test_a_base_that_is_an_adapter_is_refused_before_anything_is_trained(finished, small_pool, tmp_path):
    _, result = finished
    recipe = recipe_of(small_pool, result.folder / "self_evolving" / "model", tmp_path)
    for opened in (open_run, plan):
        with pytest.raises(ModelError, match=r"is an adapter, but cleaning\.adapters: one .*or take adapters: fresh"):
            opened(recipe)


@pytest.mark.slow
def test_with_noise_mixture_and_repetition_on_top_too(small_pool, tiny_model_folder, tmp_path):
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path, also=["noise_mixture", "repetition"])
    outcome = run_strategy(open_run(recipe).context, "self_evolving")
    assert all("mixture" in manifest_of(model)["inputs"] for model in outcome.rounds[1:])
    assert outcome.noise is not None
    assert {t.shape[0] for k, t in load_file(outcome.model.folder / ADAPTER).items() if "lora_A" in k} == {4}
