"""A whole comparison on a tiny model: Table 1, the held-out measures, what is shared, what a second command re-uses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_runs import recipe_of as run_recipe

from tokenclean.cleaning import baselines, run_strategy
from tokenclean.cleaning.open_run import OpenRun, open_run
from tokenclean.cleaning.trainings import ModelTrainings
from tokenclean.errors import EvaluationError, RecipeError, WeakReferenceError
from tokenclean.evaluation.comparison import Difference
from tokenclean.experiment.comparing.compare import CompareResult, compare, trend
from tokenclean.experiment.comparing.judge_losses import (
    judged_tokens,
    mean_over_seeds,
    measure_heldout,
    source_gains_table,
)
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.store import Store

TASKS = ["arc_challenge", "boolq", "xquad"]
CHOSEN = ("full_tokens", "random", "fixed_model", "rho")


@pytest.fixture(scope="module")
def recipe(small_pool: Path, tiny_model_folder: Path, data_dir: Path, tmp_path_factory) -> Recipe:
    evaluation = {"tasks": TASKS, "data_dir": str(data_dir), "samples": 2, "sample_tokens": 5}
    return run_recipe(small_pool, tiny_model_folder, tmp_path_factory.mktemp("runs"), evaluation=evaluation)


def compared(recipe: Recipe, strategies=CHOSEN, seeds=(0, 1), **how) -> tuple[CompareResult, list[OpenRun]]:
    store, opened = Store(recipe.folder), []

    def open_opened(of_seed: Recipe) -> OpenRun:
        opened.append(open_run(of_seed, store=store))
        return opened[-1]

    return compare(recipe, strategies, seeds, open_opened, **how), opened


@pytest.fixture(scope="module")
def finished(recipe: Recipe) -> tuple[CompareResult, list[OpenRun]]:
    return compared(recipe)


@pytest.mark.slow
def test_every_strategy_has_its_line_and_every_task_its_column(finished):
    result, _ = finished
    assert result.comparison.strategies == ("base", *CHOSEN)
    assert result.comparison.tasks == tuple(TASKS)
    assert result.comparison.seeds == (0, 1)
    assert dict(result.comparison.items) == {"arc_challenge": 6, "boolq": 6, "xquad": 4}
    table = result.tables[0].to_markdown()
    for heading in ("ARC-C", "BoolQ", "XQuAD", "Avg", "minus Full tokens"):
        assert heading in table
    assert not result.failed


@pytest.mark.slow
def test_scores_are_means_of_the_answers_kept(finished):
    result, _ = finished
    answers = pq.read_table(result.folder / "questions.parquet").to_pylist()
    mine = [a["score"] for a in answers if a["strategy"] == "rho" and a["seed"] == 1 and a["benchmark"] == "boolq"]
    assert len(mine) == 6
    both = [a["score"] for a in answers if a["strategy"] == "rho" and a["benchmark"] == "boolq"]
    assert result.comparison.scores["rho"]["boolq"].value == pytest.approx(np.mean(both))
    lines = list(csv.DictReader(io.StringIO((result.folder / "values.csv").read_text())))
    written = next(line for line in lines if line["strategy"] == "rho" and line["task"] == "boolq")
    assert float(written["score"]) == pytest.approx(np.mean(both))


@pytest.mark.slow
def test_seeds_share_pool_and_held_out_rows_and_nothing_that_is_drawn(finished):
    _, (first, second) = finished
    assert first.context.heldout.ids == second.context.heldout.ids
    assert first.context.tokens.ids == second.context.tokens.ids
    assert any(
        not np.array_equal(a, b) for a, b in zip(first.context.data.splits, second.context.data.splits, strict=True)
    )


@pytest.mark.slow
def test_no_seed_s_models_stay_in_memory(finished):
    _, runs = finished
    assert runs[1].models._load is None


@pytest.mark.slow
def test_what_is_shared_is_counted(finished):
    """rho and fixed_model share the warm-up and both losses of every split; counted by hand from the stages' names."""
    result, runs = finished
    stages = json.loads((result.folder / "comparison.json").read_text())["stages"]
    alone = 0
    union: set[str] = set()
    for opened in runs:
        for strategy in CHOSEN:
            view = opened.for_strategy()
            run_strategy(view.context, strategy)
            alone += len(view.stages.used)
            union |= view.stages.used
    assert stages == {"alone": alone, "needed": len(union)}
    assert stages["alone"] > stages["needed"]
    assert f"{stages['alone'] - stages['needed']} shared" in " ".join(result.sentences)


@pytest.mark.slow
def test_again_nothing_is_made_and_another_seed_makes_its_own(finished, recipe):
    first, _ = finished
    again, runs = compared(recipe)
    assert [opened.stages.computed for opened in runs] == [[], []]
    assert again.folder == first.folder
    more, runs = compared(recipe, seeds=(0, 1, 2))
    made = {name.rsplit("-", 1)[0] for name in runs[0].stages.computed + runs[1].stages.computed}
    assert made <= {"comparison"}
    assert "training" in {name.rsplit("-", 1)[0] for name in runs[2].stages.computed}
    assert more.comparison.seeds == (0, 1, 2)


@pytest.mark.slow
def test_files_for_a_paper_and_a_reader(finished):
    result, _ = finished
    assert "\\toprule" in (result.folder / "table_1.tex").read_text()
    assert (result.folder / "table_1.csv").read_text().startswith("section,Model,ARC-C")
    answers = (result.folder / "answers.md").read_text()
    assert answers.count("**in the data**") == 2
    assert answers.count("**Fixed-model cleaning**") == 2
    assert "- Against" in (result.folder / "tables.md").read_text()


