"""The examples run as their text says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_choose_tokens(small_pool: Path, tiny_model_folder: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    model.save_pretrained(tmp_path / "reference")
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path / "reference")
    script = Path(__file__).parents[1] / "examples" / "choose_tokens.py"
    command = [sys.executable, str(script), str(small_pool), str(tiny_model_folder), str(tmp_path / "reference")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    kept, total = (int(word.replace(",", "")) for word in result.stdout.split() if word[0].isdigit())
    assert kept == int(total * 0.6)
    rows = [json.loads(line) for line in (tmp_path / "cleaned.jsonl").read_text().splitlines()]
    assert sum(label != -100 for row in rows for label in row["labels"]) == kept
