from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_runs import recipe_of as run_recipe

from tokenclean.cleaning.open_run import OpenRun, open_run
from tokenclean.errors import RecipeError
from tokenclean.experiment.comparing.sweep import SweepResult, grid, parse_axis, plot_sweep, sweep
from tokenclean.recipe import Recipe
from tokenclean.store import Store


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("cleaning.proportion=0.3:1.0:0.1", ("0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0")),
        ("training.batch_size=8:20:8", ("8", "16")),
        ("model.reference=org/a,org/b", ("org/a", "org/b")),
        ("model.reference=C:/a:b", ("C:/a:b",)),
        ("cleaning.level=global", ("global",)),
    ],
)
def test_values_of_an_axis(text, values):
    axis = parse_axis(text)
    assert (axis.key, axis.values) == (text.partition("=")[0], values)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 7))
def test_steps_are_exact_and_reach_no_further_than_the_end(start, length, step):
    axis = parse_axis(f"k={start / 10}:{(start + length) / 10}:{step / 10}")
    assert [round(10 * float(value)) for value in axis.values] == list(range(start, start + length + 1, step))


@pytest.mark.parametrize("text", ["cleaning.proportion", "=1", "k=", "k=1:0:0.1", "k=0:1:0", "k=0:1:-1"])
def test_an_axis_that_is_none(text):
    with pytest.raises(RecipeError, match="--over"):
        parse_axis(text)


def test_a_grid_runs_its_last_axis_fastest():
    cells = grid([parse_axis("a=1,2"), parse_axis("b=x,y")])
    assert cells == [("a=1", "b=x"), ("a=1", "b=y"), ("a=2", "b=x"), ("a=2", "b=y")]


def swept(recipes) -> tuple[SweepResult, list[OpenRun]]:
    opened: list[OpenRun] = []
    folder = next(recipe for recipe in recipes.values() if isinstance(recipe, Recipe)).folder
    store = Store(folder)

    def open_opened(recipe: Recipe) -> OpenRun:
        opened.append(open_run(recipe, store=store))
        return opened[-1]

    return sweep(recipes, open_opened), opened


@pytest.fixture(scope="module")
def recipes(small_pool: Path, tiny_model_folder: Path, data_dir: Path, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    evaluation = {"tasks": ["boolq", "arc_easy"], "data_dir": str(data_dir)}

    def recipe(proportion: float) -> Recipe:
        cleaning = {"strategy": "fixed_model", "proportion": proportion}
        return run_recipe(small_pool, tiny_model_folder, output, cleaning=cleaning, evaluation=evaluation)

    return {(f"cleaning.proportion={k}",): recipe(k) for k in (0.3, 0.6, 1.0)}


@pytest.fixture(scope="module")
def finished(recipes) -> tuple[SweepResult, list[OpenRun]]:
    return swept(recipes)


@pytest.mark.slow
def test_another_proportion_scores_nothing_of_the_pool_again(finished):
    result, openeds = finished
    assert [cell.name for cell in result.cells] == ["proportion=0.3", "proportion=0.6", "proportion=1.0"]
    for opened in openeds[1:]:
        made = [name.rsplit("-", 1)[0] for name in opened.stages.computed]
        assert made.count("training") == 1
        assert made.count("losses") == 1  # of the held-out rows under the new model
        assert made.count("evaluation") == 2
    shares = [cell.kept_share for cell in result.cells]
    assert shares == pytest.approx([0.3, 0.6, 1.0], abs=1e-3)
    assert result.comparison is not None
    assert result.comparison.strategies == ("base", "proportion=0.3", "proportion=0.6", "proportion=1.0")


@pytest.mark.slow
def test_finished_cells_are_never_run_again(finished, recipes):
    again, openeds = swept(recipes)
    assert [opened.stages.computed for opened in openeds] == [[], [], []]
    assert again.folder == finished[0].folder
    assert json.loads((again.folder / "sweep.json").read_text())["cells"].keys() == {key for (key,) in recipes}
    for name in ("tables.md", "table-1.csv", "table-2.tex", "values.csv"):
        assert (again.folder / name).stat().st_size


@pytest.mark.slow
def test_a_failed_cell_is_shown_and_the_rest_goes_on(finished, recipes):
    """A reference that cannot be loaded, and a value that the recipe refuses."""
    first = next(iter(recipes.values()))
    broken = first.model_copy(update={"model": first.model.model_copy(update={"reference": "no/such-model"})})
    cells = {**recipes, ("model.reference=no/such-model",): broken}
    cells[("cleaning.proportion=2",)] = RecipeError(["cleaning.proportion: at most 1"], "recipe")
    result, _ = swept(cells)
    assert [bool(cell.failure) for cell in result.cells] == [False, False, False, True, True]
    table = result.tables[0].to_markdown()
    assert table.count("| failed |") == 2
    assert "proportion=2 failed" in table
    assert "no/such-model" in table


@pytest.mark.slow
def test_figure_2(finished, tmp_path):
    file = tmp_path / "figure.png"
    plot_sweep(finished[0], file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_no_cell_with_a_recipe():
    with pytest.raises(RecipeError, match="at most 1"):
        sweep({("k=2",): RecipeError(["k: at most 1"], "recipe")}, lambda recipe: pytest.fail("opened"))