@pytest.mark.slow
def test_references_have_lines_where_asked_for(recipe):
    result, _ = compared(recipe, ("full_tokens", "self_evolving"), (0,), references=True)
    names = result.comparison.strategies
    assert names[:2] == ("base", "full_tokens")
    assert names[-1] == "self_evolving"
    assert "warm-up" in names
    assert any(name.startswith("reference-") for name in names)
    assert result.tables[2].title.startswith("Rich, poor or intermediate")
    assert [row[0] for row in result.tables[2].rows] == ["ARC-C", "BoolQ", "XQuAD", "Avg"]


@pytest.mark.slow
def test_a_strategy_that_fails_is_told_and_left_out(recipe, monkeypatch):
    def weak(context):
        raise WeakReferenceError("the reference is no better than the base")

    monkeypatch.setattr(baselines, "rho", weak)
    result, _ = compared(recipe, ("full_tokens", "rho"), (0,))
    assert result.comparison.strategies == ("base", "full_tokens")
    assert "no better than the base" in result.failed["rho"]
    with pytest.raises(WeakReferenceError):
        compared(recipe, ("full_tokens", "rho"), (0,), control="rho")


def test_what_is_wrong_is_told_at_once(recipe):
    with pytest.raises(RecipeError) as error:
        compared(recipe, ("fulltokens",), (1, 1))
    text = str(error.value)
    assert "found 'fulltokens'; did you mean full_tokens?" in text
    assert "full_tokens is neither base nor among" in text
    assert "different numbers" in text


def test_missing_data_stops_before_any_model_is_loaded(recipe, tmp_path, monkeypatch):
    evaluation = recipe.evaluation.model_copy(update={"data_dir": str(tmp_path)})
    monkeypatch.setattr(ModelTrainings, "train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(EvaluationError, match="missing; put the data there"):
        compared(recipe.model_copy(update={"evaluation": evaluation}))


@pytest.mark.parametrize(
    ("value", "half", "label"),
    [(0.2, 0.1, "rich"), (-0.2, 0.1, "poor"), (0.2, 0.3, "intermediate"), (-0.2, 0.3, "intermediate")],
)
def test_trends_follow_the_interval(value, half, label):
    p = 0.001 if abs(value) > half else 0.5
    assert trend(Difference(value, value - half, value + half, p, 100, 50)) == label


def ragged(*rows: list[float]) -> Ragged:
    return Ragged.from_rows([np.array(row, dtype=np.float32) for row in rows], np.float32)


def test_held_out_measures_by_hand():
    nan = np.nan
    losses = {
        "full_tokens": [ragged([nan, 1, 3], [nan, 2, 2]), ragged([nan, 3, 3], [nan, 2, 4])],
        "rho": [ragged([nan, 2, 2], [nan, 2, 2]), ragged([nan, 2, 4], [nan, 2, 6])],
    }
    means = {name: mean_over_seeds(runs) for name, runs in losses.items()}
    is_kept = Ragged.from_rows([np.array([False, True, False]), np.array([False, True, False])], bool)
    control, rho = measure_heldout(means, is_kept, "full_tokens")
    assert control.losses == pytest.approx((2.5, 2.0, 3.0))  # means over seeds: 2, 3, 2, 3
    assert rho.losses == pytest.approx((2.75, 2.0, 3.5))  # 2, 3, 2, 4
    assert control.against is None
    assert rho.against is not None
    assert [d.difference for d in rho.against] == pytest.approx([0.25, 0.0, 0.5])


def test_gains_by_source_by_hand():
    nan = np.nan
    base = ragged([nan, 2, 2], [nan, 4], [nan, 1], [nan, 3], [nan, 9])
    losses = {
        "base": base,
        "rho": ragged([nan, 1, 2], [nan, 3], [nan, 2], [nan, 4], [nan, 9]),
    }
    table = source_gains_table(losses, ("a", "a", "b", "b", "c"), "base")
    assert table is not None
    assert table.columns == ("Model", "a", "b")  # one row of c gives no interval
    (row,) = table.rows
    assert row[0] == "RHO"
    assert row[1].startswith("-0.6667")  # −1, 0 and −1
    assert row[2].startswith("+1.0000")
    assert source_gains_table(losses, ("a",) * 5, "base") is None


@pytest.mark.slow
def test_the_base_can_be_what_differences_are_taken_from(recipe):
    result, _ = compared(recipe, ("none", "full_tokens"), (0,), control="base")
    assert result.comparison.strategies == ("base", "full_tokens")
    assert result.comparison.control == "base"
    assert "minus Base" in result.tables[0].to_markdown()


@pytest.mark.slow
def test_judges_never_score_what_they_learned(finished, monkeypatch):
    """Each judge trains on one half of the held-out rows; a token's label comes from the other one's losses."""
    _, (opened, _) = finished
    trained = []
    train = ModelTrainings.train

    numbers = {row: number for number, row in enumerate(opened.context.heldout.ids)}

    def watched(self, job):
        model = train(self, job)
        trained.append((model, {numbers[row] for row in job.tokens.ids}))
        return model

    monkeypatch.setattr(ModelTrainings, "train", watched)
    kept = judged_tokens(opened.context)
    (first, even), (second, odd) = trained
    assert even | odd == set(range(len(opened.context.heldout)))
    assert not even & odd
    base = opened.context.heldout_losses(opened.context.base)
    scores = [base - opened.context.heldout_losses(model) for model in (first, second)]
    chosen = np.concatenate([scores[0 if row in odd else 1][row] for row in range(len(opened.context.heldout))])
    labels = opened.context.heldout.is_response.values
    count = int(labels.sum() * opened.context.recipe.cleaning.proportion)
    lowest = np.sort(chosen[labels])[::-1][count - 1]
    assert kept.values.sum() == count
    assert (chosen[kept.values] >= lowest).all()
