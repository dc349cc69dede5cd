"""Completion in the shell: what the Tab key offers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenclean.cli.completion import complete_data, complete_override, complete_recipe, complete_strategies
from tokenclean.recipe import PRESETS, STRATEGIES

COMMAND = "import sys; sys.argv = ['tokenclean']; from tokenclean.cli.main import main; main()"


def offered(line: str) -> list[str]:
    """What bash is offered for the last word of the line."""
    words = line.split(" ")
    environment = {"_TOKENCLEAN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = subprocess.run(
        [sys.executable, "-c", COMMAND], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return result.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tokenclean sco", ["score"]),
        ("tokenclean run qu", ["quick"]),
        ("tokenclean score my.jsonl --prec", ["--precision"]),
        ("tokenclean score my.jsonl --precision ", ["exact", "safe", "fast"]),
        ("tokenclean view runs/quick --strategy fix", ["fixed_model"]),
        ("tokenclean compare quick --control fix", ["fixed_model"]),
        ("tokenclean sweep quick --over cleaning.prop", ["cleaning.proportion="]),
    ],
)
def test_bash_is_offered(line: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert offered(line) == expected


def test_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").touch()
    (tmp_path / "paper-mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert complete_recipe("") == [*PRESETS, "paper-mine.yaml", "recipes/mine.yaml"]
    assert complete_recipe("pap") == ["paper", "paper-mine.yaml"]
    assert complete_recipe("rec") == complete_recipe("recipes/") == ["recipes/mine.yaml"]
    assert complete_recipe("other") == []


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "my.jsonl").touch()
    (tmp_path / "quality.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert complete_data("") == [*PRESETS, "data", "quality.csv"]
    assert complete_data("qu") == ["quick", "quality.csv"]
    assert complete_data("da") == complete_data("data/") == ["data/my.jsonl"]
    assert complete_data("other") == []


def test_overrides():
    assert complete_override("pool.sources.0.pa") == ["pool.sources.0.path="]
    assert complete_override("cleaning.score_against=") == [
        "cleaning.score_against=base",
        "cleaning.score_against=previous",
    ]
    assert complete_override("cleaning.strategy=r") == [
        f"cleaning.strategy={n}" for n in ("random", "rho", "repetition")
    ]
    assert complete_override("training.shuffle=t") == ["training.shuffle=true"]
    assert complete_override("training.batch_size=") == []
    assert complete_override("no.such=") == []


def test_a_list_of_strategies():
    assert complete_strategies("") == list(STRATEGIES)
    assert complete_strategies("full_tokens,fi") == ["full_tokens,fixed_model"]
    assert "full_tokens,full_tokens" not in complete_strategies("full_tokens,full")
