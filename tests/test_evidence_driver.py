"""``evidence.run``: the pool that it makes, and cells that a kill leaves to be finished."""

from __future__ import annotations

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark_data import write_benchmarks

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # where pytest is not started with `python -m`
pool = importlib.import_module("evidence.pool")
run = importlib.import_module("evidence.run")
scales = importlib.import_module("evidence.scales")

pytestmark = pytest.mark.usefixtures("one_thread")

DIVIDE = 10**6  # the least of everything
SMALL = (
    *("training.lora.rank=2", "training.minimum_steps=2", "tokens.max_length=256", "scoring.precision=exact"),
    *("training.precision=exact", "evaluation.limit=2", "evaluation.limits={mmlu: 1}"),
)
WORDS = ("red", "green", "blue", "old", "new", "tall", "small", "warm")
CHANGING = ("seconds", "stages", "machine")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up rows of every source, ratings, pairs and benchmarks, in the layout of the data folder."""
    folder = tmp_path_factory.mktemp("evidence-data")
    for place in ("sft", "noise", "ratings"):
        (folder / place).mkdir()
    for number, (name, file) in enumerate(scales.SOURCES.items()):
        answer = "response" if name.startswith("gpteacher") else "output"
        rows = [
            {
                "instruction": f"What is {name} {n} like?",
                "input": "",
                answer: f"It is {WORDS[n % 8]}: {n * (number + 2)}.",
            }
            for n in range(70)
        ]
        rows += [rows[0], {"instruction": "Say nothing.", "input": "", answer: ""}]
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with (folder / scales.RATINGS).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["alpaca_index", *scales.RATERS])
        writer.writerows([n, n % 6, (n + 1) % 6, n % 5] for n in range(72))
    pairs = [
        {
            "id": f"p{n}",
            "prompt": f"Pair {n}?",
            "response": f"It is bad {n}.",
            "clean": f"It is good {n}.",
            "noise": [[6, 9, "x"]],
        }
        for n in range(12)
    ]
    (folder / pool.PAIRS).write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    (folder / pool.PAIRED_ROWS).write_text("id,alpaca_row\np0,5\np1,6\n")
    write_benchmarks(folder / "eval")
    return folder


@pytest.fixture(scope="module")
def output(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pools of both scales; random vectors stand in for the embedding model, and the transition
    matrix, of which nothing here asks that it be exact, is searched for in fewer steps."""
    from tokenclean.ds2 import curated_pool, transition_matrix

    folder = tmp_path_factory.mktemp("evidence-output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transition_matrix, "STEPS", 50)
        patch.setattr(curated_pool, "embedding_weights", lambda name: name)
        patch.setattr(
            curated_pool,
            "embed",
            lambda texts, *_, **__: np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32),
        )
        for scale in scales.SCALES.values():
            pool.find_pool(scale.divided(DIVIDE), data, folder, "made up")
    return folder


def test_the_pool_has_its_rows_once(data, output):
    scale = scales.CPU.divided(DIVIDE)
    found = pool.find_pool(scale, None, output)
    parts = {name: found.pool(name) for name in ("training", "heldout", "trusted")}
    assert [len(part) for part in parts.values()] == [40, 50, 6]
    prompts = [row.turns[0].content for part in parts.values() for row in part]
    assert len(set(prompts)) == len(prompts) == 96
    assert {row.source for row in parts["trusted"]} == {scales.CHECKED}
    assert [row.source for row in parts["heldout"]] == [name for name in scales.SOURCES for _ in range(10)]
    rated = pool.stored_ratings(found, parts["training"])
    best = [parts["training"][row].source for row in rated.selection(scale.best_rated)]
    assert best == [scales.RATED] * 5
    labels = dict(zip((row.source for row in parts["training"]), rated.labels.tolist(), strict=True))
    assert {label for source, label in labels.items() if source != scales.RATED} == {pool.UNRATED}
    assert not {f"What is alpaca {n} like?" for n in (5, 6)} & set(prompts)  # these are among the pairs
    assert len((found.folder / "pairs.jsonl").read_text().splitlines()) == 8


def test_without_a_pool_the_data_folder_is_asked_for(tmp_path):
    with pytest.raises(SystemExit, match="name the folder with sft/ and ratings/ with --data"):
        pool.find_pool(scales.CPU, None, tmp_path)


def test_too_few_rows_are_named(data, tmp_path):
    with pytest.raises(SystemExit, match=r"alpaca\.jsonl: 68 usable rows of different prompts, 2,500 needed"):
        pool.find_pool(scales.CPU, data, tmp_path)


