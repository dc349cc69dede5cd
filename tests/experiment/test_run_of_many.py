"""``torchrun -m tokenclean run``: several processes make what one makes, and go on from what a killed rank has left."""

from __future__ import annotations

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
import yaml
from safetensors.numpy import load_file

from tokenclean.cleaning.open_run import open_run
from tokenclean.experiment.run import run
from tokenclean.ragged import Ragged
from tokenclean.recipe import load_recipe
from tokenclean.selection import jaccard
from tokenclean.token_table import read_table

pytestmark = pytest.mark.slow

STRATEGIES = ("self_evolving", "fixed_model", "noise_mixture", "full_tokens")


def recipe_file(pool: Path, model: Path, output: Path) -> Path:
    values = {
        "name": "run",
        "output": str(output),
        "pool": {"sources": [{"path": str(pool)}], "max_rows": 60, "heldout": {"rows": 8}},
        "model": {"base": str(model), "device": "cpu"},
        "cleaning": {"splits": 3, "allow_weak_reference": True, "strategy": "self_evolving"},
        "scoring": {"precision": "exact"},
        "training": {
            "learning_rate": 1e-2,
            "batch_size": 8,
            "minimum_steps": 4,
            "precision": "exact",
            "checkpoint_minutes": 0,
            "lora": {"rank": 4, "dropout": 0},
        },
        "evaluation": {"controls": [name for name in STRATEGIES if name != "self_evolving"]},
    }
    path = output / "recipe.yaml"
    output.mkdir()
    path.write_text(yaml.safe_dump(values))
    return path


def start(recipe: Path) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tokenclean"]
    return subprocess.Popen(
        [sys.executable, *launcher, "run", str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results_in(recipe: Path) -> Path:
    (folder,) = (path for path in (recipe.parent / "run" / "results").iterdir() if not path.name.startswith("."))
    return folder


def kept_in(results: Path) -> dict[str, Ragged]:
    return {name: read_table(results / name / "kept.parquet")["is_kept"] for name in STRATEGIES}


def measured_in(results: Path) -> dict[str, float]:
    return {line["name"]: line["loss"] for line in json.loads((results / "result.json").read_text())["measured"]}


def model_in(results: Path) -> dict[str, np.ndarray]:
    return load_file(results / "self_evolving" / "model" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def together(small_pool, tiny_model_folder, tmp_path_factory) -> tuple[Path, str]:
    """The recipe of a run of two processes, and what it printed."""
    recipe = recipe_file(small_pool, tiny_model_folder, tmp_path_factory.mktemp("together") / "runs")
    out, err = (process := start(recipe)).communicate(timeout=300)
    assert process.returncode == 0, err
    return recipe, out


def test_two_processes_make_what_one_makes(together, small_pool, tiny_model_folder, tmp_path):
    alone = recipe_file(small_pool, tiny_model_folder, tmp_path / "runs")
    run(open_run(load_recipe(str(alone))))
    ours, theirs = results_in(together[0]), results_in(alone)
    for name, kept in kept_in(theirs).items():
        assert jaccard(kept, kept_in(ours)[name]) >= 0.99, name
    assert measured_in(ours) == pytest.approx(measured_in(theirs), abs=1e-3)


def test_the_first_process_alone_speaks(together):
    recipe, out = together
    assert out.count("Held-out loss (nats a response token") == 1
    assert out.count(f"results  {results_in(recipe)}"[:40]) == 1
    assert not list((recipe.parent / "run" / "stages").glob(".*"))


def test_a_killed_rank_is_gone_on_from_bit_equal(together, small_pool, tiny_model_folder, tmp_path):
    recipe = recipe_file(small_pool, tiny_model_folder, tmp_path / "runs")
    process = start(recipe)
    states: list[Any] = []
    deadline = time.monotonic() + 200
    while not states:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        states = list((recipe.parent / "run" / "checkpoints").glob("*/step-*"))
        time.sleep(0.002)
    os.kill(_rank_process(process.pid, 1), signal.SIGKILL)
    process.communicate(timeout=100)
    assert process.returncode != 0
    assert not list((recipe.parent / "run").glob("results/*"))

    _, err = (process := start(recipe)).communicate(timeout=300)
    assert process.returncode == 0, err
    found, expected = results_in(recipe), results_in(together[0])
    assert measured_in(found) == measured_in(expected)
    assert all(np.array_equal(model_in(found)[name], tensor) for name, tensor in model_in(expected).items())


def _rank_process(launcher: int, rank: int) -> int:
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no process of rank {rank} below {launcher}")
