"""``cleaning.unit``: sentences and rows are kept or dropped as a whole, by the scores of their tokens together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tokenclean.cleaning import run_strategy
from tokenclean.cleaning.open_run import open_run
from tokenclean.cleaning.token_passages import find_passages
from tokenclean.errors import RecipeError
from tokenclean.experiment.demo import pool_path
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.selection import kept_count


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short rows of the shipped pool: answers of one and of several sentences."""
    rows = [json.loads(line) for line in pool_path().read_text(encoding="utf-8").splitlines()]
    short = [row for row in rows if sum(len(turn["content"]) for turn in row["messages"]) < 400][:40]
    path = tmp_path_factory.mktemp("units") / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in short), encoding="utf-8")
    return path


def recipe_of(output: Path, pool: Path, model: Path, **cleaning: object) -> Recipe:
    return recipe_from(
        {
            "output": str(output),
            "pool": {"sources": [{"path": str(pool)}], "heldout": {"rows": 6}},
            "model": {"base": str(model)},
            "cleaning": {"splits": 3, "allow_weak_reference": True, "proportion": 0.5, **cleaning},
            "scoring": {"precision": "exact"},
            "training": {"batch_size": 8, "lora": {"rank": 2}},
        }
    )


@pytest.mark.parametrize("unit", ["sentence", "row"])
@pytest.mark.parametrize("strategy", ["fixed_model", pytest.param("self_evolving", marks=pytest.mark.slow)])
def test_a_unit_is_kept_whole_before_the_next(tmp_path, pool, tiny_model_folder, strategy, unit):
    opened = open_run(recipe_of(tmp_path, pool, tiny_model_folder, strategy=strategy, unit=unit))
    context = opened.context
    result = run_strategy(context, strategy)
    assert result.scores is not None
    labels = context.tokens.is_response
    group = labels.with_values(labels.row_of_value())
    if unit == "sentence":
        group = find_passages(context.tokens, context.data.pool).sentence
    parts = [np.arange(len(context.tokens))] if strategy == "fixed_model" else context.data.splits[1:]
    for rows in parts:
        places = np.zeros(len(labels.values), dtype=bool)
        places[context.data.indices(rows)] = True
        places &= labels.values
        kept = result.kept.values & places
        assert kept.sum() == kept_count(int(places.sum()), 0.5)
        assert result.scores.values[kept].min() >= result.scores.values[places & ~kept].max()
        numbers = group.values[places & (group.values >= 0)]
        whole = {n: kept[places & (group.values == n)].mean() for n in np.unique(numbers)}
        assert sum(0 < share < 1 for share in whole.values()) <= 1
        for number in whole:
            assert len(set(result.scores.values[places & (group.values == number)].tolist())) == 1
        if unit == "sentence":
            assert any(len(set(group[row][labels[row]].tolist()) - {-1}) > 1 for row in rows)
    if strategy == "fixed_model":
        difference = result.losses["base_loss"] - result.losses["reference_loss"]
        number = group.values[labels.values & (group.values >= 0)][0]
        own = difference.values[labels.values & (group.values == number)]
        found = result.scores.values[labels.values & (group.values == number)][0]
        assert found == pytest.approx(own.sum() / np.sqrt(len(own)), abs=1e-5)


def test_whole_rows_are_not_ranked_within_rows(tmp_path, pool, tiny_model_folder):
    with pytest.raises(RecipeError, match=r"cleaning\.unit: row .* rho ranks tokens within each row"):
        recipe_of(tmp_path, pool, tiny_model_folder, strategy="rho", unit="row")
