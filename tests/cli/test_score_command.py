"""``tokenclean score`` as processes: killed at any moment, shared among ranks, and what it says and refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tokenclean.token_table import read_table

CHARACTERS = 1500
LONGEST_SECONDS = 120


@pytest.fixture(scope="module")
def reference(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter on the tiny model."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tokenclean.models.loading.load import load_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("models") / "reference"
    get_peft_model(load_model(str(tiny_model_folder)), config).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    return folder


@pytest.fixture
def arguments(small_pool: Path, tiny_model_folder: Path, reference: Path):
    """A function that gives the command's arguments for an output."""

    def of(output: Path) -> list[str]:
        models = ("--base", tiny_model_folder, "--reference", reference, "--device", "cpu")
        return [*map(str, ("score", small_pool, *models, "--shard-characters", CHARACTERS, "-o", output))]

    return of


@pytest.fixture
def undisturbed(arguments, command, one_thread, tmp_path: Path) -> bytes:
    """The table that one process makes that nobody stops."""
    said = command(*arguments(tmp_path / "whole.parquet"))
    assert said.code == 0, said.err
    return (tmp_path / "whole.parquet").read_bytes()


SINGLE_PROCESS = [sys.executable, "-m", "tokenclean"]
TWO = [sys.executable, "-m", *["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tokenclean"]]


def start(program: list[str], arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*program, *arguments], text=True, env=environment, **pipes)


def losses_in(folder: Path) -> dict[str, int]:
    """The finished stages of losses, by their folder's name, and when they were made."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("stages/losses-*/manifest.json")}


def wait_for_losses(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while len(losses_in(folder)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def rank_process(launcher: int, rank: int) -> int:
    """The process of a rank below its launcher."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no process of rank {rank} below {launcher}")


def counts_in(said: str) -> tuple[int, int]:
    """Shards computed, and found."""
    found = re.search(r"  (\d+) shards computed, (\d+) found in ", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


@pytest.mark.slow
def test_a_pass_killed_in_the_middle_goes_on_to_the_same_table(undisturbed, arguments, command, tmp_path):
    output = tmp_path / "s.parquet"
    process = start(SINGLE_PROCESS, arguments(output))
    wait_for_losses(process, tmp_path / "s.shards", 7)
    process.kill()
    process.communicate()
    kept = losses_in(tmp_path / "s.shards")
    assert not output.exists()
    said = command(*arguments(output))
    assert said.code == 0, said.err
    made, found = counts_in(said.out)
    assert found == len(kept) >= 7
    assert made > 0
    assert output.read_bytes() == undisturbed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks' processes in /proc")
def test_two_ranks_make_the_table_that_one_makes_also_after_one_was_killed(undisturbed, arguments, command, tmp_path):
    output, folder = tmp_path / "s.parquet", tmp_path / "s.shards"
    process = start(TWO, arguments(output))
    wait_for_losses(process, folder, 5)
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    said = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode != 0
    assert said[0] == ""
    kept = losses_in(folder)
    assert len(kept) >= 5
    assert not output.exists()

    process = start(TWO, arguments(output))
    out, err = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode == 0, err
    assert output.read_bytes() == undisturbed
    made, found = counts_in(out)
    assert (found, made) == (len(kept), len(losses_in(folder)) - len(kept))
    assert all(losses_in(folder)[name] == moment for name, moment in kept.items())
    assert out.count("mean score") == 1
    assert "rank 1" not in err

    owners = {json.loads(path.read_text())["results"]["what"] for path in folder.glob("stages/losses-*/manifest.json")}
    assert len(owners) == made + found  # no shard was computed by both


def test_an_error_names_its_rank_and_other_ranks_say_no_more(command, small_pool, tmp_path, monkeypatch):
    import logging

    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    level = logging.getLogger("tokenclean").level
    try:
        said = command("score", small_pool, "--base", tmp_path / "none", "-o", tmp_path / "s.parquet")
    finally:
        logging.getLogger("tokenclean").setLevel(level)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error: rank 1: {tmp_path / 'none'}: no such model folder")
    assert said.err.count("\n") == 1


def test_ranks_without_a_launcher_are_refused(command, small_pool, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = command("score", small_pool, "--base", tmp_path / "none")
    assert (said.code, said.out) == (1, "")
    assert "no RANK, no LOCAL_RANK in the environment" in said.err


def test_what_is_said_at_the_end_is_what_the_table_holds(arguments, command, small_pool, tmp_path):
    output = tmp_path / "s.parquet"
    said = command(*arguments(output), "--columns", "probability,collision,entropy", "--columns", "is_top1")
    assert said.code == 0, said.err
    table = read_table(output)
    names = ("entropy", "is_top1", "probability", "collision")
    further = [f"{model}_{name}" for model in ("base", "reference") for name in names]
    losses = ["base_loss", "reference_loss", "score"]
    assert [*table.columns] == ["input_ids", "is_response", *losses, *further]
    stages = len(losses_in(tmp_path / "s.shards"))
    assert stages > 4
    means = {name: np.nanmean(table[name].values.astype(np.float64)) for name in losses}
    assert said.out.splitlines() == [
        f"{output}: 60 conversations, {table['is_response'].values.sum():,} response tokens",
        f"  {stages} shards computed, 0 found in {tmp_path / 's.shards'}",
        *(f"  mean {name} {mean:.4f} nats" for name, mean in means.items()),
    ]
    assert "score with reference: " in said.err
    assert not (tmp_path / "s.rejected.jsonl").exists()


def test_an_unknown_column_is_refused_with_the_list_before_anything_is_read(command, tmp_path):
    said = command("score", tmp_path / "none.jsonl", "--base", "./none", "--columns", "entropy,logits")
    assert said.code == 2
    expected = "error: options: --columns: found 'logits', expected names of entropy, is_top1, probability, collision\n"
    assert said.err == expected


def test_rows_without_a_target_are_told_and_listed(command, small_pool, tiny_model_folder, tmp_path):
    pool = tmp_path / "pool.jsonl"
    pool.write_text(small_pool.read_text() + '{"text": "plain"}\n' + "broken\n")
    said = command("score", pool, "--base", tiny_model_folder, "-o", tmp_path / "s.parquet")
    assert said.code == 0, said.err
    listing = tmp_path / "s.rejected.jsonl"
    assert f"2 rows set aside, listed in {listing}\n" in said.err
    assert [json.loads(line)["line"] for line in listing.read_text().splitlines()] == [62, 61]
    said = command(
        "score", pool, "--base", tiny_model_folder, "-o", tmp_path / "s.parquet", "--max-rejected-share", "0.02"
    )
    assert said.code == 2
    assert "2 of 62 rows cannot be used (3.2%), more than the 2.0% of pool.max_rejected_share" in said.err
