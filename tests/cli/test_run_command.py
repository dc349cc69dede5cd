"""``run``, ``plan`` and ``init`` on a data file: no recipe, no clone, a verdict at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tokenclean.recipe import load_recipe, recipe_from

SMALL = ("--rows", "40", "--set", "training.lora.rank=2", "--set", "scoring.precision=exact")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_on_a_data_file(command, here, small_pool, tiny_model_folder):
    said = command("run", small_pool, "--model", tiny_model_folder, *SMALL)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("auto chose full tokens: 8 held-out rows are too few to choose by, which takes 40.")
    assert " Next: " in lines[0]
    table = [line for line in lines[1:] if line.split()[:1] in (["base"], ["full_tokens"], ["auto"])]
    assert [line.split()[0] for line in table] == ["base", "full_tokens", "auto"]
    assert "+0.0000" in table[2]
    paths = lines[lines.index(next(line for line in lines if line.startswith("results "))) :]
    assert len(paths) <= 6
    [results] = (here / "runs" / "small" / "results").iterdir()
    assert str(results.relative_to(here)) in paths[0]
    assert (results / "auto" / "model" / "adapter_model.safetensors").is_file()

    recipe = here / "runs" / "small" / "recipe.yaml"
    assert "# Share of response tokens to keep" in recipe.read_text(encoding="utf-8")
    assert load_recipe(recipe) == recipe_from(yaml.safe_load((results / "recipe.yaml").read_text(encoding="utf-8")))
    assert "strategy: auto" in said.err
    assert f"{recipe.relative_to(here)}" in said.err

    again = command("run", recipe)
    assert again.code == 0
    assert "0 stages made" in again.out
    assert again.out.splitlines()[0] == lines[0]


def test_a_recipe_that_somebody_changed_stays(command, here, small_pool, tiny_model_folder):
    arguments = ("run", small_pool, "--model", tiny_model_folder, *SMALL, "--strategy", "random")
    assert command(*arguments).code == 0
    folder = here / "runs" / "small"
    made, changed = (folder / "recipe.yaml").read_text(encoding="utf-8"), "# mine\nname: small\n"
    (folder / "recipe.yaml").write_text(changed, encoding="utf-8")
    for _ in range(2):
        said = command(*arguments)
        assert "recipe-2.yaml" in said.err
    assert (folder / "recipe.yaml").read_text(encoding="utf-8") == changed
    assert (folder / "recipe-2.yaml").read_text(encoding="utf-8") == made
    assert not (folder / "recipe-3.yaml").exists()


def test_options_say_what_people_change(command, here, small_pool, tiny_model_folder):
    options = ("--strategy", "random", "-k", "0.8", "--output", "elsewhere", "--set", "cleaning.proportion=0.7")
    said = command("run", small_pool, "-m", tiny_model_folder, *SMALL, *options)
    assert said.code == 0, said.err
    [result] = (here / "elsewhere" / "small" / "results").glob("*/recipe.yaml")
    cleaning = yaml.safe_load(result.read_text(encoding="utf-8"))["cleaning"]
    assert (cleaning["strategy"], cleaning["proportion"]) == ("random", 0.7)


def test_trusted_rows(command, here, small_pool, tiny_model_folder):
    rows = small_pool.read_text(encoding="utf-8").splitlines()
    (here / "checked.jsonl").write_text("\n".join(rows[-10:]) + "\n", encoding="utf-8")
    options = ("--trusted", "checked.jsonl", "--strategy", "fixed_model", "--allow-weak-reference")
    said = command("run", small_pool, "--model", tiny_model_folder, *SMALL, *options)
    assert said.code == 0, said.err
    assert "10 rows of the pool are left out" in said.err
    [result] = (here / "runs" / "small" / "results").glob("*/result.json")
    training = json.loads(result.read_text(encoding="utf-8"))["training"]
    assert training["warm-up"]["trained_rows"] == 10


def test_a_plan_of_a_data_file(command, here, small_pool, tiny_model_folder):
    said = command("plan", small_pool, "--model", tiny_model_folder, *SMALL)
    assert said.code == 0, said.err
    assert "auto: 1.00 times the cost of a run on full tokens" in said.out
    assert "kept:" not in said.out
    assert not (here / "runs").exists()


def test_init_writes_a_recipe_that_runs(command, here, small_pool, tiny_model_folder):
    said = command("init", small_pool, "--model", tiny_model_folder, *SMALL)
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "next: tokenclean run small.yaml"
    assert load_recipe("small.yaml").pool.max_rows == 40
    assert "Of no effect with auto." in Path("small.yaml").read_text(encoding="utf-8")
    assert command("plan", "small.yaml").code == 0
    twice = command("init", small_pool)
    assert twice.code == 2
    assert "exists already" in twice.err
    placeholder = command("init", small_pool, "--to", "other.yaml")
    assert "model.base is a placeholder" in placeholder.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["my.jsonl"], "--model: name the base model"),
        (["my.jsonl", "quick"], "give one recipe, or data files, not both"),
        (["gone.jsonl", "--model", "MODEL"], "gone.jsonl"),
        (["my.jsonl", "--model", "./no-model"], "no-model"),
        (["my.jsonl", "--model", "MODEL", "--strategy", "noise_mixtur"], "did you mean noise_mixture?"),
    ],
)
def test_what_cannot_be_run_says_why(command, here, small_pool, tiny_model_folder, arguments, words):
    (here / "my.jsonl").write_bytes(small_pool.read_bytes())
    said = command("run", *(str(tiny_model_folder) if word == "MODEL" else word for word in arguments))
    assert said.code == 2, said.err
    assert not (here / "runs" / "gone").exists()
    assert words in " ".join(said.err.split())
