"""DS² inside an experiment: what is shared, what is selected, what is kept in the run folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tokenclean.cleaning import run_strategy
from tokenclean.cleaning.open_run import open_run
from tokenclean.ds2 import curated_pool, transition_matrix
from tokenclean.ds2.selection import select_best
from tokenclean.errors import RecipeError
from tokenclean.experiment.curate import curate
from tokenclean.experiment.finished.finished_run import find_run
from tokenclean.experiment.planning.plan import plan
from tokenclean.experiment.reporting.report import make_report
from tokenclean.experiment.run import run
from tokenclean.pool import load_pool
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.store import Store
from tokenclean.token_table import read_table

DS2_ROWS = 12


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    """In place of a real model: two clusters by the length of the text. Gives how many texts each call embedded.

    The transition matrix is fitted in fewer steps; that it is right is tested where it is made."""
    calls: list[int] = []

    def embed(texts, model, **options):
        calls.append(len(texts))
        generator = np.random.default_rng(0)
        is_long = np.array([len(text) > 400 for text in texts])
        vectors = generator.normal(size=(len(texts), 8)) * 0.2
        vectors[np.arange(len(texts)), is_long.astype(int)] += 1
        return vectors.astype(np.float32)

    monkeypatch.setattr(curated_pool, "embed", embed)
    monkeypatch.setattr(curated_pool, "embedding_weights", lambda name: name)
    monkeypatch.setattr(transition_matrix, "STEPS", 150)
    return calls


@pytest.fixture
def ratings_file(small_pool: Path, tmp_path: Path) -> Path:
    file = tmp_path / "ratings.csv"
    generator = np.random.default_rng(1)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "one", "two"])
        for row in load_pool(small_pool):
            length = sum(len(turn.content) for turn in row.turns)
            good = 8 if length > 400 else 5
            writer.writerow([row.id, good + generator.integers(-1, 2), good + generator.integers(-1, 2)])
    return file


@pytest.fixture
def recipe(small_pool, tiny_model_folder, ratings_file, tmp_path, embedded) -> Recipe:
    return recipe_from(values_of(small_pool, tiny_model_folder, ratings_file, tmp_path))


def values_of(pool: Path, model: Path, ratings: Path, output: Path, **cleaning) -> dict:
    raters = [{"path": str(ratings), "rating_column": name} for name in ("one", "two")]
    return {
        "output": str(output),
        "pool": {
            "sources": [{"path": str(pool)}],
            "heldout": {"rows": 10},
            "curation": {"ratings": raters, "embedding_model": "made up"},
        },
        "model": {"base": str(model), "device": "cpu"},
        "cleaning": {"splits": 3, "allow_weak_reference": True, "ds2_rows": DS2_ROWS, "strategy": "fixed_model"}
        | cleaning,
        "training": {"batch_size": 8, "learning_rate": 1e-2, "lora": {"rank": 4, "dropout": 0}},
        "evaluation": {"controls": ["none", "ds2", "self_evolving"]},
    }


def test_ds2_trains_every_token_of_the_best_rated_rows(recipe):
    opened = open_run(recipe)
    outcome = run_strategy(opened.context, "ds2")
    labels, long_tail = opened.context.data._ratings
    best = np.sort(select_best(labels, long_tail, DS2_ROWS))
    np.testing.assert_array_equal(opened.context.data.best_rated, best)
    kept = outcome.kept.row_sums()
    expected = np.zeros(len(opened.context.tokens), dtype=np.int64)
    expected[best] = opened.context.tokens.is_response.row_sums()[best]
    np.testing.assert_array_equal(kept, expected)
    assert labels[best].min() >= np.delete(labels, best).max()


@pytest.mark.slow
def test_a_warm_up_by_ds2_is_the_strategy_ds2_and_all_share_it(
    small_pool, tiny_model_folder, ratings_file, tmp_path, embedded
):
    values = values_of(small_pool, tiny_model_folder, ratings_file, tmp_path, warmup="ds2")
    opened = open_run(recipe_from(values))
    np.testing.assert_array_equal(opened.context.data.splits[0], opened.context.data.best_rated)
    rows = np.sort(np.concatenate(opened.context.data.splits))
    np.testing.assert_array_equal(rows, np.arange(len(opened.context.tokens)))
    result = run(opened)
    outcomes = {outcome.strategy: outcome for outcome in result.results}
    assert outcomes["ds2"].model.key == opened.context.warmup.key == outcomes["self_evolving"].rounds[0].key
    assert outcomes["fixed_model"].checks[0].model.key == opened.context.warmup.key
    assert (
        sum(name.startswith("training-") for name in opened.stages.computed) == 1 + 1 + 2
    )  # warm-up, fixed_model, two rounds


def test_everything_is_made_once(recipe, embedded):
    first = open_run(recipe)
    again = open_run(recipe)
    assert embedded == [60]
    assert first.context.data.rated.by_id == again.context.data.rated.by_id
    names = {path.name.rpartition("-")[0] for path in (recipe.folder / "stages").iterdir()}
    assert {"embeddings", "neighbours", "curation"} <= names


def test_the_pool_is_cut_to_its_best_rows(small_pool, tiny_model_folder, ratings_file, tmp_path, embedded):
    values = values_of(small_pool, tiny_model_folder, ratings_file, tmp_path)
    values["pool"]["curation"]["rows"] = 40
    recipe = recipe_from(values)
    opened = open_run(recipe)
    assert len(opened.context.tokens) + len(opened.context.heldout) == 40
    chosen = {*opened.context.tokens.ids, *opened.context.heldout.ids}
    rated = opened.context.data.rated.by_id
    left = [label for row, (label, _) in rated.items() if row not in chosen]
    assert max(left) <= min(rated[row][0] for row in chosen)
    planned = plan(recipe)
    assert "8 held-out rows" in planned.summary[0]
    assert any(step.name == "train ds2" and step.rows == DS2_ROWS for step in planned.steps)


def test_sample_weights_multiply_the_token_labels(small_pool, tiny_model_folder, ratings_file, tmp_path, embedded):
    values = values_of(
        small_pool, tiny_model_folder, ratings_file, tmp_path, sample_weights="rating", strategy="random"
    )
    values["evaluation"]["controls"] = []
    opened = open_run(recipe_from(values))
    result = run(opened)
    (outcome,) = result.results
    factors = (opened.context.data._ratings[0] + 1.0) / (opened.context.data._ratings[0] + 1.0).mean()
    weights = read_table(result.folder / "random" / "kept.parquet")["weight"]
    for row, given in enumerate(weights):
        is_kept = outcome.kept[row]
        np.testing.assert_allclose(given[is_kept], factors[row], rtol=1e-6)
        assert not given[~is_kept].any()


def test_curate_tells_what_changed_and_writes_every_row(recipe):
    store = Store(recipe.folder)
    result = curate(recipe, store)
    titles = [table.title for table in result.tables]
    assert titles[0] == "Rows by class, before and after correction"
    assert "How raters agree, before and after correction" in titles
    agreement = result.tables[titles.index("How raters agree, before and after correction")]
    assert agreement.sections == {0: "one, two"}
    assert [row[0] for row in agreement.rows] == ["before", "after"]
    before = [int(cell) for cell in result.tables[0].rows[0][2:8]]
    assert sum(before) == 60
    rows = pq.read_table(result.folder / "rows.parquet")
    assert rows.num_rows == 60
    assert rows["rank"].null_count == 60 - DS2_ROWS
    document = json.loads((result.folder / "curation.json").read_text(encoding="utf-8"))
    assert [sum(reported[when]) for reported in document["raters"] for when in ("before", "after")] == [60] * 4
    reported = make_report([find_run(recipe.folder)], title="Ratings", decoder=lambda run: None)
    assert [plot.name for plot in reported.plots] == ["ratings", "transition"]
    for name in ("ratings", "transition"):
        assert (result.folder / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert (result.folder / f"{name}.csv").read_text(encoding="utf-8").startswith("rater,")


@pytest.mark.parametrize("asked", [{"strategy": "ds2"}, {"warmup": "ds2"}, {"sample_weights": "rating"}])
def test_without_ratings_what_needs_them_is_told(asked, small_pool, tiny_model_folder, ratings_file, tmp_path):
    values = values_of(small_pool, tiny_model_folder, ratings_file, tmp_path, **asked)
    del values["pool"]["curation"]
    values["evaluation"]["controls"] = []
    with pytest.raises(RecipeError, match=r"pool\.curation: .* needs the pool's ratings"):
        recipe_from(values)


def test_more_best_rows_than_there_are_is_told(small_pool, tiny_model_folder, ratings_file, tmp_path, embedded):
    values = values_of(small_pool, tiny_model_folder, ratings_file, tmp_path, ds2_rows=50)
    with pytest.raises(RecipeError, match=r"cleaning\.ds2_rows: the 50 best-rated of 50 training rows are all"):
        run_strategy(open_run(recipe_from(values)).context, "ds2")
