from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tokenclean.pool import load_pool
from tokenclean.recipe import load_recipe

PASSAGE = " ".join(f"word{number}" for number in range(20))


def write_lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def recipe(small_pool, tiny_model_folder, tmp_path) -> Path:
    """Two sources with a duplicate, a near-duplicate, a contaminated row and a broken one; 20 rows of the first."""
    first = tmp_path / "first.jsonl"
    first.write_text(small_pool.read_text(encoding="utf-8"), encoding="utf-8")
    long = " ".join(f"text{number}" for number in range(60))
    second = write_lines(
        tmp_path / "second.jsonl",
        {"instruction": "Say it.", "context": "", "response": long},
        {"instruction": "say IT.", "context": "", "response": long},
        {"instruction": "Say it again.", "context": "", "response": long},
        {"instruction": "Quote.", "context": PASSAGE, "response": "No."},
        {"instruction": "Quote.", "context": "", "response": " "},
        {"instruction": "Add.", "context": "2 + 2", "response": "4"},
    )
    (tmp_path / "eval").mkdir()
    write_lines(tmp_path / "eval" / "boolq.jsonl", {"passage": PASSAGE})
    values = {
        "name": "mixed",
        "output": str(tmp_path / "runs"),
        "pool": {
            "sources": [{"path": str(first), "count": 20, "name": "demo"}, {"ready": "dolly", "path": str(second)}],
            "filters": {"contamination": {"data_dir": str(tmp_path / "eval")}, "duplicates": "near"},
            "heldout": {"rows": 4},
        },
        "model": {"base": str(tiny_model_folder), "device": "cpu"},
        "cleaning": {"strategy": "none", "splits": 2},
    }
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_pool_is_built_written_and_described(recipe, command, tmp_path):
    folder = tmp_path / "built"
    said = command("pool", recipe, "-o", folder)
    assert said.code == 0, said.err
    assert sorted(path.name for path in folder.iterdir()) == [
        "contamination.jsonl",
        "pool.json",
        "pool.jsonl",
        "recipe.yaml",
        "rejected.jsonl",
        "removed.jsonl",
        "statistics.csv",
        "tables.md",
    ]
    removed = read_lines(folder / "removed.jsonl")
    dolly = [(row["line"], row["filter"]) for row in removed if row["source"] == "dolly"]
    assert dolly == [(4, "contamination"), (2, "exact_duplicate"), (3, "near_duplicate")]
    assert [row["filter"] for row in removed if row["source"] == "demo"] == ["not_drawn"] * 40
    [overlap] = read_lines(folder / "contamination.jsonl")
    assert (overlap["benchmark"], overlap["source"]) == ("boolq", "dolly")
    assert [row["line"] for row in read_lines(folder / "rejected.jsonl")] == [5]
    document = json.loads((folder / "pool.json").read_text())
    assert (document["rows"], document["rejected_rows"]) == (22, 1)
    assert document["removed_rows"] == {
        "contamination": 1,
        "exact_duplicate": 1,
        "near_duplicate": 1,
        "not_drawn": 40,
    }
    pool = load_pool(folder / "pool.jsonl")
    assert (len(pool), set(pool.sources), pool.rejected) == (22, {"demo", "dolly"}, ())
    assert load_recipe(folder / "recipe.yaml") == load_recipe(recipe)
    for text in (
        "Rows of the pool",
        "of response",
        "contamination  exact  near  not drawn",
        "boolq",
        "22 rows in pool.jsonl",
        "1 of 66 rows set aside",
    ):
        assert text in said.out

    again = command("pool", recipe, "-o", folder)
    assert again.code == 1
    assert "exists and is not an empty folder" in again.err
    assert command("pool", recipe, "-o", tmp_path / "second").code == 0
    for name in ("pool.jsonl", "removed.jsonl", "statistics.csv"):
        assert (tmp_path / "second" / name).read_bytes() == (folder / name).read_bytes()


def test_a_run_opens_the_rows_that_the_command_writes_and_lists_those_left_out(recipe, command, tmp_path):
    from tokenclean.cleaning.open_run import open_run
    from tokenclean.experiment.run import run

    folder = tmp_path / "built"
    assert command("pool", recipe, "-o", folder, "--set", "pool.max_rows=12").code == 0
    written = {row["id"] for row in read_lines(folder / "pool.jsonl")}
    assert len(written) == 12
    result = run(open_run(load_recipe(recipe, ["pool.max_rows=12", "pool.heldout.max_share=0.4"])))
    document = json.loads((result.folder / "result.json").read_text())
    assert {*document["training_rows"], *document["heldout_rows"]} == written
    assert document["counts"]["removed_rows"] == 43
    assert (result.folder / "removed.jsonl").read_bytes() == (folder / "removed.jsonl").read_bytes()


def test_too_many_unusable_rows_stop_it_and_are_listed_beside_the_folder(recipe, command, tmp_path):
    said = command("pool", recipe, "-o", tmp_path / "built", "--set", "pool.max_rejected_share=0")
    assert said.code == 2
    assert "1 of 66 rows cannot be used" in said.err
    assert not (tmp_path / "built").exists()
    assert [row["line"] for row in read_lines(tmp_path / "built.rejected.jsonl")] == [5]


def test_statistics_of_a_recipe_a_pool_and_a_table(recipe, command, tiny_model_folder, tmp_path):
    csv = tmp_path / "statistics.csv"
    of_recipe = command("inspect", recipe, "--statistics", "--csv", csv)
    assert of_recipe.code == 0, of_recipe.err
    assert "Statistics of the pool" in of_recipe.out
    assert "43 usable rows left out" in of_recipe.out
    assert "1 of 66 rows set aside" in of_recipe.out
    assert command("pool", recipe, "-o", tmp_path / "built").code == 0
    assert csv.read_bytes() == (tmp_path / "built" / "statistics.csv").read_bytes()

    pool = tmp_path / "built" / "pool.jsonl"
    of_pool = command("inspect", pool, "--model", tiny_model_folder, "--statistics", "--csv", csv)
    assert of_pool.code == 0, of_pool.err
    assert csv.read_bytes() == (tmp_path / "built" / "statistics.csv").read_bytes()
    lines = [line.split()[:2] for line in of_pool.out.splitlines() if line.strip().startswith(("demo", "dolly", "all"))]
    assert lines == [["demo", "20"], ["dolly", "2"], ["all", "22"]]

    table = tmp_path / "scores.parquet"
    assert command("score", pool, "--base", tiny_model_folder, "-o", table).code == 0
    of_table = command("inspect", table, "--model", tiny_model_folder, "--statistics")
    assert [line for line in of_table.out.splitlines() if "demo" in line] == [
        line for line in of_pool.out.splitlines() if "demo" in line
    ]


def test_samples_of_a_recipe_s_pool(recipe, command):
    said = command("inspect", recipe, "--rows", "1", "--set", "pool.sources.0.count=1")
    assert said.code == 0, said.err
    assert said.out.startswith("demo:")
    assert "⟦" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pool.jsonl"], "--model: missing; name the model whose tokenizer to use"),
        (["pool.jsonl", "--model", "m", "--csv", "x"], "--csv: only with --statistics"),
        (["pool.jsonl", "--model", "m", "--set", "a=b"], "--set: only with a recipe"),
        (["RECIPE", "--model", "m", "--max-length", "9"], "--model, --max-length: the recipe says it"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message, recipe, command):
    said = command("inspect", *(str(recipe) if word == "RECIPE" else word for word in arguments))
    assert said.code == 2
    assert message in said.err
