"""Whole runs with training.quantization: what is scored is never quantized."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_runs import recipe_of

from tokenclean.cleaning.open_run import open_run
from tokenclean.errors import MissingExtraError
from tokenclean.experiment.planning.plan import plan
from tokenclean.experiment.run import run
from tokenclean.models.frozen_linear import Nf4Linear
from tokenclean.models.loading.load import load_model, resolve_source
from tokenclean.recipe import Recipe
from tokenclean.scoring import token_losses


def nf4_recipe(pool: Path, model: Path, output: Path, quantization: str = "nf4", adapters: str = "fresh") -> Recipe:
    return recipe_of(
        pool,
        model,
        output,
        cleaning={"adapters": adapters},
        training={"quantization": quantization},
        evaluation={"controls": []},
    )


@pytest.mark.parametrize("adapters", ["fresh", pytest.param("one", marks=pytest.mark.slow)])
def test_rounds_are_trained_on_the_4_bit_base_and_scored_on_the_base_as_it_is(
    adapters, small_pool, tiny_model_folder, tmp_path, monkeypatch
):
    made = []
    real = Nf4Linear.__init__
    monkeypatch.setattr(Nf4Linear, "__init__", lambda self, *a, **k: made.append(self) or real(self, *a, **k))
    opened = open_run(nf4_recipe(small_pool, tiny_model_folder, tmp_path, adapters=adapters))
    result = run(opened)
    (outcome,) = result.results
    assert len(made) == len(outcome.rounds) * 2 * 7  # each training quantizes two layers' seven products
    for model in (opened.context.base, *outcome.rounds):
        plain = token_losses(load_model(model.source, device=opened.device), opened.context.heldout)
        np.testing.assert_array_equal(plain.values, opened.context.heldout_losses(model).values)
    copied = resolve_source(str(result.folder / "self_evolving" / "model"))
    assert copied.base == str(tiny_model_folder)
    assert (result.folder / "recipe.yaml").read_text().count("quantization: nf4") == 1


def test_both_kinds_of_training_share_the_bases_losses_and_no_training(small_pool, tiny_model_folder, tmp_path):
    opened = {
        quantization: open_run(nf4_recipe(small_pool, tiny_model_folder, tmp_path, quantization))
        for quantization in ("none", "nf4")
    }
    losses = {name: opened.context.losses(opened.context.base).values for name, opened in opened.items()}
    np.testing.assert_array_equal(losses["none"], losses["nf4"])
    assert opened["none"].stages.computed
    assert not opened["nf4"].stages.computed
    assert opened["none"].context.warmup.key != opened["nf4"].context.warmup.key


def test_a_missing_package_is_told_before_anything_is_scored(small_pool, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(MissingExtraError, match=r"training\.quantization: nf4 needs the package 'bitsandbytes'"):
        open_run(nf4_recipe(small_pool, tiny_model_folder, tmp_path))


def test_a_plan_knows_that_training_takes_less_memory(small_pool, tiny_model_folder, tmp_path):
    none, nf4 = (
        plan(nf4_recipe(small_pool, tiny_model_folder, tmp_path, quantization), flop_per_second=1e9)
        for quantization in ("none", "nf4")
    )
    pairs = list(zip(nf4.steps, none.steps, strict=True))
    assert all(ours.memory_bytes < plain.memory_bytes for ours, plain in pairs if ours.optimizer_steps)
    assert all(replace(ours, memory_bytes=0) == replace(plain, memory_bytes=0) for ours, plain in pairs)
