from __future__ import annotations

import pytest
from test_runs import recipe_of

from tokenclean.errors import RecipeError
from tokenclean.experiment.planning.hardware import GPUS, Hardware, parse_all
from tokenclean.experiment.planning.plan import plan


@pytest.mark.parametrize(
    ("text", "count", "name"), [("8xL40S", 8, "L40S"), ("h100", 1, "H100"), (" 2 × a100", 2, "A100")]
)
def test_hardware_is_read(text, count, name):
    assert Hardware.parse(text) == Hardware(count, GPUS[name.lower()])


@pytest.mark.parametrize("text", ["", "8x", "0xH100", "8xTPU", "xH100", "8xL40S;"])
def test_what_is_not_known_is_told(text):
    with pytest.raises(RecipeError, match="such as 8xL40S; known: L4, A10"):
        Hardware.parse(text)


def test_time_is_flop_by_the_useful_share_of_all_gpus():
    hardware = Hardware(8, GPUS["l40s"])
    useful = 8 * 362e12
    assert hardware.seconds(0, useful * 0.27, "fast", "mixed") == pytest.approx(1)
    assert hardware.seconds(useful * 0.41, useful * 0.27, "fast", "mixed") == pytest.approx(2)


def test_a_plan_lays_the_run_out_for_gpus(small_pool, tiny_model_folder, tmp_path):
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path)
    without, there = plan(recipe), plan(recipe, on=parse_all("8xL40S,1xH100"))
    assert without.elsewhere is None
    assert without.steps == there.steps
    assert [row[0] for row in there.elsewhere.rows] == ["8 × L40S", "1 × H100"]
    assert all(row[-1] == "fits" for row in there.elsewhere.rows)


def test_what_a_plan_stores_is_losses_and_adapters(small_pool, tiny_model_folder, tmp_path):
    there = plan(recipe_of(small_pool, tiny_model_folder, tmp_path))
    passes = [step for step in there.steps if not step.optimizer_steps]
    trainings = [step for step in there.steps if step.optimizer_steps]
    assert passes
    assert trainings
    assert all(0 < step.stored_bytes <= 4 * step.tokens for step in passes)
    lora = {step.stored_bytes for step in trainings}
    assert len(lora) == 1
    assert lora.pop() % 4 == 0
