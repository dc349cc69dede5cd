"""Trusted rows: D̃_0 of every strategy with a reference, kept whole, never held out, never twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tokenclean.cleaning import run_strategy
from tokenclean.cleaning.open_run import open_run
from tokenclean.errors import PoolError, RecipeError
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.selection import kept_count


def write_rows(path: Path, count: int, text: str) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{text} {n}?"},
                {"role": "assistant", "content": f"It is {n} {text}."},
            ]
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_with(tmp_path: Path, pool: Path, model: Path, trusted: object, /, **sections: dict) -> Recipe:
    values = {
        "output": str(tmp_path / "runs"),
        "pool": {"sources": [{"path": str(pool)}], "heldout": {"rows": 6}},
        "model": {"base": str(model)},
        "cleaning": {"trusted": trusted, "splits": 3, "allow_weak_reference": True},
        "scoring": {"precision": "exact"},
        "training": {"batch_size": 8, "lora": {"rank": 2}},
    }
    return recipe_from({**values, **{name: {**values.get(name, {}), **section} for name, section in sections.items()}})


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "checked.jsonl", 12, "checked")


@pytest.mark.parametrize(
    "strategy",
    ["fixed_model", "random", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rho", "self_evolving"))],
)
def test_they_warm_up_the_reference_and_are_kept_whole(tmp_path, small_pool, tiny_model_folder, trusted, strategy):
    opened = open_run(recipe_with(tmp_path, small_pool, tiny_model_folder, str(trusted)))
    context, data = opened.context, opened.context.data
    assert [data.tokens.ids[row] for row in data.trusted] == [id for id in data.tokens.ids if id.startswith("trusted:")]
    assert len(data.trusted) == 12
    assert np.array_equal(data.splits[0], data.trusted)
    assert sorted(np.concatenate(data.splits)) == list(range(len(data.tokens)))

    result = run_strategy(context, strategy)
    labels = data.tokens.is_response
    assert np.array_equal(result.kept.take(data.trusted).values, labels.take(data.trusted).values)
    others = np.setdiff1d(np.arange(len(data.tokens)), data.trusted)
    total = int(labels.take(others).values.sum())
    if strategy in ("fixed_model", "random"):
        assert result.kept.take(others).values.sum() == kept_count(total, context.recipe.cleaning.proportion)
    if strategy != "random":
        assert context.warmup.training["selected_tokens"] == labels.take(data.trusted).values.sum()


def test_a_pool_row_that_is_trusted_too_is_left_out_and_listed(tmp_path, tiny_model_folder, trusted):
    pool = write_rows(tmp_path / "pool.jsonl", 40, "open")
    pool.write_text(pool.read_text() + trusted.read_text().replace("It is", "it  IS"), encoding="utf-8")
    opened = open_run(recipe_with(tmp_path, pool, tiny_model_folder, {"path": str(trusted)}))
    data = opened.context.data
    assert len(data.tokens) + len(data.heldout) == 40 + 12
    assert not any(id in data.trusted_ids for id in data.heldout.ids)
    assert [row.filter for row in data.pool.removed] == ["trusted"] * 12
    assert data.intake.readable == 40 + 12 + 12


def test_what_they_cannot_be_combined_with_is_refused(tmp_path, small_pool, tiny_model_folder, trusted):
    with pytest.raises(RecipeError, match=r"model\.reference names one"):
        recipe_with(
            *(tmp_path, small_pool, tiny_model_folder, str(trusted)),
            model={"reference": "org/other"},
            cleaning={"strategy": "fixed_model"},
        )
    ratings = {"ratings": [{"path": "r.csv"}]}
    for section in ({"warmup": "ds2"}, {"sample_weights": "rating"}, {"strategy": "ds2"}):
        with pytest.raises(RecipeError, match="its rows have no ratings"):
            recipe_with(
                tmp_path, small_pool, tiny_model_folder, str(trusted), pool={"curation": ratings}, cleaning=section
            )


def test_trusted_rows_without_an_answer_are_an_error(tmp_path, small_pool, tiny_model_folder):
    long = "word " * 3000
    row = {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "yes"}]}
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(PoolError, match=r"cleaning\.trusted"):
        open_run(recipe_with(tmp_path, small_pool, tiny_model_folder, str(path)))


def test_the_recipe_is_written_with_them(tmp_path, small_pool, tiny_model_folder, trusted):
    recipe = recipe_with(tmp_path, small_pool, tiny_model_folder, str(trusted))
    assert f"trusted:\n    path: {trusted}\n    name: trusted" in recipe.to_yaml()