def test_a_cell_without_its_model_is_named(output, data, tmp_path, capsys):
    arguments = run.read_arguments(["--divide", str(DIVIDE), "--output", str(output), "--results", str(tmp_path)])
    setup = run.setup_of(arguments)
    cells = importlib.import_module("evidence.setup").chosen(
        importlib.import_module("evidence.cells").all_cells(setup.scale), "gemma-none-s42,smollm2-rho-k0.6-larger-s42"
    )
    assert run.finish(cells, setup, tmp_path) == []
    said = capsys.readouterr().out
    assert "skipped gemma-none-s42: no model: give its folder with --gemma" in said
    assert "skipped smollm2-rho-k0.6-larger-s42: no larger model of the same tokenizer" in said


def test_a_cell_that_fails_leaves_the_others(output, tmp_path, monkeypatch, capsys):
    from tokenclean.errors import ModelError

    def measured(function, cell, setup):
        if cell.strategy == "none":
            raise ModelError("no weights")
        return {"seconds": 1.0}

    monkeypatch.setattr(run.machine, "in_fresh_process", measured)
    setup = run.setup_of(
        run.read_arguments(["--divide", str(DIVIDE), "--output", str(output), "--results", str(tmp_path)])
    )
    two = importlib.import_module("evidence.cells").all_cells(setup.scale)[0:5:4]
    with pytest.raises(SystemExit, match="1 of 2 cells failed, for the reasons above: smollm2-none-s42"):
        run.finish(two, setup, tmp_path)
    assert "failed smollm2-none-s42: no weights" in capsys.readouterr().out
    assert set(documents(tmp_path)) == {"pool", "smollm2-full_tokens-s42"}


@pytest.mark.parametrize("words", [["--divide", "5"], ["--set", "seed=1"]])
def test_a_smoke_test_does_not_write_into_the_committed_results(words):
    with pytest.raises(SystemExit):
        run.read_arguments(words)


def command(output: Path, results: Path, data: Path, model: Path, cells: str, scale: str = "cpu") -> list[str]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    return [
        *(sys.executable, "-m", "evidence.run", "--data", str(data), "--scale", scale, "--divide", str(DIVIDE)),
        *("--smollm2", str(model), "--output", str(output), "--results", str(results), "--cells", cells, *settings),
    ]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}


def documents(folder: Path) -> dict[str, Any]:
    """The finished cells without what differs from run to run."""
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*/*.json")}
    return {name: {k: v for k, v in one.items() if k not in CHANGING} for name, one in found.items()}


@pytest.mark.slow
def test_killed_and_resumed_cells_are_the_same(data, output, tiny_model_folder, tmp_path):
    import shutil

    names = (
        "smollm2-full_tokens-s42,smollm2-self_evolving-k0.6-s42-train,smollm2-self_evolving-k0.6-s42,smollm2-auto-s42"
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    places = {}
    for results in (whole, killed):
        places[results] = tmp_path / f"output-{results.name}"
        shutil.copytree(output, places[results])
    words = {results: command(places[results], results, data, tiny_model_folder, names) for results in (whole, killed)}
    subprocess.run(words[whole], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    process = subprocess.Popen(words[killed], cwd=ROOT, env=ENVIRONMENT, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(places[killed].glob("smollm2-cpu/stages/*/manifest.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(documents(killed)) < len(names.split(",")) + 1
    subprocess.run(words[killed], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert documents(killed) == documents(whole)
    found = documents(whole)
    assert len(found["smollm2-self_evolving-k0.6-s42"]["rounds"]) == 5
    assert len(importlib.import_module("evidence.arrays").unpack(found["smollm2-auto-s42"]["heldout"]["rows"])) == 25
    results = importlib.import_module("evidence.results_files").read_results(whole)["cpu"]
    text = importlib.import_module("evidence.reading").reading(results)
    assert "Self-evolving cleaning beats full tokens (§6.2): **not measured yet**" not in text


@pytest.mark.slow
def test_a_part_of_the_large_scale_runs_alone(data, output, tiny_model_folder, tmp_path):
    options = command(output, tmp_path, data, tiny_model_folder, "x", "gpu")
    options = options[: options.index("--cells")] + options[options.index("--cells") + 2 :]
    said = subprocess.run(options, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    lines = said.splitlines()
    parts = [line for line in lines if line.startswith("python -m evidence.run ")]
    assert parts
    assert len([line for line in lines if line.startswith("# part ")]) == len(parts)
    assert "# left out gemma-none-s42: no model" in said
    assert "--scale gpu" in parts[0]
    one = command(
        output, tmp_path, data, tiny_model_folder, "smollm2-rho-k0.6-s42,smollm2-rho-k0.6-s42-reasoning", "gpu"
    )
    subprocess.run(one, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    found = documents(tmp_path)
    assert set(found["smollm2-rho-k0.6-s42-reasoning"]["benchmarks"]) == {
        *("arc_challenge", "arc_easy", "hellaswag", "logiqa")
    }
    assert found["smollm2-rho-k0.6-s42"]["kept_share"] == pytest.approx(0.6, abs=0.05)
