"""WeightedSFTTrainer in two processes over gloo takes the step that one process takes on the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_step import StepResult, as_dicts, assert_same

from tokenclean.ragged import Ragged

pytest.importorskip("trl")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PROGRAM = Path(__file__).with_name("two_processes.py")


@pytest.mark.parametrize("accumulated", [1, 2])
def test_two_processes_take_one_process_s_step(
    make_model, tokenizer, own_step, weighted_rows, accumulated, tmp_path: Path
):
    """The weights of the two are far from equal, so a mean of their own weighted means would differ."""
    # Eight rows, without row 2, which has no weight: accelerate would fill the batches of nine by repeating some.
    ids, weights = (
        Ragged.from_rows([row for number, row in enumerate(column) if number != 2], column.values.dtype)
        for column in weighted_rows
    )
    weights = weights.with_values(weights.values * (1 + 9 * (weights.row_of_value() % 2)))
    model, rows = tmp_path / "model", tmp_path / "rows.json"
    make_model().save_pretrained(model)
    tokenizer.save_pretrained(model)
    rows.write_text(json.dumps(as_dicts(ids, weights)), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(PROGRAM), str(model), str(rows), str(tmp_path / "out"), str(accumulated)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = own_step(ids, weights)
    (loss, gradients), (other_loss, other_gradients) = (torch.load(tmp_path / f"out.{rank}.pt") for rank in (0, 1))
    plain = {name.removeprefix("module."): gradient for name, gradient in gradients.items()}
    # Each process scales its share by their number, since their gradients are averaged; so the mean is the step's loss.
    assert_same(StepResult((loss + other_loss) / 2, plain), expected)
    assert all(torch.equal(gradient, other_gradients[name]) for name, gradient in gradients.items())
