"""``tokenclean compare`` and ``tokenclean sweep`` as a user gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import tokenclean

from benchmark_data import write_lines

QUICK = (
    "training.lora.rank=4",
    "training.batch_size=16",
    "training.minimum_steps=2",
    "cleaning.allow_weak_reference=true",
    "evaluation.tasks=[boolq,arc_easy]",
    "evaluation.samples=1",
    "evaluation.sample_tokens=4",
)


@pytest.fixture(scope="module")
def recipe(small_pool: Path, tiny_model_folder: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    file = folder / "recipe.yaml"
    file.write_text(
        f"preset: quick\noutput: {folder}/runs\npool: {{sources: [{{path: {small_pool}}}]}}\n"
        f"model: {{base: {tiny_model_folder}}}\nevaluation: {{data_dir: {data_dir}}}\n"
    )
    return file


def settings(*further: str) -> list[str]:
    return [part for setting in (*QUICK, *further) for part in ("--set", setting)]


@pytest.mark.slow
def test_compare_prints_table_1_and_where_it_lies(recipe):
    result = tokenclean("compare", recipe, "--strategies", "full_tokens,random", "--seeds", "3", *settings())
    assert result.returncode == 0, result.stderr
    for text in ("BoolQ", "ARC-E", "minus Full tokens", "judge keeps", "Uniform random", "One seed", "shared"):
        assert text in result.stdout
    folder = Path(result.stdout.rsplit("comparison: ", 1)[1].strip())
    assert {"tables.md", "table_1.csv", "table_1.tex", "values.csv", "questions.parquet", "answers.md"} <= {
        file.name for file in folder.iterdir()
    }


def write_pairs(file: Path) -> Path:
    write_lines(
        file,
        [
            {"prompt": f"Capital of number {n}?", "response": f"It is Lyon, {n}.", "clean": f"It is Paris, {n}."}
            for n in range(8)
        ],
    )
    return file


@pytest.mark.slow
def test_measures_that_noise_moves(recipe, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    further = ("evaluation.tasks=[e2e_slots,chrf,choice]", f"evaluation.pairs={pairs}", "evaluation.limit=2")
    result = tokenclean("compare", recipe, "--strategies", "full_tokens,random", "--seeds", "0,1", *settings(*further))
    assert result.returncode == 0, result.stderr
    printed = " ".join(result.stdout.split())
    for text in (
        "E2E slots",
        "chrF",
        "Choice",
        "Preference for clean answers",
        "8 pairs",
        "Uniform random prefers clean",
    ):
        assert text in printed
    folder = Path(result.stdout.rsplit("comparison: ", 1)[1].strip())
    found = {line["name"]: line for line in json.loads((folder / "comparison.json").read_text())["preferences"]}
    assert found["Uniform random"]["change"]["items"] == 8
    assert found["Full tokens"]["change"] is None


@pytest.mark.slow
def test_a_run_with_pairs(recipe, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    further = ("cleaning.strategy=random", "evaluation.controls=[full_tokens]", f"evaluation.pairs={pairs}")
    result = tokenclean("run", recipe, *settings(*further, f"output={tmp_path}/runs"))
    assert result.returncode == 0, result.stderr
    assert "It prefers clean answers" in " ".join(result.stdout.split())
    (file,) = tmp_path.glob("runs/*/results/*/result.json")
    measured = {line["name"]: line for line in json.loads(file.read_text())["measured"]}
    assert measured["base"]["preference"]["margin"]["items"] == 8
    assert measured["random"]["preference_against_full"]["items"] == 8
    assert measured["full_tokens"]["preference_against_full"] is None
    assert "Preference for clean answers" in (file.parent / "table.md").read_text()


@pytest.mark.slow
def test_sweep_shows_a_failed_cell_and_draws(recipe, tmp_path):
    plot = tmp_path / "figure.svg"
    over = ("--over", "cleaning.proportion=0.5,7", "--plot", plot)
    result = tokenclean("sweep", recipe, *over, *settings("cleaning.strategy=random"))
    assert result.returncode == 0, result.stderr
    assert "proportion=0.5" in result.stdout
    assert "proportion=7 failed" in " ".join(result.stdout.split())
    assert plot.read_text().lstrip().startswith("<?xml")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0,x"), "expected numbers such as 0,1,2, found 0,x"),
        (("--strategies", "full_tokens,rhoo"), "found 'rhoo'; did you mean rho?"),
        (("--strategies", "rho"), "full_tokens is neither base nor among the strategies rho"),
        (("--set", "evaluation.tasks=[no_such]"), "no_such: neither a benchmark"),
    ],
)
def test_what_is_wrong_with_a_comparison(recipe, arguments, message):
    result = tokenclean("compare", recipe, *arguments)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("over", "file", "message"),
    [
        ("cleaning.level=global,source", "f.png", "expected one axis, of numbers"),
        ("cleaning.proportion=0.5", "f.doc", "expected a file ending in .png, .svg, .pdf"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_told_before_anything_is_trained(command, recipe, tmp_path, over, file, message):
    said = command("sweep", recipe, "--over", over, "--plot", tmp_path / file)
    assert said.code == 2
    assert message in " ".join(said.err.split())
    assert "training" not in said.err


@pytest.mark.slow
def test_a_sweep_whose_cells_all_fail_fails(recipe):
    over = ("--over", "model.reference=no/such-model")
    result = tokenclean("sweep", recipe, *over, *settings("cleaning.strategy=rho"))
    assert result.returncode == 1
    assert "every cell failed" in result.stderr
    assert "no/such-model" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("cleaning.proportion=7", "cleaning.proportion"),
        ("cleaning.proportion", "expected key=value"),
        ("name=a,b", "name and output cannot be swept"),
    ],
)
def test_what_is_wrong_with_a_sweep(recipe, over, message):
    result = tokenclean("sweep", recipe, "--over", over)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
