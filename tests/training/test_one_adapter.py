"""One LoRA trained on through several trainings, with one optimizer and one learning-rate schedule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_llama import all_losses, random_rows, weights_from

from tokenclean.errors import ModelError, TrainingError
from tokenclean.models.loading.load import ModelSource, load_model
from tokenclean.ragged import Ragged
from tokenclean.recipe import LoraSettings, TrainingSettings
from tokenclean.training.checkpoint import last_checkpoint
from tokenclean.training.fine_tune import TrainingResult, train
from tokenclean.training.journal import JOURNAL, read_journal
from tokenclean.training.optimizer import MOMENTS
from tokenclean.training.step_plan import SchedulePart, plan_parts

LENGTHS = [12, 7, 20, 5, 9, 16, 3, 11, 8, 14, 6, 10, 13, 4, 18, 9]
INPUT_IDS = random_rows(LENGTHS)
WEIGHTS = weights_from(INPUT_IDS, share=0.8)
SPLITS = [slice(0, 4), slice(4, 12), slice(12, 16)]  # two, four and two batches
SCALE = {
    "rank": 4,
    "alpha": 3,
}  # sqrt(3 / 4) is no exact float: a rescaled adapter could not be gone on with bit for bit
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Stopped(Exception):
    pass


def settings_of(**values: Any) -> TrainingSettings:
    quick = {"lora": LoraSettings(**SCALE, dropout=0), "batch_size": 2, "learning_rate": 1e-2, "warmup_ratio": 0.3}
    return TrainingSettings(**(quick | {"precision": "exact", "shuffle": False, "max_grad_norm": 1.0} | values))


def rows_of(part: slice, column: Ragged) -> Ragged:
    return column.take(np.arange(len(INPUT_IDS))[part])


@pytest.fixture(scope="module")
def run_at(base_folder):
    """Train into a folder on some rows, going on from another; ``stop_at``: as if killed when that step was told."""

    def run_at(
        folder: Path,
        part: SchedulePart | None,
        before: Path | None = None,
        rows: slice = slice(None),
        *,
        weights: Ragged = WEIGHTS,
        stop_at: int = 0,
        **values: Any,
    ) -> TrainingResult:
        def reported(step: int, steps: int) -> None:
            if step == stop_at:
                raise Stopped

        source = ModelSource(str(base_folder), before and str(before))
        options = {"seed": 3, "part": part, "progress": reported, "checkpoints": folder.with_name("checkpoints")}
        ids, weight = rows_of(rows, INPUT_IDS), rows_of(rows, weights)
        return train(source, ids, weight, settings_of(**values), folder, **options)

    return run_at


@pytest.fixture(scope="module")
def parts_at(run_at):
    """Train ``count`` parts one after another into ``place``; their folders and results."""

    def parts_at(place: Path, count: int = 3, **values: Any) -> tuple[list[Path], list[TrainingResult]]:
        folders, results = [place / f"part-{number}" / "out" for number in range(count)], []
        for number, part in enumerate(plan_parts([4, 8, 4], settings_of(**values))[:count]):
            before = folders[number - 1] if number else None
            folders[number].parent.mkdir(parents=True)
            results.append(run_at(folders[number], part, before, SPLITS[number], **values))
        return folders, results

    return parts_at


@pytest.fixture(scope="module")
def trained(parts_at, tmp_path_factory) -> tuple[list[Path], list[TrainingResult]]:
    """Three parts; tests must leave the folders as they are."""
    return parts_at(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def first_again(trained, tmp_path) -> Path:
    """A copy of the first part's folder."""
    return shutil.copytree(trained[0][0], tmp_path / "first")


def is_equal(a: Path, b: Path, file: str) -> bool:
    first, second = load_file(a / file), load_file(b / file)
    assert first.keys() == second.keys()
    return all(torch.equal(first[k], second[k]) for k in first)


def furthest(a: Path, b: Path) -> float:
    """The largest difference in what two adapters add to the weights, as a share of the largest that ``a`` adds."""
    first, second = added_by(a), added_by(b)
    largest = max(float(v.abs().max()) for v in first.values())
    return max(float((second[k] - v).abs().max()) for k, v in first.items()) / largest


