"""The laboratory's trainings on a tiny model: held-out rows that are given, and corrected rows as a strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenclean import load_pool
from tokenclean.errors import PoolError
from tokenclean.experiment.known_noise import corrected
from tokenclean.experiment.laboratory import Laboratory, hold_out, measure_margins, open_laboratory, train_effects
from tokenclean.lab import NoiseSettings, plant
from tokenclean.lab.truth import TruthPool, truth_of_planted
from tokenclean.observer import Observer
from tokenclean.pool import Pool
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.store import Store


def recipe_of(pool: Path, model: Path, output: Path) -> Recipe:
    return recipe_from(
        {
            "preset": "quick",
            "output": str(output),
            "pool": {"sources": [{"path": str(pool)}], "heldout": {"rows": 8}},
            "model": {"base": str(model)},
            "cleaning": {"strategy": "full_tokens"},
            "training": {"minimum_steps": 2, "lora": {"rank": 2}},
            "evaluation": {"controls": []},
        }
    )


@pytest.fixture(scope="module")
def truth(small_pool: Path) -> TruthPool:
    clean = load_pool(small_pool).take(range(40))
    return truth_of_planted(clean, plant(clean, {"corrupted": NoiseSettings(row_share=0.5)}, seed=1))


@pytest.fixture(scope="module")
def laboratory(
    truth: TruthPool, small_pool: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path_factory.mktemp("runs"))
    store = Store(recipe.folder)
    with store.lock():
        yield open_laboratory(recipe, *hold_out(truth, recipe), observer=Observer(), store=store)


def test_all_conditions_are_trained_and_their_margins_are_of_the_same_pairs(laboratory: Laboratory, truth: TruthPool):
    assert (len(laboratory.context.tokens), len(laboratory.context.heldout)) == (32, 8)
    measured, results = train_effects(laboratory)
    assert [result.strategy for result in results] == ["full_tokens", "oracle", "random_mask", "corrected"]
    assert [line.name for line in measured] == ["base", *(result.strategy for result in results)]
    margins = measure_margins(laboratory, {result.strategy: result.model for result in results})
    assert {len(of_model) for of_model in margins.values()} == {len(laboratory.pairs.rows)}
    assert not np.array_equal(margins["oracle"], margins["corrected"])


def test_corrected_rows_train_as_full_tokens_of_the_clean_pool(
    laboratory: Laboratory, truth: TruthPool, small_pool: Path, tiny_model_folder: Path, tmp_path: Path
):
    """The same training as on a pool that never had noise, but for the one row in which noise was left."""
    _, results = train_effects(laboratory)
    model = next(result.model for result in results if result.strategy == "corrected")
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path)
    training, heldout = hold_out(truth, recipe)
    conversations = tuple(row for row in training.clean if row is not None)
    row = training.spans[0].row
    noisy = replace(training.pool, conversations=(*conversations[:row], training.pool[row], *conversations[row + 1 :]))
    spans = tuple(span for span in training.spans if span.row == row)
    store = Store(recipe.folder)
    with store.lock():
        mostly_clean = TruthPool(noisy, spans, conversations)
        other = open_laboratory(recipe, mostly_clean, heldout, observer=Observer(), store=store)
        again = corrected(Pool(conversations))(other.context)
        assert again.kept is None
        assert again.model.identity == model.identity
        with pytest.raises(ValueError, match="a corrected row for each of 32 rows, got 31"):
            corrected(Pool(conversations[1:]))(other.context)


def test_without_a_clean_version_of_every_row_nothing_is_corrected(
    truth: TruthPool, small_pool: Path, tiny_model_folder: Path, tmp_path: Path
):
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path)
    training, heldout = hold_out(truth, recipe)
    row = training.spans[0].row
    unknown = replace(training, clean=(*training.clean[:row], None, *training.clean[row + 1 :]))
    store = Store(recipe.folder)
    with store.lock():
        found = open_laboratory(recipe, unknown, heldout, observer=Observer(), store=store)
        _, results = train_effects(found)
        assert [result.strategy for result in results] == ["full_tokens", "oracle", "random_mask"]
        with pytest.raises(PoolError, match="1 of 32 rows have no clean version"):
            open_laboratory(recipe, training, unknown, observer=Observer(), store=store)
