"""``tokenclean train`` that is stopped goes on from its last state, and ends with the bits of one left alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from command_process import LONGEST_SECONDS, finish
from safetensors.numpy import load_file

from tokenclean.models.loading.load import load_tokenizer
from tokenclean.pool import load_pool
from tokenclean.token_table import write_table
from tokenclean.tokens import tokenize_pool
from tokenclean.training.journal import JOURNAL, read_journal

pytestmark = pytest.mark.slow

STEPS = 30


@pytest.fixture(scope="module")
def table(small_pool, tiny_model_folder, tmp_path_factory) -> Path:
    tokens = tokenize_pool(load_pool(small_pool), load_tokenizer(str(tiny_model_folder)), max_length=512)
    path = tmp_path_factory.mktemp("table") / "kept.parquet"
    write_table(tokens.table({"template": "tulu"}), path)
    return path


@pytest.fixture(scope="module")
def arguments(table, tiny_model_folder):
    """A function (folder, further options) that gives the command: two epochs of 15 steps, a state after each."""
    fixed = ["--base", tiny_model_folder, "--rank", 4, "--batch-size", 4, "--epochs", 2, "--learning-rate", "1e-2"]
    fixed += ["--device", "cpu", "--checkpoint-minutes", 0, "--pack-tokens", 256]
    return lambda folder, *further: ["train", table, *fixed, "-o", folder / "model", *further]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, said = finish(arguments(folder), folder / "log.txt")
    assert code == 0, said
    assert sorted(path.name for path in folder.iterdir()) == ["log.txt", "model"]
    return folder / "model"


def stop(start_command, command, folder: Path, step: int, by: signal.Signals) -> int:
    """Start the command, send the signal once it has saved the state of that step, and return the exit code."""
    there = {place for place in folder.glob(".model.states/*") if last_step(place) >= step}
    process = start_command(command, folder / "log.txt")
    deadline = time.monotonic() + LONGEST_SECONDS
    while not any(last_step(place) >= step for place in set(folder.glob(".model.states/*")) - there):
        assert process.is_alive(), (folder / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, by)
    process.join(LONGEST_SECONDS)
    return process.exitcode


def last_step(place: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in place.glob("step-*")), default=0)


def check_same_model(folder: Path, expected: Path) -> None:
    found, tensors = (load_file(place / "adapter_model.safetensors") for place in (folder, expected))
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensor) for name, tensor in tensors.items())
    losses = [[line["loss"] for line in read_journal(place / JOURNAL)] for place in (folder, expected)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=lambda by: by.name)
def test_a_stopped_training_goes_on_and_gives_the_same_bits(by, start_command, arguments, undisturbed, tmp_path):
    for step in (4, 17):
        code = stop(start_command, arguments(tmp_path), tmp_path, step, by)
        assert code == (143 if by is signal.SIGTERM else -signal.SIGKILL)
        assert not (tmp_path / "model").exists()
    code, said = finish(arguments(tmp_path), tmp_path / "log.txt")
    assert code == 0, said
    assert int(said.partition("resuming after step ")[2].split()[0]) >= 17
    check_same_model(tmp_path / "model", undisturbed)
    assert not (tmp_path / ".model.states").exists()


def test_a_changed_command_does_not_go_on_from_foreign_states(start_command, arguments, undisturbed, tmp_path):
    stop(start_command, arguments(tmp_path, "--seed", 7), tmp_path, 4, signal.SIGKILL)
    stop(start_command, arguments(tmp_path, "--precision", "mixed"), tmp_path, 4, signal.SIGKILL)
    assert len({path.parent for path in tmp_path.glob(".model.states/*/step-*")}) == 2
    code, said = finish(arguments(tmp_path), tmp_path / "log.txt")
    assert code == 0, said
    assert "resuming" not in said
    check_same_model(tmp_path / "model", undisturbed)
    assert not (tmp_path / ".model.states").exists()


def test_two_trainings_of_one_output_are_refused(start_command, arguments, tmp_path):
    process = start_command(arguments(tmp_path, "--epochs", 200), tmp_path / "log.txt")
    while not list(tmp_path.glob(".model.states/*/step-*")):
        assert process.is_alive(), (tmp_path / "log.txt").read_text()
        time.sleep(0.001)
    code, said = finish(arguments(tmp_path), tmp_path / "second.txt")
    assert code == 1
    assert f"is in use by process {process.pid}" in said
    assert process.is_alive()
    process.kill()
    process.join()


@pytest.mark.parametrize(
    "options",
    [
        ["--precision", "mixed", "--activation-checkpointing"],
        ["--quantization", "nf4"],
        ["--method", "full"],
    ],
)
def test_every_kind_goes_on(options, start_command, arguments, tmp_path):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    for folder in (alone, stopped):
        folder.mkdir()
    assert finish(arguments(alone, *options), alone / "log.txt")[0] == 0
    assert stop(start_command, arguments(stopped, *options), stopped, 5, signal.SIGTERM) == 143
    code, said = finish(arguments(stopped, *options), stopped / "log.txt")
    assert (code, "resuming after step" in said) == (0, True), said
    (name,) = (path.name for path in (alone / "model").glob("*.safetensors"))
    assert (stopped / "model" / name).read_bytes() == (alone / "model" / name).read_bytes()


@pytest.mark.parametrize("option", [("--precision", "mixed"), ("--quantization", "nf4")], ids=lambda option: option[1])
def test_a_frozen_base_in_another_form_and_full_exclude_each_other(option, arguments, tmp_path):
    code, said = finish(arguments(tmp_path, *option, "--method", "full"), tmp_path / "log.txt")
    assert code == 2
    assert "method: full freezes nothing" in said
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