def added_by(folder: Path) -> dict[str, torch.Tensor]:
    """What is added to each weight: B·A times the scale, of an adapter in any scale."""
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / ADAPTER)
    scale = config["lora_alpha"] / config["r"]
    return {k: scale * tensors[k.replace("lora_A", "lora_B")] @ v for k, v in tensors.items() if "lora_A" in k}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_parts_are_one_training_over_all_rows_in_order(schedule, run_at, parts_at, trained, tmp_path):
    folders, results = trained if schedule == "linear" else parts_at(tmp_path, schedule=schedule)
    whole = run_at(tmp_path / "whole" / "out", None, schedule=schedule)
    assert [r.steps for r in results] == [2, 4, 2]
    assert [loss for r in results for loss in r.losses] == pytest.approx(whole.losses, abs=1e-5)
    assert furthest(tmp_path / "whole" / "out", folders[-1]) < 1e-4
    reported = [line["learning_rate"] for folder in folders for line in read_journal(folder / JOURNAL)]
    assert reported == [line["learning_rate"] for line in read_journal(tmp_path / "whole" / "out" / JOURNAL)]


@pytest.mark.parametrize("lost", ["moments", "step count", "schedule"])
def test_without_moments_or_schedule_they_would_not_be(lost, run_at, trained, first_again, tmp_path):
    """How far off the comparison above is when something is not carried over: over a hundred times its tolerance."""
    part = plan_parts([4, 8, 4], settings_of())[1]
    moments = load_file(first_again / MOMENTS)
    if lost == "moments":
        moments = {k: v if k.startswith("step.") else torch.zeros_like(v) for k, v in moments.items()}
    elif lost == "step count":
        moments = {k: torch.zeros_like(v) if k.startswith("step.") else v for k, v in moments.items()}
    else:
        part = SchedulePart(1, 5, 100)
    save_file(moments, first_again / MOMENTS)
    run_at(tmp_path / "out", part, first_again, SPLITS[1])
    assert furthest(trained[0][1], tmp_path / "out") > 1e-2


def test_every_part_is_an_ordinary_adapter_of_the_same_rank_on_the_base(trained, base_folder):
    folders, results = trained
    for number, folder in enumerate(folders):
        config = json.loads((folder / CONFIG).read_text())
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 3, 0.0)
        assert config["base_model_name_or_path"] == str(base_folder)
        assert {t.shape[0] for k, t in load_file(folder / ADAPTER).items() if "lora_A" in k} == {4}
        plain = PeftModel.from_pretrained(load_model(str(base_folder)), str(folder)).eval()
        assert float((all_losses(plain, INPUT_IDS) - all_losses(load_model(str(base_folder)), INPUT_IDS)).abs().max())
        if number < 2:  # the next part's first loss is that of this part's model
            rows = slice(SPLITS[number + 1].start, SPLITS[number + 1].start + 2)
            weight = torch.from_numpy(np.concatenate([w[1:] for w in rows_of(rows, WEIGHTS)]))
            expected = float((all_losses(plain, rows_of(rows, INPUT_IDS)) * weight).sum() / weight.sum())
            assert results[number + 1].losses[0] == pytest.approx(expected, abs=1e-4)


def test_the_moments_lie_beside_every_part_but_the_last(trained):
    folders, _ = trained
    assert [(folder / MOMENTS).is_file() for folder in folders] == [True, True, False]
    first, second = (load_file(folder / MOMENTS) for folder in folders[:2])
    assert {float(v) for k, v in first.items() if k.startswith("step.")} == {2.0}
    assert {float(v) for k, v in second.items() if k.startswith("step.")} == {6.0}
    assert len(first) == 3 * len(load_file(folders[0] / ADAPTER))  # step, exp_avg, exp_avg_sq


def test_only_the_very_first_step_has_no_learning_rate(trained):
    assert [(r.steps, r.effective_steps) for r in trained[1]] == [(2, 1), (4, 4), (2, 2)]


