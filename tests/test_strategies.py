"""The registry of strategies: ours, those of installed packages, and functions named in a recipe."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from tokenclean.cleaning import run_strategy
from tokenclean.errors import RecipeError
from tokenclean.recipe import STRATEGIES, Strategy, find_strategy, recipe_from, strategies

MODULE = """
from tokenclean.recipe import Strategy

def shout(context):
    return "loud"

record = Strategy("quiet", "Quiet cleaning", "{name}:shout", level="sample")
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    name = "own_strategies_of_a_test"
    (tmp_path / f"{name}.py").write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def recipe_with(**cleaning):
    return recipe_from({"pool": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "b"}, "cleaning": cleaning})


def test_every_strategy_of_ours_has_its_function():
    for record in STRATEGIES.values():
        assert callable(record.load())
        assert find_strategy(record.name) is record


def test_a_recipe_names_the_unknown_strategy_and_those_there_are():
    with pytest.raises(
        RecipeError, match=r"cleaning\.strategy: expected .*, or module:function of your own, found 'fixed'"
    ):
        recipe_with(strategy="fixed")


def test_ours_run_first_and_each_once():
    recipe = recipe_from(
        {
            "pool": {"sources": [{"path": "a.jsonl"}]},
            "model": {"base": "b"},
            "cleaning": {"strategy": "mine:first"},
            "evaluation": {"controls": ["rho", "mine:first", "full_tokens"]},
        }
    )
    assert recipe.strategies == ("full_tokens", "rho", "mine:first")


def test_an_installed_package_offers_a_function_or_a_record(own_module, monkeypatch):
    group = strategies.ENTRY_POINTS
    points = [
        EntryPoint("loud", f"{own_module}:shout", group),
        EntryPoint("quiet", f"{own_module}:record", group),
    ]
    monkeypatch.setattr(strategies, "entry_points", lambda group: points)
    assert find_strategy("loud") == Strategy("loud", "loud", f"{own_module}:shout")
    assert find_strategy("quiet").title == "Quiet cleaning"
    assert recipe_with(strategy="quiet").strategies == ("quiet",)
    with pytest.raises(ValueError, match="influence, mismatch, given, auto, loud, quiet, or module:function"):
        find_strategy("neither")


def test_what_is_wrong_with_a_function_is_said(own_module):
    with pytest.raises(RecipeError, match=f"cannot import {own_module}:whisper .*PYTHONPATH"):
        run_strategy(None, f"{own_module}:whisper")
    with pytest.raises(RecipeError, match="returned str, expected a StrategyResult, or scores"):
        run_strategy(SimpleNamespace(recipe=recipe_with()), f"{own_module}:shout")


def test_an_entry_point_that_cannot_be_imported_is_reported_by_the_recipe(monkeypatch):
    point = EntryPoint("gone", "no_such_package:clean", strategies.ENTRY_POINTS)
    monkeypatch.setattr(strategies, "entry_points", lambda group: [point])
    with pytest.raises(RecipeError, match=r"cleaning\.strategy: strategy gone: cannot import no_such_package:clean"):
        recipe_with(strategy="gone")


@pytest.mark.slow
def test_scores_are_ranked_where_the_record_says(small_pool, tiny_model_folder, tmp_path, monkeypatch):
    from tokenclean.cleaning.open_run import open_run

    values = {
        "output": str(tmp_path),
        "pool": {"sources": [{"path": str(small_pool)}], "heldout": {"rows": 10}},
        "model": {"base": str(tiny_model_folder)},
        "cleaning": {"proportion": 0.5},
        "training": {"lora": {"rank": 4}},
    }
    context = open_run(recipe_from(values)).context
    monkeypatch.setattr(strategies.Strategy, "load", lambda record: lambda context: context.losses(context.base))
    result = run_strategy(context, Strategy("mine", "Mine", "any:thing", level="sample"))
    assert (result.strategy, result.level) == ("mine", "sample")
    for labels, kept in zip(context.tokens.is_response, result.kept, strict=True):
        assert kept.sum() == labels.sum() // 2
