from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from tokenclean.models import head as head_module
from tokenclean.models.head import Head

CASES = pytest.mark.parametrize(
    ("scale", "softcap", "has_bias"), [(1.0, None, False), (0.25, None, True), (1.0, 3.0, False), (2.0, 5.0, True)]
)


def built(scale: float, softcap: float | None, has_bias: bool, *, is_trained: bool) -> Head:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 12, generator=generator).requires_grad_(is_trained)
    bias = torch.randn(50, generator=generator).requires_grad_(is_trained) if has_bias else None
    return Head(weight, bias, scale, softcap)


def drawn(positions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(positions, 12, generator=generator, requires_grad=True)
    return hidden, torch.randint(0, 50, (positions,), generator=generator), torch.randn(positions, generator=generator)


def defined(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = linear(hidden, head.weight, head.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return cross_entropy(logits, targets, reduction="none")


@CASES
@pytest.mark.parametrize("is_trained", [False, True])
def test_losses_and_gradients_are_those_of_the_full_logits_whatever_the_chunks(
    scale, softcap, has_bias, is_trained, monkeypatch
):
    monkeypatch.setattr(head_module, "CHUNK_POSITIONS", 7)
    head = built(scale, softcap, has_bias, is_trained=is_trained)
    hidden, targets, pull = drawn(24)
    expected = defined(head, hidden, targets)
    leaves = [hidden, *(t for t in (head.weight, head.bias) if t is not None and is_trained)]
    wanted = torch.autograd.grad((expected * pull).sum(), leaves)
    found = head.losses(hidden, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for gradient, want in zip(torch.autograd.grad((found * pull).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(gradient, want, atol=2e-5, rtol=1e-4)


@CASES
@pytest.mark.parametrize("names", [("collision",), ("collision", "entropy", "loss", "is_top1")], ids=str)
def test_measures_are_those_of_the_full_logits_in_float64(scale, softcap, has_bias, names, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_POSITIONS", 7)
    head = built(scale, softcap, has_bias, is_trained=False)
    hidden, targets, _ = drawn(24)
    logits = linear(hidden.double(), head.weight.double(), None if head.bias is None else head.bias.double()) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    shares = logits.softmax(-1)
    expected = {
        "loss": cross_entropy(logits, targets, reduction="none"),
        "entropy": -(shares * shares.log()).sum(-1),
        "is_top1": (logits.argmax(-1) == targets).double(),
        "collision": (shares * shares).sum(-1),
    }
    with torch.no_grad():
        found = head.measures(hidden, targets, names)
    assert list(found) == list(names)
    for name in names:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), expected[name], atol=1e-5, rtol=1e-5)


def test_a_frozen_head_multiplies_twice_a_chunk_and_a_trained_one_three_times(monkeypatch):
    products = []
    real = head_module.linear
    monkeypatch.setattr(head_module, "linear", lambda *a: products.append(len(a[0])) or real(*a))
    monkeypatch.setattr(head_module, "CHUNK_POSITIONS", 10)
    for is_trained, logits_made in ((False, [10, 10, 5]), (True, [10, 10, 5, 5, 10, 10])):
        hidden, targets, _ = drawn(25)
        built(1.0, None, False, is_trained=is_trained).losses(hidden, targets).sum().backward()
        assert sorted(products) == sorted(logits_made)
        products.clear()


def test_extreme_logits_keep_their_gradient_finite():
    head = Head(torch.tensor([[1000.0], [-1000.0], [0.0]]))
    hidden = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    losses = head.losses(hidden, torch.tensor([0, 0, 2]))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0, 2000, float(torch.tensor(3.0).log())])
    assert hidden.grad.flatten().tolist() == pytest.approx([0, -2000, 0], abs=1e-3)


@pytest.mark.parametrize("is_trained", [False, True])
def test_no_position_is_no_loss(is_trained):
    hidden, targets, _ = drawn(0)
    head = built(1.0, None, False, is_trained=is_trained)
    assert head.losses(hidden, targets).shape == (0,)
    with torch.no_grad():
        assert head.losses(hidden, targets).shape == (0,)


def test_a_second_derivative_is_refused():
    hidden, targets, _ = drawn(3)
    losses = built(1.0, None, False, is_trained=False).losses(hidden, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()
