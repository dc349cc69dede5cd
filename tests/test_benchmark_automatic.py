"""``benchmarks.automatic``: which cases there are, what is not measured again, and what the verdict says."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # where pytest is not started with `python -m`
automatic = importlib.import_module("benchmarks.automatic")

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    *("training.lora.rank=2", "training.minimum_steps=2", "pool.heldout.rows=40", "pool.heldout.max_share=0.5"),
    "scoring.precision=exact",
)
WORDS = ("red", "green", "blue", "old", "new", "tall", "small", "warm")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up rows, no two of which are alike, in place of each pool's."""
    folder = tmp_path_factory.mktemp("clean-data")
    for file in automatic.POOLS.values():
        rows = [
            {
                "instruction": f"What is number {n} like?",
                "input": "",
                "output": f"It is {WORDS[n % 8]}, {WORDS[n // 8 % 8]} and {WORDS[n * 5 % 8]}: {n * n}.",
            }
            for n in range(120)
        ]
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_a_case_is_what_the_command_does_by_itself(data, tmp_path):
    recipe = automatic.recipe_of(automatic.Case("dolly", 90, 7), data, tmp_path, "org/model")
    assert (recipe.cleaning.strategy, recipe.evaluation.controls) == ("auto", ("full_tokens",))
    assert (recipe.seed, recipe.pool.max_rows, recipe.name) == (7, 90, "dolly-90-s7")
    assert recipe.pool.sources[0].place == str(data / "sft/dolly.jsonl")


@pytest.mark.slow
def test_cases_are_measured_once_and_listed(data, tiny_model_folder, tmp_path, monkeypatch):
    cases = [automatic.Case("alpaca", 110, 0)]
    arguments = (cases, data, tmp_path, str(tiny_model_folder), SMALL)
    [document] = automatic.finish_cases(*arguments)
    assert document["reported_rows"] == 20
    assert document["training_rows"] == 70
    assert document["choice"]["cost"] <= 2.5
    assert document["choice"]["trials"]
    assert document["difference"]["high"] <= 0.005 or not document["holds"]

    monkeypatch.setattr(automatic, "measure_case", lambda *_: pytest.fail("measured again"))
    assert automatic.finish_cases(*arguments) == [document]
    with pytest.raises(SystemExit, match="give another --output"):
        automatic.finish_cases(cases, data, tmp_path, "demo", SMALL)


def case(name: str, high: float) -> dict[str, Any]:
    return {
        "case": {"name": name},
        "reported_rows": 50,
        "choice": {
            "noise": 0.0123,
            "trials": [{"name": "repetition", "difference": 0.01}, {"name": "noise_mixture", "difference": None}],
            "chosen": "repetition",
            "cost": 2.4,
        },
        "difference": {"difference": high - 0.002, "low": high - 0.004, "high": high},
        "holds": high <= automatic.BOUND_NATS,
    }


def test_every_case_is_listed_and_the_verdict_names_those_that_fail():
    good, bad = case("alpaca-1000-s42", 0.005), case("dolly-1000-s42", 0.0051)
    table = automatic.case_table([good, bad], markdown=True)
    assert "| alpaca-1000-s42 | 1.23% | repetition +0.0100, noise_mixture no finite loss | repetition |" in table
    assert table.count("yes") == table.count("NO") == 1
    assert automatic.verdict([good]) == "The bound of 0.005 nats holds in all 1 cases."
    assert automatic.verdict([good, bad]).endswith("does not hold in 1 of 2 cases: dolly-1000-s42")
