"""Every command that reads a pool judges it alike, says why in the same words, and takes the same options."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tokenclean.token_table import read_table

COMMANDS = ("inspect", "audit", "score", "plan", "run", "pool")
QUESTION = {"role": "user", "content": "Why?"}


def chat(number: int, **more: Any) -> dict[str, Any]:
    return {"messages": [QUESTION, {"role": "assistant", "content": f"Because {number}."}], **more}


@pytest.fixture
def judge(command, tiny_model_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run one command on rows, with options for reading them."""

    def run(name: str, rows: Sequence[Any] | str, *options: str, suffix: str = ".jsonl") -> Any:
        data = tmp_path / f"rows{suffix}"
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        data.write_text(text, encoding="utf-8")
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            json.dumps(
                {
                    "output": str(tmp_path),
                    "pool": {"sources": [{"path": str(data)}], "heldout": {"rows": 2}},
                    "model": {"base": str(tiny_model_folder), "device": "cpu"},
                    "cleaning": {"strategy": "full_tokens", "splits": 2},
                    "training": {"lora": {"rank": 1}, "batch_size": 8},
                }
            )
        )
        model = str(tiny_model_folder)
        arguments = {
            "inspect": ["inspect", data, "--model", model],
            "audit": ["audit", data, "--model", model],
            "score": ["score", data, "--base", model, "-o", tmp_path / "scores.parquet", "--device", "cpu"],
            "plan": ["plan", recipe],
            "run": ["run", recipe],
            "pool": ["pool", recipe, "-o", tmp_path / "built"],
        }[name]
        return command(*arguments, *options)

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_too_many_rows_at_fault_are_refused_with_the_reason_and_the_option_that_helps(judge, name):
    rows = [chat(n) for n in range(20)] + [{"question": f"Why {n}?", "answer": "So."} for n in range(4)]
    said = judge(name, rows)
    assert said.code == 2
    everything = said.out + said.err
    assert "4 of 24 rows cannot be used (16.7%)" in everything
    assert "4 × keys fit no format: found 'question', 'answer' (first: " in everything
    assert "--column instruction=question --column output=answer" in everything


@pytest.mark.parametrize("name", COMMANDS)
def test_rows_that_leave_nothing_to_train_are_refused_alike(judge, name):
    rows = [{"messages": [QUESTION, {"role": "assistant", "content": "x", "train": False}]}] * 8
    said = judge(name, rows)
    assert said.code == 2
    assert "every assistant turn is marked as not trained" in said.out + said.err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "run"])
def test_keys_not_used_and_what_was_done_are_told(judge, name):
    rows = [chat(n, score=n, id=f"row-{n}") for n in range(20)]
    rows[3]["messages"].insert(0, {"role": "assistant", "content": "Hello!"})
    said = judge(name, rows)
    assert said.code == 0, said
    assert "not used in rows: score (20 rows)" in said.out + said.err
    assert "1 row: chat that begins with the assistant" in said.out + said.err


def test_a_run_tells_it_and_keeps_it_in_its_results(judge, tmp_path):
    rows = [chat(n, score=n, id=f"row-{n}") for n in range(20)]
    rows[2]["messages"][1]["weight"] = 0.5
    said = judge("run", rows)
    assert said.code == 0, said
    assert "not used in rows: score (20 rows)" in said.err
    (result,) = (tmp_path / "run" / "results").glob("*/result.json")
    intake = json.loads(result.read_text())["intake"]
    assert intake["keys_not_used"] == {"rows": {"score": 20}}
    assert (intake["rows"], intake["rows_set_aside"], intake["weighted_rows"]) == (20, 0, 1)
    kept = read_table(result.parent / "full_tokens" / "kept.parquet")
    assert set(kept.original_ids) <= {f"row-{n}" for n in range(20)}
    assert len(kept.original_ids) == 18


@pytest.mark.parametrize("name", COMMANDS[:-2])
def test_every_command_takes_the_options_for_reading(judge, name):
    cells = "frage;antwort\n" + "".join(f"Was ist {n}?;Eine Zahl, {n}.\n" for n in range(20))
    mapped = ("--column", "instruction=frage", "--column", "output=antwort")
    assert judge(name, cells, "--delimiter", ";", *mapped, suffix=".csv").code == 0
    assert "--delimiter ';'" in judge(name, cells, *mapped, suffix=".csv").err
    spoken = [
        {"messages": [{"role": "boss", "content": "Why?"}, {"role": "bot", "content": f"So {n}."}]} for n in range(20)
    ]
    assert judge(name, spoken, "--role", "boss=user").code == 0
    labelled = [chat(n, label=n % 2 == 0, images=["x.png"]) for n in range(20)]
    assert judge(name, labelled, "--preferences", "chosen", "--ignore", "images").code == 0
    assert judge(name, labelled, "--preferences", "chosen").code == 2
    literals = "messages\n" + "".join(f'"{chat(n)["messages"]!r}"\n' for n in range(20))
    assert judge(name, literals, "--python-literals", suffix=".csv").code == 0


def test_weights_and_ids_come_through_score_and_select(judge, command, tmp_path):
    rows = [chat(n, id=n) for n in range(4)]
    rows[1]["messages"][1]["loss_weight"] = 0.25
    assert judge("score", rows).code == 0
    table = read_table(tmp_path / "scores.parquet")
    assert table.original_ids == ("0", "1", "2", "3")
    assert set(table["loss_weight"][1][table["is_response"][1]].tolist()) == {0.25}
    assert set(table["loss_weight"][0][table["is_response"][0]].tolist()) == {1.0}


def test_a_reference_that_is_the_base_is_refused(judge, tiny_model_folder):
    said = judge("score", [chat(n) for n in range(4)], "--reference", str(tiny_model_folder))
    assert said.code == 2
    assert "the reference is the base itself" in said.err