def test_a_part_with_fewer_rows_than_planned_is_stretched_over_its_part_of_the_schedule(run_at, trained, tmp_path):
    """Rows 4 to 11 are planned for four steps; three of them have a token: two steps, of twice the stride."""
    part = plan_parts([4, 8, 4], settings_of())[1]
    weights = Ragged.from_rows([w * (row < 7) for row, w in enumerate(WEIGHTS)])
    result = run_at(tmp_path / "out", part, trained[0][0], SPLITS[1], weights=weights)
    assert (result.trained_rows, result.dropped_rows, result.steps) == (3, 5, 2)
    # The journal tells of each step the rate after it: at positions 4 and 6, of 8, where 3 are the warm-up.
    reported = [line["learning_rate"] for line in read_journal(tmp_path / "out" / JOURNAL)]
    assert reported == pytest.approx([1e-2 * (8 - position) / (8 - 3) for position in (4, 6)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"lora": LoraSettings(**SCALE, dropout=0.2), "shuffle": True, "epochs": 2},
        {"precision": "mixed"},
        {"quantization": "nf4"},
    ],
    ids=["dropout and shuffle", "mixed", "nf4"],
)
def test_a_later_part_that_was_stopped_ends_bit_equal(values, run_at, parts_at, tmp_path):
    folders, _ = parts_at(tmp_path, count=2, **values)
    part = plan_parts([4, 8, 4], settings_of(**values))[1]
    out = tmp_path / "stopped" / "out"
    for stop_at in (1, 2, 4):
        with pytest.raises(Stopped):
            run_at(out, part, folders[0], SPLITS[1], stop_at=stop_at, checkpoint_minutes=0, **values)
    assert last_checkpoint(out.with_name("checkpoints")).name == "step-3"
    run_at(out, part, folders[0], SPLITS[1], **values)
    assert is_equal(folders[1], out, ADAPTER)
    assert is_equal(folders[1], out, MOMENTS)


def test_a_part_that_was_stopped_before_its_moments_were_written_ends_bit_equal(run_at, trained, tmp_path, monkeypatch):
    part, before = plan_parts([4, 8, 4], settings_of())[1], trained[0][0]

    def killed(*args: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("tokenclean.training.fine_tune.save_moments", killed)
        with pytest.raises(Stopped):
            run_at(tmp_path / "out", part, before, SPLITS[1], checkpoint_minutes=0)
    run_at(tmp_path / "out", part, before, SPLITS[1])
    assert is_equal(trained[0][1], tmp_path / "out", ADAPTER)
    assert is_equal(trained[0][1], tmp_path / "out", MOMENTS)


@pytest.mark.parametrize(
    ("start", "before", "values", "message"),
    [
        (0, 0, {}, r"the first part trains a LoRA on a plain base; merge this adapter first"),
        (2, None, {}, r"a part from step 2 on needs the adapter of the part before it"),
        (2, 2, {}, r"optimizer\.safetensors: missing; a training can only go on from one"),
        (2, 0, {"method": "full"}, r"trains one LoRA; method: full has none"),
    ],
    ids=["adapter as base", "nothing before", "no moments", "full"],
)
def test_a_part_that_has_nothing_to_go_on_from_is_refused(start, before, values, message, run_at, trained, tmp_path):
    folder = None if before is None else trained[0][before]
    with pytest.raises(TrainingError, match=message):
        run_at(tmp_path / "out", SchedulePart(start, 4, 8), folder, **values)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lora", [{"rank": 2}, {"alpha": 5}, {"target_modules": ("q_proj", "v_proj")}], ids=str)
def test_other_lora_settings_in_a_later_part_are_refused(lora, run_at, trained, tmp_path):
    changed = LoraSettings(**({**SCALE, "dropout": 0} | lora))
    with pytest.raises(ModelError, match=r"its LoRA of rank 4 and alpha 3 is not one .*keep lora\.\* as it was"):
        run_at(tmp_path / "out", SchedulePart(2, 6, 8), trained[0][0], lora=changed)


@pytest.mark.parametrize("change", ["missing", "renamed", "shape"])
def test_moments_of_other_parameters_are_refused(change, run_at, first_again, tmp_path):
    moments = load_file(first_again / MOMENTS)
    name = next(k for k in moments if k.startswith("exp_avg.")).removeprefix("exp_avg.")
    if change == "missing":
        moments = {k: v for k, v in moments.items() if not k.endswith(name)}
    elif change == "renamed":
        moments["exp_avg.other"] = moments.pop(f"exp_avg.{name}")
    else:
        moments[f"exp_avg.{name}"] = moments[f"exp_avg.{name}"][:1].contiguous()
    save_file(moments, first_again / MOMENTS)
    with pytest.raises(TrainingError, match=r"optimizer\.safetensors: .*keep lora\.\* as it was"):
        run_at(tmp_path / "out", SchedulePart(2, 6, 8), first_again, SPLITS[1])
