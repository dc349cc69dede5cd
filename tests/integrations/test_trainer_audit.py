"""The audit of what a trainer would train: each trap on purpose, through the trainer's own data code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenclean.errors import PoolError, RecipeError
from tokenclean.integrations.trainer_audit import audit_trainer
from tokenclean.integrations.trainer_rows import TRAINERS

pytest.importorskip("trl")
pytest.importorskip("datasets")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

QUESTIONS = [("Why is the sky blue?", "Air scatters blue light."), ("What is 2 + 2?", "4"), ("Who?", "Nobody, " * 20)]
PAIRS = [{"prompt": f"<|user|>\n{question}\n<|assistant|>\n", "completion": answer} for question, answer in QUESTIONS]


@pytest.fixture
def audit(tiny_model_folder: Path, tmp_path: Path) -> Callable[..., dict[str, int]]:
    """A function that audits rows as a trainer trains them: check -> rows."""
    from transformers import AutoTokenizer

    def run(trainer: str, rows: list[dict[str, Any]], **options: Any) -> dict[str, int]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
        options = {"max_length": None, "packing": None, "max_rows": None} | options
        return audit_trainer(TRAINERS[trainer](path, tokenizer, **options), tokenizer, path).counts

    return run


@pytest.fixture
def token_rows(tiny_model_folder: Path) -> list[dict[str, list[int]]]:
    """The questions as ids and labels under Tulu's template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    rows = []
    for pair in PAIRS:
        prompt, answer = (tokenizer(text)["input_ids"] for text in (pair["prompt"], pair["completion"] + "</s>"))
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


@pytest.mark.parametrize("packing", [None, "bfd"])
def test_sound_rows_have_no_finding(audit, token_rows, packing):
    assert audit("trl", token_rows, packing=packing) == {}
    assert audit("trl", PAIRS, packing=packing) == {}
    assert audit("transformers", token_rows) == {}


def test_text_is_trained_with_its_prompt(audit):
    assert audit("trl", [{"text": pair["prompt"] + pair["completion"]} for pair in PAIRS]) == {"prompt_trained": 3}


def test_end_tokens_are_masked_where_padding_is_the_same_id(audit, token_rows):
    ids = [{"input_ids": row["input_ids"]} for row in token_rows]
    assert audit("transformers", ids) == {"prompt_trained": 3, "eos_cut": 3, "target_masked": 3}


@pytest.mark.parametrize("packing", [None, "bfd"])
def test_rows_cut_and_left_out_at_the_maximum_length(audit, token_rows, packing):
    longest = max(len(row["input_ids"]) for row in token_rows)
    found = audit("trl", token_rows, max_length=longest - 5, packing=packing)
    assert found == {"row_cut": 1, "truncated": 1}
    assert audit("transformers", token_rows, max_length=longest - 5) == {"row_cut": 1, "truncated": 1}
    prompts = [row["labels"].count(-100) for row in token_rows]
    found = audit("trl", token_rows, max_length=max(prompts))
    assert found["row_dropped"] == prompts.count(max(prompts))


def test_the_trainer_s_own_maximum_length_is_the_default(audit, token_rows):
    long = {name: values[:-1] * 30 + values[-1:] for name, values in token_rows[2].items()}
    assert len(long["input_ids"]) > 1024
    assert audit("trl", [long, *token_rows])["row_cut"] == 1


def test_wrapped_packs_have_no_boundaries(audit, token_rows):
    assert audit("trl", token_rows, max_length=40, packing="wrapped")["rows_joined"] > 1


def test_a_masked_beginning_of_an_answer_is_found(audit, token_rows):
    for row in token_rows:
        row["labels"][row["labels"].count(-100)] = -100
    assert audit("trl", token_rows).get("boundary_drift", 0) >= 2


def test_what_no_trainer_reads_is_refused(audit, tmp_path):
    with pytest.raises(PoolError, match=r"row 0: found question; expected input_ids, messages or text"):
        audit("transformers", [{"question": "a"}])
    with pytest.raises(RecipeError, match="found 'best', expected TRL's bfd or wrapped"):
        audit("trl", PAIRS, packing="best")
    with pytest.raises(RecipeError, match="Trainer has none"):
        audit("transformers", PAIRS, packing="bfd")
    with pytest.raises(PoolError, match="takes one file"):
        TRAINERS["trl"](tmp_path, None, max_length=None, packing=None, max_rows=None)


@pytest.mark.slow
def test_the_command(token_rows, tiny_model_folder, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"input_ids": row["input_ids"]}) + "\n" for row in token_rows))

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tokenclean", "audit", str(data), "--model", str(tiny_model_folder), *options]
        environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)

    said = run("--trainer", "transformers")
    assert said.returncode == 1, said.stderr
    assert "as transformers" in said.stderr
    assert "error: target_masked, 3 rows" in said.stdout
    assert "remedy: give the tokenizer a pad token of its own" in said.stdout
    said = run("--trainer", "trl", "--json")
    assert said.returncode == 1, said.stderr
    report = json.loads(said.stdout)
    assert report["trainer"] == "trl"
    assert "row_cut" in [result["name"] for result in report["results"]]
    said = run("--trainer", "trl", "--template", "tulu")
    assert said.returncode == 2
    assert "leave out: template" in said.stderr
    assert "expected one of trl, transformers" in run("--trainer", "torchtune").stderr
    assert "expected --trainer with it" in run("--packing", "bfd").stderr
