"""Recipes made for data files, and how they are written."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.recipe import LARGE_MODEL_PARAMETERS, data_values, is_recipe, recipe_from, short_yaml
from tokenclean.recipe.for_data import run_name


def test_the_preset_goes_by_the_size_of_model_and_pool():
    small = recipe_from(data_values(["my.jsonl"]))
    assert (small.name, small.cleaning.strategy, small.evaluation.controls) == ("my", "auto", ("full_tokens",))
    assert small.training.learning_rate == 1e-3
    large = recipe_from(data_values(["my.jsonl"], parameters=LARGE_MODEL_PARAMETERS, rows=50_000))
    assert (large.training.learning_rate, large.training.batch_size) == (1e-4, 48)
    for rows in (None, 100):
        few = recipe_from(data_values(["my.jsonl"], parameters=LARGE_MODEL_PARAMETERS, rows=rows))
        assert (few.training.learning_rate, few.training.batch_size, few.training.minimum_steps) == (1e-4, 16, 10)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("my.jsonl", "my"),
        ("/data/My Rows.v2.jsonl.gz", "My-Rows"),
        ("hf://datasets/org/some-name@main", "some-name"),
        ("folder/", "folder"),
        ("..", "run"),
        ("данные.jsonl", "run"),
    ],
)
def test_a_run_is_called_like_its_first_file(place, name):
    assert run_name(place) == name
    assert recipe_from(data_values([place, "other.jsonl"])).name == name


def test_a_hub_dataset_is_a_source_by_its_address():
    [source] = recipe_from(data_values(["hf://datasets/org/name@v1"])).pool.sources
    assert (source.path, source.hub, source.revision) == (None, "org/name", "v1")
    [source] = recipe_from(data_values(["hf://datasets/org/name"])).pool.sources
    assert source.revision is None


def test_recipes_and_data_differ_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_recipe("my.yaml")
    assert is_recipe("my.YML")
    assert is_recipe("quick")
    assert not is_recipe("my.jsonl")
    (tmp_path / "quick").mkdir()
    assert not is_recipe("quick")


OVERRIDES = st.lists(
    st.sampled_from(
        [
            *("training.lora.rank=8", "training.schedule=cosine", "cleaning.also=[repetition]", "pool.max_rows=50"),
            *("cleaning.trusted=checked.jsonl", "tokens.date=2020-02-29", "model.trust_remote_code=[org/m]"),
            *("pool.filters.duplicates=exact", "evaluation.limits={mmlu: 5}", 'name="no"', "output='a: #x'"),
            *("pool.sources.0.columns={instruction: a b}", "pool.seed=7", "evaluation.tasks=[boolq]"),
        ]
    ),
    unique=True,
)


@given(OVERRIDES, st.sampled_from([0, LARGE_MODEL_PARAMETERS]), st.booleans())
def test_the_file_written_makes_the_same_recipe(overrides, parameters, commented):
    values = data_values(["my rows.jsonl", "hf://datasets/org/name@main"], parameters=parameters)
    recipe = recipe_from(values, overrides)
    text = short_yaml(recipe, str(values["preset"]), commented=commented)
    assert recipe_from(yaml.safe_load(text)) == recipe
    assert all(len(line) <= 120 for line in text.splitlines() if line.lstrip().startswith("#"))
    assert ("# Share of response tokens to keep" in text) == commented
