"""The cost of large pools: by hand for a model of round numbers, and from the command line."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
scale = importlib.import_module("benchmarks.scale")


def test_costs_by_hand():
    size = scale.ModelSize(body=1000, head=100, total=1200, lora=50, attention=10)
    cost = scale.cost_of(size, 10**6, 100, 0.5)
    rows = 20_000
    a_pass = 2 * 1000 * 100 + 2 * 100 * 50 + 2 * 10 * 100**2
    assert cost.scoring_flop == 2 * rows * a_pass
    # Forward and the backward pass to the inputs; the head's products once more; the LoRA's own three.
    assert cost.training_flop == rows * (2 * a_pass + 2 * 100 * 50 + 6 * 50 * 100)
    assert cost.weights_bytes == 2400
    assert cost.read_bytes == 2 * rows * 100 * 4
    assert cost.shards == 2 * 8  # 2,000,000 tokens in shards of 262,144
    assert cost.losses_bytes == pytest.approx(2 * 10**6 * scale.stored_bytes(100, 0.5))


def test_a_stored_loss_takes_about_its_float():
    assert 3 < scale.stored_bytes(500, 0.1) < 4.5
    assert 3 < scale.stored_bytes(500, 0.9) < 4.5


def test_the_llamas_have_their_known_sizes():
    sizes = scale.sizes(("8b", "70b"))
    assert sizes["8b"].total == pytest.approx(8.03e9, rel=1e-3)
    assert sizes["70b"].total == pytest.approx(70.55e9, rel=1e-3)


@pytest.mark.slow
def test_from_the_command_line(tmp_path):
    file = tmp_path / "scale.json"
    command = [sys.executable, "-m", "benchmarks.scale", "--gpus", "8xH100", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    cells = json.loads(file.read_text())["cells"]
    assert [(cell["model"], cell["response_tokens"]) for cell in cells] == [
        (name, tokens) for name in ("8b", "70b") for tokens in (10**9, 10**10, 10**11)
    ]
    assert cells[1]["passes_s"] == pytest.approx(10 * cells[0]["passes_s"])
    assert "time on 8 × H100" in done.stdout
