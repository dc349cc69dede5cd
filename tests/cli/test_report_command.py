"""``tokenclean report``: what it finds, writes and says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenclean.store import Store


def results_of(run: Path) -> Path:
    return run / "results" / (run / "latest").read_text(encoding="utf-8").strip()


@pytest.mark.slow
def test_a_report_is_written_as_a_process(finished_run, tmp_path):
    command = [sys.executable, "-m", "tokenclean", "report", str(finished_run), "--figures", "figures"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("small-report.html: ")
    page = (tmp_path / "small-report.html").read_text(encoding="utf-8")
    for heading in ("What was run", "The pool", "Results", "Scores and cuts", "What was kept", "Tokens that stand out"):
        assert f">{heading}</h2>" in page
    assert "Sweeps" not in page
    assert str(json.loads((results_of(finished_run) / "result.json").read_text())["counts"]["training_rows"]) in page
    assert (tmp_path / "figures" / "scores-fixed-model.svg").is_file()
    assert (tmp_path / "figures" / "table-1.tex").is_file()


def test_runs_stand_side_by_side(command, run_folder, tmp_path):
    one, other = run_folder("one"), run_folder("other")
    said = command("report", one, other, "-o", tmp_path / "both.html")
    assert (said.code, said.err) == (0, "")
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Held-out loss, run beside run" in page
    assert "Overlap of the kept sets between runs" in page
    assert "all runs have the same held-out rows" in page
    assert "The runs have the same recipe." in page
    assert "one: fixed_model" in page


@pytest.mark.slow
def test_runs_of_any_name_have_files_of_their_own(command, run_folder, tmp_path):
    said = command(
        "report",
        run_folder("模型一"),
        run_folder("模型二"),
        "-o",
        tmp_path / "a.html",
        "--figures",
        tmp_path / "figures",
    )
    assert (said.code, said.err) == (0, "")
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"scores-1-fixed-model.svg", "scores-2-fixed-model.svg", "table-1-1.csv", "table-2-1.csv"} <= written
    ids = re.findall(r' id="([^"]+)"', (tmp_path / "a.html").read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_folders_of_the_same_name_are_told_apart(command, finished_run, tmp_path):
    said = command("report", finished_run, results_of(finished_run), "-o", tmp_path / "a.html")
    assert said.code == 0
    twice = command("report", finished_run, finished_run, "-o", tmp_path / "b.html")
    assert twice.code == 1
    assert "is given twice" in twice.err


def test_the_strategies_shown_can_be_chosen(command, finished_run, tmp_path):
    said = command("report", finished_run, "--strategies", "fixed_model", "-o", tmp_path / "a.html")
    assert said.code == 0
    said = command("report", finished_run, "--strategies", "rho,random")
    assert said.code == 2
    assert "no run has random, rho; they have fixed_model, full_tokens" in " ".join(said.err.split())


def test_without_the_tokenizer_no_token_is_shown(command, run_folder, tmp_path, monkeypatch):
    from tokenclean.errors import ModelError
    from tokenclean.experiment.finished import viewer_tables as pages

    def gone(name, revision, trusted):
        raise ModelError("there is no such model")

    monkeypatch.setattr(pages, "load_decoder", gone)
    said = command("report", run_folder("run"), "-o", tmp_path / "a.html")
    assert said.code == 0
    assert "token examples omitted: could not load the tokenizer (--model names another)" in " ".join(said.err.split())
    assert "Tokens that stand out" not in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert command("report", run_folder("again"), "--model", "none").code != 0


def test_what_is_no_run_is_told(command, run_folder, tmp_path):
    said = command("report", tmp_path / "nowhere")
    assert said.code == 1
    assert "nowhere: no such run folder" in said.err
    (tmp_path / "empty").mkdir()
    assert "holds no results; `tokenclean run`" in " ".join(command("report", tmp_path / "empty").err.split())
    run = run_folder("damaged")
    stage = next((run / "stages").iterdir())
    assert "is a stage (" in " ".join(command("report", stage).err.split())
    (results_of(run) / "table.md").write_text("something else")
    assert "failed its integrity check: table.md" in " ".join(command("report", run).err.split())


def test_results_of_an_earlier_version_say_how_to_go_on(command, tmp_path):
    store = Store(tmp_path / "old")

    def make(folder: Path) -> dict:
        (folder / "recipe.yaml").write_text("name: old\n")
        (folder / "comparison.json").write_text(json.dumps({"sentences": []}))
        (folder / "values.csv").write_text("task,difference\n")
        return {"what": "an old comparison"}

    store.stage("comparison", 1, {}, make)
    said = command("report", tmp_path / "old")
    assert said.code == 1
    assert "has no tables.json, which earlier versions did not write; run the recipe again" in " ".join(
        said.err.split()
    )


@pytest.mark.slow
def test_a_comparison_and_a_sweep_are_told(tiny_model_folder, small_pool, data_dir, tmp_path, command):
    from tokenclean.cleaning.open_run import open_run
    from tokenclean.experiment.comparing.compare import compare
    from tokenclean.experiment.comparing.sweep import sweep
    from tokenclean.recipe import recipe_from

    values = {
        "name": "both",
        "output": str(tmp_path),
        "pool": {"sources": [{"path": str(small_pool)}], "max_rows": 30, "heldout": {"rows": 6}},
        "model": {"base": str(tiny_model_folder), "device": "cpu"},
        "cleaning": {"strategy": "random", "splits": 2, "allow_weak_reference": True},
        "training": {"learning_rate": 1e-2, "batch_size": 8, "lora": {"rank": 2}},
        "evaluation": {"controls": [], "tasks": ["boolq"], "data_dir": str(data_dir), "samples": 1, "sample_tokens": 3},
    }
    recipe = recipe_from(values)
    store = Store(recipe.folder)
    compare(recipe, ["full_tokens", "random"], [0], lambda r: open_run(r, store=store))
    cells = {(f"cleaning.proportion={k}",): recipe_from(values, [f"cleaning.proportion={k}"]) for k in ("0.4", "0.8")}
    sweep(cells, lambda r: open_run(r, store=store))
    said = command("report", recipe.folder, "-o", tmp_path / "report.html")
    assert said.code == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Score × 100, ± its standard error" in page
    assert "Held-out loss is lowest at proportion=" in page
    assert "Cells of the sweep" in page
    assert "Scores and cuts" not in page
