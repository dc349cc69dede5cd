"""Whole runs on a tiny model: every strategy, what they share, what they leave behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tokenclean.cleaning import run_strategy, trainings
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import open_run
from tokenclean.errors import PolicyMismatchError, RecipeError, WeakReferenceError
from tokenclean.experiment.demo import DemoSize, demo_recipe, run_demo, write_pages
from tokenclean.experiment.planning.plan import plan
from tokenclean.experiment.run import run
from tokenclean.exporting import read_cleaned
from tokenclean.models.loading.load import load_model, resolve_source
from tokenclean.observer import Observer
from tokenclean.recipe import STRATEGIES, Recipe, recipe_from
from tokenclean.report.tables import Table
from tokenclean.scoring import token_losses
from tokenclean.scoring.scorer import Scorer
from tokenclean.selection import kept_count
from tokenclean.store import check_stage
from tokenclean.token_table import read_table

WITHOUT_FILES = [name for name in STRATEGIES if name not in ("ds2", "influence", "given")]
"""Strategies that need no file beside the pool."""


def recipe_of(pool: Path, model: Path, output: Path, /, **sections: dict) -> Recipe:
    values = {
        "name": "test",
        "output": str(output),
        "pool": {"sources": [{"path": str(pool), "license": "MIT"}], "heldout": {"rows": 10}},
        "model": {"base": str(model)},
        "cleaning": {"splits": 3, "allow_weak_reference": True},
        "scoring": {"precision": "exact"},
        "training": {
            "learning_rate": 1e-2,
            "batch_size": 8,
            "minimum_steps": 4,
            "pack_tokens": 2048,  # a pack a step, where a tiny model's time goes into the number of calls
            "warmup_ratio": 0,
            "lora": {"rank": 4, "dropout": 0},
        },
        "evaluation": {"controls": WITHOUT_FILES},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return recipe_from(values)


@pytest.fixture(scope="module")
def finished(small_pool: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    notes: list[str] = []
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path_factory.mktemp("runs"))
    opened = open_run(recipe, Observer(note=notes.append))
    return opened, run(opened), notes


def kept_sets(result) -> dict[str, np.ndarray]:
    return {o.strategy: o.kept.values for o in result.results if o.kept is not None}


def test_every_strategy_keeps_what_it_should(finished):
    opened, result, _ = finished
    labels = opened.context.tokens.is_response
    kept = kept_sets(result)
    total, k = int(labels.values.sum()), 0.6
    assert [o.strategy for o in result.results] == WITHOUT_FILES
    assert kept["full_tokens"].sum() == total
    assert kept["random"].sum() == kept["fixed_model"].sum() == kept_count(total, k)
    assert kept["rho"].sum() == sum(kept_count(int(n), k) for n in labels.row_sums())
    expected = 0
    for number, rows in enumerate(opened.context.data.splits):
        count = int(labels.take(rows).values.sum())
        expected += count if number == 0 else kept_count(count, k)
    assert kept["self_evolving"].sum() == expected
    assert np.array_equal(kept.pop("full_tokens_from_warmup"), kept["full_tokens"])
    assert np.array_equal(kept.pop("noise_mixture"), kept["full_tokens"])
    assert np.array_equal(kept.pop("auto"), kept["full_tokens"])  # ten held-out rows are too few to choose by
    assert np.array_equal(kept.pop("repetition"), kept["full_tokens"])  # no phrase of these rows is repeated
    names = list(kept)
    for i, a in enumerate(names):
        assert not np.any(kept[a] & ~labels.values)
        for b in names[:i]:
            assert not np.array_equal(kept[a], kept[b]), (a, b)


def test_fixed_model_keeps_the_largest_differences(finished):
    opened, result, _ = finished
    outcome = next(o for o in result.results if o.strategy == "fixed_model")
    base = token_losses(
        load_model(opened.context.base.source, device=opened.device), opened.context.tokens, precision="exact"
    )
    warm = token_losses(
        load_model(opened.context.warmup.source, device=opened.device), opened.context.tokens, precision="exact"
    )
    scores = (base - warm).values
    np.testing.assert_allclose(outcome.scores.values, scores, atol=1e-5)
    kept, labels = outcome.kept.values, opened.context.tokens.is_response.values
    assert scores[kept].min() >= scores[labels & ~kept].max() - 1e-5


def test_rounds_are_numbered_and_built_as_in_the_paper(finished):
    """θ_1 on D̃_0; reference-t is θ_{t+1}, trained on D̃_t from θ_t, and scored D̃_{t+1}; T+1 splits give T rounds."""
    opened, result, _ = finished
    outcome = next(o for o in result.results if o.strategy == "self_evolving")
    assert [m.name for m in outcome.rounds] == ["warm-up", "reference-1", "reference-2"]
    assert [c.model.name for c in outcome.checks] == ["warm-up", "reference-1"]
    assert outcome.model is outcome.rounds[-1]
    for number, rows in enumerate(opened.context.data.splits[1:], start=1):
        reference = load_model(outcome.rounds[number - 1].source, device=opened.device)
        tokens = opened.context.tokens.take(rows)
        scores = token_losses(load_model(opened.context.base.source, device=opened.device), tokens) - token_losses(
            reference, tokens
        )
        np.testing.assert_allclose(outcome.scores.take(rows).values, scores.values, atol=1e-5)


def test_losses_of_two_kernels_are_never_subtracted(small_pool, tiny_model_folder, tmp_path, monkeypatch):
    opened = open_run(recipe_of(small_pool, tiny_model_folder, tmp_path))
    opened.context.heldout_losses(opened.context.base)
    other = Model("other", opened.context.data.base_source, "another key")
    policy = {**Scorer(load_model(opened.context.data.base_source), pack_tokens=4096).policy, "kernel": "another"}
    monkeypatch.setattr(Scorer, "policy", policy)
    with pytest.raises(PolicyMismatchError, match="differ in kernel"):
        opened.context.heldout_losses(other)


def test_stages_are_shared(finished):
    opened, _, _ = finished
    trainings = [name for name in opened.stages.computed if name.startswith("training-")]
    # Warm-up, two rounds, full tokens twice, random, rho, fixed model, noise_mixture, mismatch; repetition drops none.
    assert len(trainings) == 1 + 2 + 7
    assert len(opened.stages.computed) == len(set(opened.stages.computed))


def test_the_same_run_again_makes_nothing(finished, small_pool: Path, tiny_model_folder: Path):
    opened, result, _ = finished
    again = open_run(opened.context.recipe)
    second = run(again)
    assert again.stages.computed == []
    assert second.folder == result.folder
    assert second.measured == result.measured


def fixed_model_recipe(pool: Path, model: Path, output: Path, **cleaning: float) -> Recipe:
    values = {"strategy": "fixed_model", **cleaning}
    return recipe_of(pool, model, output, cleaning=values, evaluation={"controls": []})


@pytest.mark.slow
def test_another_proportion_scores_no_token_of_the_pool_again(small_pool, tiny_model_folder, tmp_path):
    run(open_run(fixed_model_recipe(small_pool, tiny_model_folder, tmp_path)))
    again = open_run(fixed_model_recipe(small_pool, tiny_model_folder, tmp_path, proportion=0.3))
    run(again)
    # The model on the newly kept tokens, its loss on the held-out rows, the results.
    assert [name.partition("-")[0] for name in again.stages.computed[:2]] == ["training", "losses"]
    assert len(again.stages.computed) == 3


@pytest.mark.slow
def test_a_retrained_model_with_other_weights_is_scored_anew(small_pool, tiny_model_folder, tmp_path, monkeypatch):
    """On a GPU the same training need not give the same weights; losses of the lost ones must not be taken for its."""

    recipe = fixed_model_recipe(small_pool, tiny_model_folder, tmp_path)
    first = open_run(recipe)
    run(first)
    adapter = Path(first.context.warmup.source.adapter)
    shutil.rmtree(adapter)
    train = trainings.train
    monkeypatch.setattr(trainings, "train", lambda *args, seed, **options: train(*args, seed=seed + 1, **options))
    again = open_run(recipe)
    run(again)
    made = [name.partition("-")[0] for name in again.stages.computed]
    assert made.count("training") == 2
    # With the reference: three splits, the held-out rows, the sample in float32; then the final model.
    assert made.count("losses") == 3 + 1 + 1 + 1


def test_cleaned_dataset_holds_exactly_the_kept_tokens(finished):
    opened, result, _ = finished
    for strategy, kept in kept_sets(result).items():
        cleaned = read_cleaned(result.folder / strategy / "cleaned.parquet")
        assert cleaned.metadata["licenses"] == dict.fromkeys(opened.context.tokens.sources, "MIT")
        labels = {row["id"]: np.array(row["labels"]) for row in cleaned.rows.to_pylist()}
        for number, identity in enumerate(opened.context.tokens.ids):
            ids = opened.context.tokens.input_ids[number]
            is_kept = opened.context.tokens.is_response.with_values(kept)[number]
            if is_kept.any():
                np.testing.assert_array_equal(labels.pop(identity), np.where(is_kept, ids, -100))
        assert labels == {}


def test_what_lies_in_the_results_folder(finished):
    opened, result, _ = finished
    written = json.loads((result.folder / "result.json").read_text())
    assert written["measured"][0]["name"] == "base"
    assert json.loads((result.folder / "manifest.json").read_text())["packages"]["torch"]
    table = read_table(result.folder / "self_evolving" / "kept.parquet")
    assert table.ids == opened.context.tokens.ids
    np.testing.assert_array_equal(table["is_kept"].values, kept_sets(result)["self_evolving"])
    assert [
        Table.from_document(reported) for reported in json.loads((result.folder / "tables.json").read_text())
    ] == list(result.tables)
    for name in ("warm-up", "reference-1", "model"):
        assert (result.folder / "self_evolving" / name / "adapter_config.json").is_file()
    assert "minus full tokens" in (result.folder / "table.md").read_text()
    recipe = (result.folder / "recipe.yaml").read_text()
    assert "self_evolving" in recipe


@pytest.mark.parametrize("strategy", ["fixed_model", "rho", "self_evolving"])
def test_a_score_is_the_difference_of_the_losses_beside_it(finished, strategy):
    opened, result, _ = finished
    table = read_table(result.folder / strategy / "kept.parquet")
    np.testing.assert_array_equal((table["base_loss"] - table["reference_loss"]).values, table["score"].values)
    is_scored = np.isfinite(table["score"].values)
    base = opened.context.losses(opened.context.base).values
    np.testing.assert_array_equal(table["base_loss"].values[is_scored], base[is_scored])
    expected = opened.context.tokens.is_response.values.copy()
    if strategy == "self_evolving":
        expected[opened.context.data.indices(opened.context.data.splits[0])] = False
    np.testing.assert_array_equal(is_scored, expected)


def test_final_adapter_is_an_ordinary_one(finished):
    """Plain peft on the untouched base gives the model that was measured."""
    opened, result, _ = finished
    outcome = next(o for o in result.results if o.strategy == "self_evolving")
    copied = resolve_source(str(result.folder / "self_evolving" / "model"))
    assert copied.base == opened.context.recipe.model.base
    losses = token_losses(load_model(copied, device=opened.device), opened.context.heldout)
    np.testing.assert_array_equal(losses.values, opened.context.heldout_losses(outcome.model).values)


def test_held_out_rows_are_never_trained_on(finished):
    opened, _, _ = finished
    assert not set(opened.context.tokens.ids) & set(opened.context.heldout.ids)
    assert len(opened.context.tokens) + len(opened.context.heldout) == 60


@pytest.mark.slow
def test_score_against_previous_differs_from_the_second_round_on(small_pool, tiny_model_folder, tmp_path):
    kept = {}
    for against in ("base", "previous"):
        cleaning = {"splits": 4, "score_against": against, "strategy": "self_evolving", "allow_weak_reference": True}
        recipe = recipe_of(small_pool, tiny_model_folder, tmp_path, cleaning=cleaning, evaluation={"controls": []})
        opened = open_run(recipe)
        outcome = run_strategy(opened.context, "self_evolving")
        kept[against] = [outcome.kept.take(rows).values for rows in opened.context.data.splits]
    for same in (0, 1):
        np.testing.assert_array_equal(kept["base"][same], kept["previous"][same])
    assert not np.array_equal(kept["base"][2], kept["previous"][2])


def test_a_weak_reference_stops_the_run_with_the_remedy(small_pool, tiny_model_folder, tmp_path):
    recipe = recipe_of(
        small_pool,
        tiny_model_folder,
        tmp_path,
        cleaning={"allow_weak_reference": False, "strategy": "fixed_model"},
        training={"learning_rate": 1e-9},
        evaluation={"controls": []},
    )
    with pytest.raises(WeakReferenceError, match=r"optimizer steps.*training\.learning_rate.*--allow-weak-reference"):
        run(open_run(recipe))


def test_a_given_reference_replaces_the_warm_up(finished, small_pool, tiny_model_folder, tmp_path):
    _, result, _ = finished
    reference = result.folder / "full_tokens" / "model"
    recipe = recipe_of(
        small_pool,
        tiny_model_folder,
        tmp_path,
        cleaning={"strategy": "fixed_model"},
        model={"reference": str(reference)},
        evaluation={"controls": ["rho"]},
    )
    opened = open_run(recipe)
    second = run(opened)
    assert {c.model.name for o in second.results for c in o.checks} == {"reference"}
    assert sum(name.startswith("training-") for name in opened.stages.computed) == 2


def test_self_evolving_alone_refuses_a_given_reference(small_pool, tiny_model_folder, tmp_path):
    with pytest.raises(RecipeError, match="trains its own references"):
        recipe_of(small_pool, tiny_model_folder, tmp_path, model={"reference": "x"}, evaluation={"controls": []})


def test_strategies_that_keep_the_same_tokens_share_a_model_and_keep_their_lines(
    small_pool, tiny_model_folder, tmp_path
):
    recipe = recipe_of(
        small_pool,
        tiny_model_folder,
        tmp_path,
        cleaning={"strategy": "random", "proportion": 1.0},
        evaluation={"controls": ["none", "full_tokens"]},
    )
    opened = open_run(recipe)
    result = run(opened)
    assert [m.name for m in result.measured] == ["base", "full_tokens", "random"]
    assert sum(name.startswith("training-") for name in opened.stages.computed) == 1


def test_plan_names_every_training_with_its_steps(finished):
    opened, result, _ = finished
    planned = plan(opened.context.recipe, flop_per_second=1e9)
    trainings = [step for step in planned.steps if step.optimizer_steps]
    measured = json.loads((result.folder / "result.json").read_text())["training"]
    assert len(trainings) == 1 + 2 + 7
    warmup = next(step for step in trainings if "warm-up" in step.name)
    assert warmup.optimizer_steps == measured["warm-up"]["steps"] >= 4
    assert planned.seconds > 0
    assert planned.memory_bytes > 0


DEMO = DemoSize(heldout=20, trusted=20, tokens=8_000, row_tokens=512, controls=("full_tokens", "random"))


def test_demo_on_a_tiny_model(tiny_model_folder: Path, tmp_path: Path):
    overrides = (
        "training.lora.rank=4",
        "training.batch_size=32",
        "training.minimum_steps=2",
        "training.pack_tokens=2048",
    )
    recipe = demo_recipe(DEMO, model=str(tiny_model_folder), output=str(tmp_path), overrides=overrides)
    trusted: set[str] = set()

    def begin(opened, further):
        trusted.update(opened.context.data.trusted_ids)
        assert list(further) == ["oracle"]

    result, sample = run_demo(recipe, DEMO, begin=begin)
    assert len(trusted) == 20
    assert [o.strategy for o in result.results] == ["full_tokens", "random", "fixed_model", "oracle"]
    assert result.table == result.tables[0]
    table = {row[0]: row for row in result.table.rows}
    assert list(table) == ["base", "full_tokens", "random", "fixed_model", "oracle"]
    written = {c["strategy"]: c for c in json.loads((result.folder / "demo.json").read_text())}
    oracle = written["oracle"]["noise"]
    assert oracle["eta_cleaned"] == 0
    assert oracle["kept_share"] == pytest.approx(1 - oracle["eta_full"])
    assert 0.02 < oracle["eta_full"] < 0.3
    assert written["full_tokens"]["noise"]["eta_cleaned"] == oracle["eta_full"]
    assert table["oracle"][2] == "0.0%"
    tokens = read_table(result.folder / "oracle" / "kept.parquet")
    noisy = [row for row, id in zip(tokens["input_ids"], tokens.ids, strict=True) if id not in trusted]
    assert 0.9 * DEMO.tokens < sum(map(len, noisy)) <= DEMO.tokens
    assert sample is not None
    assert sample.is_noise_T is not None
    assert sample.is_noise_T.any()
    view, report = write_pages(recipe, result.folder, [].append)
    assert "<title>Tokens of fixed_model and oracle</title>" in view.read_text(encoding="utf-8")
    page = report.read_text(encoding="utf-8")
    assert page.index(str(result.verdict)[:20]) < page.index("One conversation, as") < page.index("Planted noise: what")
    assert check_stage(result.folder) == []  # the pages lie beside the results
