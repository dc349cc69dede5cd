"""The examples run as their text says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenclean.token_table import read_table

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_choose_tokens(small_pool: Path, tiny_model_folder: Path, other_model_folder: Path, tmp_path: Path):
    script = EXAMPLES / "choose_tokens.py"
    command = [sys.executable, str(script), str(small_pool), str(tiny_model_folder), str(other_model_folder)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    kept, total = (int(word.replace(",", "")) for word in result.stdout.split() if word[0].isdigit())
    assert kept == int(total * 0.6)
    rows = [json.loads(line) for line in (tmp_path / "cleaned.jsonl").read_text().splitlines()]
    assert sum(label != -100 for row in rows for label in row["labels"]) == kept


@pytest.mark.slow
def test_own_strategies(small_pool: Path, tiny_model_folder: Path, tmp_path: Path):
    recipe = {
        "output": str(tmp_path),
        "pool": {"sources": [{"path": str(small_pool)}], "heldout": {"rows": 10}},
        "model": {"base": str(tiny_model_folder)},
        "cleaning": {"strategy": "own_strategy:hardest_tokens", "proportion": 0.5},
        "training": {"lora": {"rank": 4}},
        "evaluation": {"controls": ["own_strategy:last_tokens"]},
    }
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(EXAMPLES), os.environ.get("PYTHONPATH", "")))}
    for command in ("plan", "run"):
        line = [sys.executable, "-m", "tokenclean", command, str(tmp_path / "own.yaml")]
        subprocess.run(line, env=environment, capture_output=True, check=True)
    run = tmp_path / "run"
    results = next((run / "results").iterdir())
    export = [sys.executable, "-m", "tokenclean", "export", str(run), "--to", "trl", "-o", str(tmp_path / "exported")]
    subprocess.run(export, capture_output=True, check=True)
    hardest, last = (read_table(results / name / "kept.parquet") for name in ("hardest_tokens", "last_tokens"))
    response = hardest["is_response"].values
    assert hardest["is_kept"].values.sum() == response.sum() // 2
    scores = hardest["score"].values
    assert scores[hardest["is_kept"].values].min() >= scores[response & ~hardest["is_kept"].values].max()
    for labels, kept in zip(last["is_response"], last["is_kept"], strict=True):
        assert kept.sum() == (labels.sum() + 1) // 2
