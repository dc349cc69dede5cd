"""One gradient step as an adapter: against brute-force gradients of the whole weights, and its null's lengths."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_llama import all_losses, naive_losses, random_rows, weights_from

from tokenclean.errors import TrainingError
from tokenclean.models.loading.load import ModelSource, load_model, resolve_source
from tokenclean.ragged import Ragged
from tokenclean.recipe import LoraSettings, TrainingSettings
from tokenclean.training.one_step import FIRST_ORDER_SHARE, OneStep, orthonormal, sign_patterns, write_one_step

PROJECTIONS = ("q_proj", "v_proj", "down_proj")
FULL_RANK = 64  # above every size of the small model
IDS = random_rows([20, 7, 33, 1])
WEIGHTS = weights_from(IDS)


def settings_of(rank: int = FULL_RANK, **changes) -> TrainingSettings:
    lora = LoraSettings(rank=rank, alpha=6, dropout=0.5, target_modules=PROJECTIONS)
    return TrainingSettings.model_validate({"lora": lora, "precision": "exact", "pack_tokens": 30, **changes})


def step_on(base: Path, folder: Path, settings: TrainingSettings, nulls: int = 0, weights: Ragged = WEIGHTS) -> OneStep:
    return write_one_step(ModelSource(str(base)), IDS, weights, settings, folder, nulls=nulls, seed=3)


def mean_loss(model: torch.nn.Module, weights: Ragged = WEIGHTS) -> torch.Tensor:
    losses = [
        (torch.from_numpy(w[1:]).float() * naive_losses(model, ids)).sum()
        for ids, w in zip(IDS, weights, strict=True)
        if len(ids) > 1
    ]
    return torch.stack(losses).sum() / float(np.abs(weights.values).sum())


def gradients(base: Path, weights: Ragged = WEIGHTS) -> dict[str, torch.Tensor]:
    """Of the mean loss, by the definition, in the layers that get an adapter."""
    model = load_model(str(base))
    mean_loss(model, weights).backward()
    return {
        name.removesuffix(".weight"): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and name.split(".")[-2] in PROJECTIONS
    }


def changes(folder: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each layer's weights."""
    tensors = load_file(folder / "adapter_model.safetensors")  # saved at a scale of 1
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): tensors[name.replace("_A.", "_B.")] @ a
        for name, a in tensors.items()
        if "lora_A" in name
    }


@pytest.mark.parametrize("normalised", ["token", "sample"])
def test_with_full_rank_the_step_is_the_gradient(normalised, base_folder, tmp_path):
    settings = settings_of(loss_normalisation=normalised)
    found = step_on(base_folder, tmp_path, settings)
    weights = WEIGHTS
    if normalised == "sample":  # the mean of the rows' means is a mean with other weights
        sums = WEIGHTS.row_sums()
        per_row = np.repeat(np.divide(1, sums, where=sums > 0, out=np.zeros(len(sums))), WEIGHTS.lengths)
        weights = WEIGHTS.with_values(WEIGHTS.values * per_row)
    expected = gradients(base_folder, weights)
    made = changes(tmp_path / "step")
    assert made.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(made[name], -found.rate * gradient, rtol=1e-3, atol=1e-7)
    slope = sum(float((gradient**2).sum()) for gradient in expected.values())
    assert found.predicted == pytest.approx(found.rate * slope, rel=1e-4)


def test_a_low_rank_holds_nearly_all_of_the_gradient_that_it_can(base_folder, tmp_path):
    """The best of rank 4 is the truncated SVD; a random projection of this rank holds an eighth."""
    found = step_on(base_folder, tmp_path, settings_of(rank=4))
    made = changes(tmp_path / "step")
    held = best = 0.0
    for name, gradient in gradients(base_folder).items():
        assert torch.linalg.matrix_rank(made[name]) <= 4
        ours = -made[name] / found.rate
        values = torch.linalg.svdvals(gradient)
        assert float((ours * gradient).sum()) == pytest.approx(float((ours**2).sum()), rel=1e-3)  # a projection
        held, best = held + float((ours**2).sum()), best + float((values[:4] ** 2).sum())
    assert held > 0.8 * best


def test_it_is_as_long_as_the_first_order_reaches(base_folder, tmp_path):
    found = step_on(base_folder, tmp_path, settings_of())
    base, stepped = load_model(str(base_folder)), load_model(resolve_source(str(tmp_path / "step")))
    with torch.no_grad():
        before, after = float(mean_loss(base)), float(mean_loss(stepped))
    assert found.loss == pytest.approx(before, abs=1e-5)
    assert found.drop == pytest.approx(before - after, abs=1e-5)
    assert found.drop >= FIRST_ORDER_SHARE * found.predicted
    assert found.predicted * 2**found.halvings == pytest.approx(0.1 * before, rel=1e-4)
    assert (found.rows, found.tokens) == (3, np.count_nonzero(WEIGHTS.values))
    if found.halvings:  # twice the rate was too much
        weights = base.state_dict()
        for name, change in changes(tmp_path / "step").items():
            weights[f"{name}.weight"] += 2 * change
        with torch.no_grad():
            assert before - float(mean_loss(base)) < FIRST_ORDER_SHARE * 2 * found.predicted


