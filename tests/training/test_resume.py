"""A training that was stopped goes on from its last state, and ends where it would have ended."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_llama import VOCABULARY, random_rows, weights_from

from tokenclean.errors import RecipeError, TrainingError
from tokenclean.models.loading.load import ModelSource
from tokenclean.recipe import LoraSettings, TrainingSettings
from tokenclean.selection import surprisal_table
from tokenclean.training import checkpoint
from tokenclean.training.checkpoint import last_checkpoint, saved_states
from tokenclean.training.fine_tune import train
from tokenclean.training.journal import JOURNAL, read_journal
from tokenclean.training.online_mixture import OnlineMixture

INPUT_IDS = random_rows([12, 7, 20, 5, 9, 16, 3, 11, 8, 14, 6])
WEIGHTS = weights_from(INPUT_IDS, share=0.8)
NAMES = [f"source:{row}" for row in range(len(INPUT_IDS))]
MIXTURE = OnlineMixture(
    surprisal_table(INPUT_IDS, WEIGHTS.map_values(lambda values: values > 0), VOCABULARY),
)
STEPS = 6


class Stopped(Exception):
    pass


@pytest.fixture
def run(base_folder, tmp_path):
    """Two epochs of three steps with dropout, in shuffled order; ``stop_at``: as if killed when that step was told."""

    def run(
        folder: str, *, stop_at: int = 0, place: str | None = None, progress: Any = None, name: str = "", **values: Any
    ):
        def reported(step: int, steps: int) -> None:
            if progress is not None:
                progress(step, steps)
            if step == stop_at:
                raise Stopped

        quick = {"batch_size": 4, "epochs": 2, "learning_rate": 1e-2, "precision": "exact", "checkpoint_minutes": 0}
        mixture = values.pop("mixture", None)
        settings = TrainingSettings(**({"lora": LoraSettings(rank=4, dropout=0.2)} | quick | values))
        place = tmp_path / folder / "checkpoints"
        source = ModelSource(str(base_folder))
        options = {"seed": 3, "checkpoints": place, "row_names": NAMES, "progress": reported, "mixture": mixture}
        return train(source, INPUT_IDS, WEIGHTS, settings, tmp_path / folder, name=name, **options)

    return run


def weights_in(folder: Path) -> dict[str, np.ndarray]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


@pytest.mark.parametrize("stop_at", range(1, STEPS + 1))
def test_stopped_after_any_step_it_ends_bit_equal(stop_at, run, tmp_path):
    undisturbed = run("undisturbed")
    with pytest.raises(Stopped):
        run("stopped", stop_at=stop_at)
    steps = []
    resumed = run("stopped", progress=lambda step, of: steps.append(step))
    assert len(undisturbed.losses) == STEPS
    # A kill while a step is told comes before its state is saved: that step is taken again.
    assert steps == list(range(stop_at, STEPS + 1))
    assert resumed.losses == undisturbed.losses
    expected, found = weights_in(tmp_path / "undisturbed"), weights_in(tmp_path / "stopped")
    assert expected.keys() == found.keys()
    assert all(np.array_equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize(
    "values",
    [
        {"method": "full", "learning_rate": 1e-3},
        {"precision": "mixed"},
        {"quantization": "nf4"},
        {"mixture": MIXTURE},
        {"loss_normalisation": "sample", "schedule": "cosine", "warmup_ratio": 0.4, "eval_rows": 2},
    ],
    ids=["full", "mixed", "nf4", "mixture", "sample"],
)
def test_every_kind_of_training_goes_on_bit_equal(values, run, tmp_path):
    undisturbed = run("undisturbed", **values)
    for stop_at in (2, 4):  # after step 3, with which an epoch ends
        with pytest.raises(Stopped):
            run("stopped", stop_at=stop_at, **values)
    resumed = run("stopped", **values)
    assert resumed.losses == undisturbed.losses
    assert resumed.eval_losses == undisturbed.eval_losses
    assert resumed.row_rates == undisturbed.row_rates
    expected, found = weights_in(tmp_path / "undisturbed"), weights_in(tmp_path / "stopped")
    assert expected.keys() == found.keys()
    assert all(np.array_equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("values", [{"precision": "mixed"}, {"quantization": "nf4"}], ids=["mixed", "nf4"])
def test_a_second_round_leaves_the_first_rounds_adapter_in_float32(values, base_folder, tmp_path):
    settings = TrainingSettings(batch_size=4, learning_rate=1e-2, lora=LoraSettings(rank=4, alpha=4), **values)
    first, second = tmp_path / "first", tmp_path / "second"
    train(ModelSource(str(base_folder)), INPUT_IDS, WEIGHTS, settings, first, seed=0)
    train(ModelSource(str(base_folder), str(first)), INPUT_IDS, WEIGHTS, settings, second, seed=1)
    before, after = weights_in(first), weights_in(second)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        kept = after[name][:4] if "lora_A" in name else after[name][:, :4]
        assert np.array_equal(kept, tensor), name


def test_one_state_is_kept_and_the_journal_has_each_step_once(run, tmp_path):
    with pytest.raises(Stopped):
        run("stopped", stop_at=4)
    place = tmp_path / "stopped" / "checkpoints"
    assert sorted(path.name for path in place.iterdir()) == [JOURNAL, "step-3"]
    assert not list(place.rglob("*.pt")) + list(place.rglob("*.pth")) + list(place.rglob("*.bin"))
    run("stopped")
    lines = read_journal(tmp_path / "stopped" / JOURNAL)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["tokens_per_second"] > 0 and line["peak_memory_bytes"] > 0 for line in lines)
    assert lines[-1]["seconds_left"] == 0
    assert all(0 < line["selected_share"] <= 1 for line in lines)


def test_the_states_tell_whose_they_are_and_how_far_they_are(run, tmp_path):
    for folder, stop_at, name in (("a", 3, ""), ("b", 4, "reference-2")):
        with pytest.raises(Stopped):
            run(folder, stop_at=stop_at, name=name)
        shutil.copytree(tmp_path / folder / "checkpoints", tmp_path / "states" / folder)
    (tmp_path / "states" / "empty").mkdir()
    found = saved_states(tmp_path / "states")
    assert [(state.what, state.step, state.steps) for state in found] == [("a", 2, STEPS), ("reference-2", 3, STEPS)]
    assert saved_states(tmp_path / "none") == []


def test_a_damaged_state_is_passed_over(run, tmp_path, caplog):
    undisturbed = run("undisturbed")
    with pytest.raises(Stopped):
        run("stopped", stop_at=3)
    state = tmp_path / "stopped" / "checkpoints" / "step-2"
    content = (state / "trained.safetensors").read_bytes()
    (state / "trained.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run("stopped").losses == undisturbed.losses
    assert "step-2 is not what was written" in caplog.text


def test_a_state_of_another_format_is_skipped(run, tmp_path, caplog, monkeypatch):
    undisturbed = run("undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_VERSION", 1)
        with pytest.raises(Stopped):
            run("stopped", stop_at=3)
    steps = []
    assert run("stopped", progress=lambda step, of: steps.append(step)).losses == undisturbed.losses
    assert steps == list(range(1, STEPS + 1))
    assert "step-2 was written by another version of tokenclean; skipped" in caplog.text


@pytest.mark.parametrize("killed_at", [2, STEPS])
def test_sigterm_saves_the_state_and_leaves(killed_at, run, tmp_path):
    undisturbed = run("undisturbed")

    def kill(step: int, steps: int) -> None:
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run("stopped", progress=kill, checkpoint_minutes=60)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert last_checkpoint(tmp_path / "stopped" / "checkpoints").name == f"step-{killed_at}"
    assert run("stopped", checkpoint_minutes=60).losses == undisturbed.losses
    expected, found = weights_in(tmp_path / "undisturbed"), weights_in(tmp_path / "stopped")
    assert all(np.array_equal(found[k], v) for k, v in expected.items())


def test_a_full_disk_leaves_the_state_before(run, tmp_path, monkeypatch):
    undisturbed = run("undisturbed")
    seal, saved = checkpoint.seal_folder, []

    def full(folder, content):
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(seal(folder, content))

    monkeypatch.setattr(checkpoint, "seal_folder", full)
    with pytest.raises(TrainingError, match=r"cannot save the state at step 3 .*the one before is kept"):
        run("stopped")
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("*step*")] == ["step-2"]
    monkeypatch.setattr(checkpoint, "seal_folder", seal)
    assert run("stopped").losses == undisturbed.losses


def test_a_loss_that_is_not_finite_names_its_row(run):
    with pytest.raises(
        TrainingError, match=r"the loss of step \d+ is (nan|inf) in row source:\d+, of the batch source"
    ):
        run("out", method="full", learning_rate=1e30)


def test_without_a_place_nothing_is_saved(base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenclean.training.loop.save_checkpoint", None)
    settings = TrainingSettings(batch_size=4, lora=LoraSettings(rank=2), checkpoint_minutes=0)
    result = train(ModelSource(str(base_folder)), INPUT_IDS, WEIGHTS, settings, tmp_path / "out", seed=0)
    assert len(read_journal(tmp_path / "out" / JOURNAL)) == result.steps == 3


def test_trackers_get_what_the_journal_says_of_each_step(run, tmp_path, monkeypatch):
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    reported = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            reported.append(dict(logs))

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    run("out", report_to=("tensorboard",))
    lines = read_journal(tmp_path / "out" / JOURNAL)
    steps = [line for line in reported if "loss" in line and "train_runtime" not in line]
    assert [{name: line[name] for name in lines[0]} for line in steps] == lines


def test_a_tracker_that_is_not_installed_is_named(run, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    with pytest.raises(RecipeError, match=r"training\.report_to: wandb is not installed: pip install wandb"):
        run("out", report_to=("wandb",))
