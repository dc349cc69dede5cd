"""``tokenclean view``: what it finds, writes and prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tokenclean.token_table import TokenTable, read_table, write_table


def results_of(run: Path) -> Path:
    return run / "results" / (run / "latest").read_text(encoding="utf-8").strip()


@pytest.fixture
def scored(finished_run: Path, tmp_path: Path) -> Path:
    """A table with scores but without labels, as ``tokenclean score`` writes."""
    table = read_table(results_of(finished_run) / "fixed_model" / "kept.parquet")
    columns = {name: table[name] for name in ("input_ids", "is_response", "score")}
    path = tmp_path / "scores.parquet"
    write_table(TokenTable(table.ids, table.sources, columns, {"models": table.metadata["models"]}), path)
    return path


def test_a_page_is_written_as_a_process(finished_run, tmp_path):
    arguments = ["view", str(finished_run), "--diff", "full_tokens", "-o", "page.html"]
    command = [sys.executable, "-m", "tokenclean", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("page.html: ")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h1><bdi>Tokens of fixed_model and full_tokens</bdi></h1>" in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_run_is_viewed_by_its_own_strategy(command, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command("view", finished_run)
    assert (said.code, said.err) == (0, "")
    rows = len(read_table(results_of(finished_run) / "fixed_model" / "kept.parquet"))
    assert said.out.startswith(f"small.html: {rows} conversations, ")
    assert "<title>Tokens of fixed_model</title>" in (tmp_path / "small.html").read_text(encoding="utf-8")
    said = command("view", results_of(finished_run), "--max-conversations", 5, "-o", tmp_path / "few.html")
    assert said.out.startswith(f"{tmp_path / 'few.html'}: 5 of {rows} conversations, ")


def test_which_of_several_results_is_shown_is_said(command, run_folder, tmp_path):
    run = run_folder("run")
    shown = results_of(run)
    other = shutil.copytree(shown, shown.parent / "0123456789ab")
    said = command("view", run, "--diff", "full_tokens", "-o", tmp_path / "p.html")
    tail = f"of {shown} (full_tokens, fixed_model); 1 other result: {other} (full_tokens, fixed_model)"
    assert said.out.splitlines()[1:] == [f"  fixed_model {tail}", f"  full_tokens {tail}"]
    (other / "manifest.json").write_text("{")
    said = command("view", run, "--terminal", "--max-conversations", 1)
    assert f"fixed_model of {shown} (full_tokens, fixed_model); 1 other result: {other}\n" in said.err
    said = command("report", run, "-o", tmp_path / "r.html")
    assert said.out.splitlines()[1] == f"  of {shown} (full_tokens, fixed_model); 1 other result: {other}"
    table = shown / "fixed_model" / "kept.parquet"
    assert len(command("view", table, "-o", tmp_path / "q.html").out.splitlines()) == 1


def test_piped_tokens_stand_in_marks(command, finished_run, scored):
    said = command("view", finished_run, "--terminal", "--max-conversations", 2)
    assert said.code == 0
    assert said.out.count(" targets, ") == 2
    assert {"⟦", "~"} <= set(said.out)
    assert "\x1b" not in said.out
    everything = command("view", finished_run, "--terminal", "--strategy", "full_tokens", "--max-conversations", 2)
    assert "~" not in everything.out
    nothing = command("view", scored, "--terminal", "-k", "0", "--max-conversations", 2)
    assert "⟦" not in nothing.out
    both = command("view", finished_run, scored, "--terminal", "--max-conversations", 2, "-k", "0.5", "--by", "score")
    assert both.code == 0
    assert "  fixed_model: " in both.out
    assert "  scores: " in both.out
    assert "≠" not in both.out  # the same scores, cut alike
    different = command("view", finished_run, "--diff", "full_tokens", "--terminal", "--max-conversations", 2)
    assert "≠" in different.out


def test_a_table_names_its_tokenizer_or_the_option_does(command, scored, tiny_model_folder, tmp_path):
    table = read_table(scored)
    unnamed = tmp_path / "unnamed.parquet"
    write_table(TokenTable(table.ids, table.sources, table.columns), unnamed)
    said = command("view", unnamed)
    assert said.code == 2
    assert "does not say which model its tokens belong to; name it with --model" in " ".join(said.err.split())
    assert command("view", unnamed, "--model", tiny_model_folder, "-o", tmp_path / "p.html").code == 0
    assert command("view", scored, "-o", tmp_path / "q.html").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strategy", "rho"], "has no strategy 'rho'; it has fixed_model, full_tokens"),
        (["--diff", "rho"], "has no strategy 'rho'; it has fixed_model, full_tokens"),
        (["-k", "0.12345"], "the page cuts at thousandths such as 0.625, found 0.12345"),
        (["--max-tokens", "3", "-o", "p.html"], "every row has more than 3 tokens"),
    ],
)
def test_what_it_refuses(command, finished_run, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    said = command("view", finished_run, *options)
    assert said.code == 2
    assert words in " ".join(said.err.split())
    assert list(tmp_path.iterdir()) == []


def test_places_that_hold_no_table(command, scored, tmp_path):
    said = command("view", tmp_path / "nothing")
    assert (said.code, "no such run folder or table" in said.err) == (1, True)
    said = command("view", tmp_path)
    assert (said.code, "holds no results" in said.err) == (1, True)
    said = command("view", scored, "--strategy", "rho")
    assert (said.code, "is a file, which has no strategies" in said.err) == (2, True)
    (tmp_path / "text.parquet").write_text("no table")
    said = command("view", tmp_path / "text.parquet")
    assert said.code == 2