def test_a_null_is_the_gradient_with_the_signs_of_its_pattern(base_folder, tmp_path):
    found, lengths = step_on(base_folder, tmp_path, settings_of(), nulls=2), []
    step = changes(tmp_path / "step")
    rows = np.flatnonzero(WEIGHTS.row_sums())  # row 3 has no weighted token
    for number, pattern in enumerate(sign_patterns(2, len(rows), 3)[1:]):
        signs = np.zeros(len(IDS))
        signs[rows] = pattern
        expected = gradients(base_folder, WEIGHTS.with_values(WEIGHTS.values * np.repeat(signs, WEIGHTS.lengths)))
        made = changes(tmp_path / f"null-{number + 1}")
        for name, gradient in expected.items():
            assert made[name].norm() == pytest.approx(float(step[name].norm()), rel=1e-4)  # in every layer
            scaled = -gradient * step[name].norm() / gradient.norm()
            torch.testing.assert_close(made[name], scaled, rtol=1e-3, atol=1e-3 * float(scaled.abs().max()))
        lengths.append(math.sqrt(sum(float((gradient**2).sum()) for gradient in expected.values())))
    length = math.sqrt(sum(float((change**2).sum()) for change in step.values())) / found.rate
    assert found.null_length == pytest.approx(np.mean(lengths) / length, rel=1e-4)


def test_rows_that_agree_leave_a_short_gradient_with_random_signs(base_folder, tmp_path):
    """Of n copies of a row nothing is left, of rows that have nothing in common all."""
    row = random_rows([20])[0]
    weights = Ragged.from_rows([np.r_[0.0, np.ones(19)]] * 8)
    found = {}
    for name, rows in (("copies", [row] * 8), ("others", list(random_rows([20] * 8, seed=4)))):
        ids = Ragged.from_rows(rows, np.int64)
        source = ModelSource(str(base_folder))
        found[name] = write_one_step(source, ids, weights, settings_of(rank=8), tmp_path / name, nulls=4, seed=0)
    assert found["copies"].null_length < 1e-3
    assert found["others"].null_length > 0.3


def test_patterns_are_balanced_over_groups_of_rows():
    signs = sign_patterns(8, 60, 0)
    assert signs.shape == (9, 60)
    assert (signs[0] == 1).all()
    assert (np.abs(signs[1:].sum(axis=1)) <= 8).all()  # groups of four rows, some of three
    assert len(np.unique(signs, axis=1).T) <= 16
    assert len(np.unique(signs, axis=0)) == 9
    assert sign_patterns(4, 3, 0)[1:].sum(axis=1).tolist() == [1] * 4  # of three rows two are +
    assert (sign_patterns(4, 2, 0)[1:].sum(axis=1) == 0).all()


def test_isotropic_steps_of_the_same_length_change_losses_less(base_folder, tmp_path):
    """Why the null is made of the rows' gradients: a token's gradient hardly overlaps with a random direction."""
    step_on(base_folder, tmp_path, settings_of(rank=8), nulls=2)
    fresh = random_rows([30, 30, 30], seed=5)
    base = all_losses(load_model(str(base_folder)), fresh)

    def spread(change: dict[str, torch.Tensor]) -> float:
        model = load_model(str(base_folder))
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, delta in change.items():
            state[f"{name}.weight"] += delta
        model.load_state_dict(state)
        return float((base - all_losses(model, fresh)).std())

    torch.manual_seed(0)
    own = changes(tmp_path / "null-1")
    isotropic = {name: (noise := torch.randn_like(delta)) * delta.norm() / noise.norm() for name, delta in own.items()}
    assert spread(isotropic) < 0.7 * spread(own)


def test_the_same_call_gives_the_same_files(base_folder, tmp_path):
    for folder in ("a", "b"):
        step_on(base_folder, tmp_path / folder, settings_of(rank=4, method="full"), nulls=1)
    for name in ("step", "null-1"):
        a, b = (changes(tmp_path / folder / name) for folder in ("a", "b"))
        assert all(torch.equal(a[layer], b[layer]) for layer in a)


def test_what_it_found_is_read_back_from_a_manifest():
    found = OneStep(rows=3, tokens=40, rate=0.02, halvings=2, loss=2.0, drop=0.09, predicted=0.1, null_length=0.5)
    assert OneStep.of_manifest({"what": "influence", **found.as_manifest()}) == found
    assert str(found) == (
        "η 0.02 on 40 tokens of 3 rows lowers their loss 2.0000 by 0.0900 nats, 90% of what the gradient predicts; "
        "with random signs of the rows the gradient is 0.50 times as long"
    )


def test_columns_span_the_matrix_and_are_padded():
    matrix = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    columns = orthonormal(matrix)
    assert columns.shape == (2, 3)
    torch.testing.assert_close(columns @ columns.T @ matrix, matrix)
    assert not columns[:, 2].any()


def test_nothing_to_step_on_is_an_error(base_folder, tmp_path):
    nothing = WEIGHTS.with_values(np.zeros_like(WEIGHTS.values))
    with pytest.raises(TrainingError, match="0 of 4 rows have a token"):
        step_on(base_folder, tmp_path, settings_of(), weights=nothing)
