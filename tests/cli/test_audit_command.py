"""``tokenclean audit`` as a user meets it: what it prints, its JSON, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenclean.tokens.audit import CHECKS

QUESTIONS = [("Why is the sky blue?", "Air scatters blue light."), ("What is 2 + 2?", "4"), ("Who?", "Nobody.")]
ALPACA = [{"instruction": question, "output": answer} for question, answer in QUESTIONS]


def write_lines(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def token_rows(tiny_model_folder) -> list[dict[str, list[int]]]:
    """The questions as a trainer's rows, under Tulu's template."""
    from tokenclean.models.loading.load import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_model_folder))
    rows = []
    for question, answer in QUESTIONS:
        prompt = tokenizer(f"<|user|>\n{question}\n<|assistant|>\n")["input_ids"]
        target = tokenizer(f"{answer}</s>")["input_ids"]
        rows.append({"input_ids": prompt + target, "labels": [-100] * len(prompt) + target})
    return rows


def test_a_fault_is_an_exit_code_of_1_and_its_example_is_marked(token_rows, tiny_model_folder, tmp_path):
    row = token_rows[1]
    row["labels"][-1] = -100
    data = write_lines(token_rows, tmp_path / "rows.jsonl")
    command = [sys.executable, "-m", "tokenclean", "audit", str(data), "--model", str(tiny_model_folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    said = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert said.returncode == 1, said.stderr
    assert said.stderr == ""
    assert "3 rows came tokenized, Tulu template" in said.stdout
    assert "error: eos_cut, 1 row" in said.stdout
    assert "⟦‹4›⟧‹</s>›" in said.stdout
    assert f"{data}:2" in said.stdout
    assert "remedy: append the end token" in said.stdout
    assert "Traceback" not in said.stdout


def test_sound_data_and_warnings_are_an_exit_code_of_0(command, token_rows, tiny_model_folder, tmp_path):
    said = command("audit", write_lines(token_rows, tmp_path / "a.jsonl"), "--model", tiny_model_folder)
    assert (said.code, said.err) == (0, "")
    assert "nothing found" in said.out
    pool = write_lines([*ALPACA, ALPACA[1], {"instruction": "a", "output": " "}], tmp_path / "b.jsonl")
    said = command("audit", pool, "--model", tiny_model_folder, "--max-rejected-share", 0.2)
    assert said.code == 0
    assert "warning: duplicated, 1 row" in said.out
    assert "warning: empty_answer, 1 row" in said.out
    assert "output: blank response" in said.out
    said = command("audit", pool, "--model", tiny_model_folder, "--max-rows", 3)
    assert "nothing found" in said.out
    assert command("audit", pool, "--model", tiny_model_folder).code == 2  # a run would refuse it


def test_only_what_was_found_is_listed_errors_first(command, tiny_model_folder, tmp_path):
    rows = [*ALPACA, ALPACA[1], {"instruction": "Think", "output": "So it is. </think> Yes."}]
    pool = write_lines(rows, tmp_path / "pool.jsonl")

    def audit_prints(*options: str) -> tuple[list[str], list[str]]:
        """The severities of the table's rows, and of the findings below it."""
        lines = command("audit", pool, "--model", tiny_model_folder, *options).out.splitlines()
        findings = [line.partition(":")[0] for line in lines if line.startswith(("error:", "warning:", "note:"))]
        return [line.split()[1] for line in lines if line.split()[:1] and line.split()[0] in CHECKS], findings

    listed, findings = audit_prints()
    assert listed == findings
    assert listed == sorted(listed, key=["error", "warning", "note"].index)
    assert {"error", "warning"} <= set(listed)
    said = command("audit", pool, "--model", tiny_model_folder).out
    assert f"\n{len(CHECKS) - len(listed)} checks found nothing (--details lists them)\n" in said
    everything, same = audit_prints("--details")
    assert (len(everything), same) == (len(CHECKS), findings)


def test_json_is_one_document(command, token_rows, tiny_model_folder, tmp_path):
    token_rows[0]["labels"] = [*token_rows[0]["labels"][1:], -100]
    data = write_lines(token_rows, tmp_path / "rows.jsonl")
    said = command("audit", data, "--model", tiny_model_folder, "--json", "--checks", "labels_shifted,eos_cut")
    assert said.code == 1
    report = json.loads(said.out)
    assert report["data"] == str(data)
    assert (report["rows"], report["tokenized"], report["has_errors"]) == (3, 3, True)
    assert [(result["name"], result["rows"]) for result in report["results"]] == [("eos_cut", 0), ("labels_shifted", 1)]
    (example,) = report["results"][1]["examples"]
    assert any(piece["is_trained"] for piece in example["pieces"])


def test_what_cannot_be_told_is_said(command, tiny_model_folder, tmp_path):
    rows = [{"input_ids": [5, 6, 7, 8, 0], "labels": [-100, -100, 7, 8, 0]}]
    said = command("audit", write_lines(rows, tmp_path / "rows.jsonl"), "--model", tiny_model_folder)
    assert said.code == 0
    assert "not judged: prompt_trained (1 row), " in said.out
    assert "no role marker of a known template" in said.out


def test_a_text_does_not_steer_the_terminal(command, tiny_model_folder, tmp_path):
    rows = [{"instruction": "a", "output": "b\x1b[31m</s>\nc"}]
    said = command("audit", write_lines(rows, tmp_path / "rows.jsonl"), "--model", tiny_model_folder)
    assert said.code == 1
    assert "\x1b" not in said.out
    assert "⟦‹</s>›⟧⟦↵c</s>⟧" in said.out


def test_bad_usage_is_an_exit_code_of_2(command, tiny_model_folder, tmp_path):
    pool = write_lines(ALPACA, tmp_path / "pool.jsonl")
    said = command("audit", pool, "--model", tiny_model_folder, "--checks", "eos_cutt")
    assert said.code == 2
    assert "did you mean eos_cut?" in said.err
    said = command("audit", tmp_path / "none.jsonl", "--model", tiny_model_folder)
    assert said.code == 2
    assert "no such file" in said.err
    said = command("audit", pool, "--model", tiny_model_folder, "--template", "tokenizer")
    assert said.code == 2
    assert "no chat template" in said.err
    assert command("audit", pool).code == 2
