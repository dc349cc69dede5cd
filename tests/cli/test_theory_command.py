"""``tokenclean theory``: what it prints, what it refuses, and which libraries it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tokenclean.theory import CorollaryCheck, data_quality, error_bound

RATES = ("--tokens", "1e4", "--noise-before", "0.3", "--noise-after", "0.1", "--kept", "0.7")


def rates(tokens: float, before: float, after: float, kept: float) -> list[object]:
    return ["--tokens", tokens, "--noise-before", before, "--noise-after", after, "--kept", kept]


def cells(text: str) -> dict[str, list[str]]:
    """Columns of the table's lines after their names."""
    names = ("error bound", "margin, the first minus the second", "least M", "break-even kept share")
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith(names)]
    return {line.split("  ")[0]: line.split("  ", 1)[1].split() for line in lines if "  " in line}


def test_the_table_is_the_module_s(command):
    said = command("theory", *rates(1e4, 0.3, 0.28, 0.5), "--delta", 0.1, "--log-class-size", 50)
    assert (said.code, said.err) == (0, "")
    two = CorollaryCheck(0.3, 0.28, 0.5, 1e4, 0.1)
    checks = (two, replace(two, log_class_size=50))
    expected = {
        "error bound, 10,000 full tokens": [f"{error_bound(0.3, 1e4, 0.1, c.log_class_size):.4f}" for c in checks],
        "error bound, 5,000 kept tokens": [f"{error_bound(0.28, 5e3, 0.1, c.log_class_size):.4f}" for c in checks],
        "margin, the first minus the second": [f"{check.margin:+.4f}" for check in checks],
        "least M": [f"{int(check.least_tokens) + 1:,}" for check in checks],
        "break-even kept share": [f"{check.break_even_kept_share:.1%}" for check in checks],
    }
    assert cells(said.out) == expected
    assert "Eq. 6 holds: cleaning removes 0.0200 of noise and pays" in said.out
    assert "(with probability at least 80%)" in said.out
    assert "Eq. 6 with log|F| = 50 does not hold" in said.out
    quality = data_quality(0.3, 0.28, 0.5)
    honest = replace(two, eta_cleaned=quality).margin
    assert f"{quality:.1%} here; with that the margin of Eq. 6 is {honest:+.4f}" in said.out


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((500, 0.3, 0.28, 0.45), ["Eq. 6 does not hold: cleaning removes 0.0200 of noise", "from M = 5,276 on, or"]),
        ((500, 0.1, 0.38, 0.6), ["Eq. 6 does not hold: cleaning adds 0.2800", "No number of tokens changes that."]),
        ((500, 0.3, 0.3, 1), ["Eq. 6 holds: cleaning removes 0.0000 of noise and pays 0.0000"]),
        ((2000, 0.3, 0.299, 0.7), ["from a kept share of 97.0% on.", "margin of Eq. 6 is"]),
        ((500, 0.3, 0.2, 0.25), ["No labels have these three rates", "η̂ lies between 45.0% and 95.0%"]),
        ((5, 0.3, 0.2, 0.65), ["An error bound of 1 or more says nothing"]),
        ((500, 0.3, 0.1, 0.7), ["What the proof leaves out", "a lower bound is not yet a lower error"]),
    ],
)
def test_it_says_so_in_plain_words(command, numbers, words):
    said = command("theory", *rates(*numbers))
    assert said.code == 0
    for word in words:
        assert word in said.out


def test_a_share_that_no_labels_reach(command):
    """With 70 % valid tokens and 10 % wrong labels between 60 and 80 % are kept."""
    said = command("theory", *rates(1e6, 0.3, 0.1, 0.7), "--log-class-size", 7.8e7)
    assert "from a kept share of 96.9% on (which no labels with this noise reach)" in said.out


def test_faults_all_at_once(command):
    arguments = [*rates(0.5, 3, float("nan"), 0), "--delta", 1, "--log-class-size", "inf"]
    said = command("theory", *arguments)
    assert (said.code, said.out) == (2, "")
    assert "6 problems" in said.err
    for words in (
        "--tokens: expected a number from 1, found 0.5",
        "--noise-before: expected a share from 0 to 1, found 3",
        "--noise-after: expected a share from 0 to 1, found nan",
        "--kept: expected a share above 0 and at most 1, found 0",
        "--delta: expected a probability between 0 and 1, found 1",
        "--log-class-size: expected a number from 0, found inf",
    ):
        assert words in said.err


def test_an_option_left_out_or_no_number(command):
    for arguments, words in (
        (RATES[:-2], "Missing option '--kept'"),
        ((*RATES[:-1], "most"), "Invalid value for '--kept'"),
    ):
        said = command("theory", *arguments)
        assert said.code == 2
        assert words in said.err


@pytest.mark.parametrize(
    ("arguments", "libraries"),
    [(("theory", "--help"), "torch transformers matplotlib"), (("theory", *RATES), "matplotlib")],
)
def test_what_it_loads(arguments: tuple[str, ...], libraries: str):
    code = (
        "import sys\nfrom tokenclean.cli.main import main\ntry: main()\nexcept SystemExit as end: assert not end.code\n"
    )
    code += f"assert not set({libraries.split()}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_as_a_program(tmp_path: Path):
    environment = {**os.environ, "COLUMNS": "160"}
    program = [sys.executable, "-m", "tokenclean", "theory"]
    result = subprocess.run([*program, *RATES], capture_output=True, text=True, env=environment, check=True)
    assert "Error bounds at η(D̃) = 30.0%, η̂ = 10.0%, r̂ = 70.0%" in result.stdout
    refused = subprocess.run(
        [*program, *RATES[:-1], "1.2"], capture_output=True, text=True, env=environment, check=False
    )
    assert refused.returncode == 2
    assert "--kept: expected a share above 0 and at most 1, found 1.2" in refused.stderr
    assert "Traceback" not in refused.stderr
