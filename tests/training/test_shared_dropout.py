from __future__ import annotations

import pytest
import torch
from small_llama import small_llama

from tokenclean.models.causal_lm import CausalLM
from tokenclean.recipe import LoraSettings
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.lean_layers import SharedDropout, keep_mask, share_dropout

IDS = torch.randint(3, 61, (1, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return add_fresh_lora(small_llama(), LoraSettings(rank=4, dropout=0.4), None).train()


def test_a_tensor_that_comes_again_at_once_gets_the_same_mask_and_others_get_their_own():
    torch.manual_seed(0)
    dropout, x = SharedDropout(0.5), torch.ones(1000)
    first = dropout(x)
    assert dropout(x) is first
    assert not torch.equal(dropout(torch.ones(1000)), first)
    assert not torch.equal(dropout(x), first)  # another tensor came between
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert 400 < int((first == 0).sum()) < 600


def test_a_tensor_that_was_changed_meanwhile_is_another_one():
    dropout, x = SharedDropout(0.5), torch.ones(1000)
    first = dropout(x)
    x.mul_(3)
    assert set(dropout(x).unique().tolist()) == {0.0, 6.0}
    assert set(first.unique().tolist()) == {0.0, 2.0}


def test_a_result_without_gradient_is_not_given_where_one_is_needed():
    dropout, x = SharedDropout(0.5), torch.ones(10, requires_grad=True)
    with torch.no_grad():
        assert not dropout(x).requires_grad
    assert dropout(x).requires_grad


def test_nothing_is_dropped_in_eval_mode_or_at_rate_0():
    x = torch.ones(100)
    assert SharedDropout(0.5).eval()(x) is x
    assert SharedDropout(0.0)(x) is x


def test_nothing_is_held_after_letting_go():
    dropout = SharedDropout(0.5)
    dropout(torch.ones(3))
    dropout.unload()
    assert dropout._last is None


def drawn_inputs(model, monkeypatch) -> list[int]:
    """The size of each tensor for which a mask is drawn in a forward pass."""
    seen = []
    real = torch.nn.functional.dropout

    def watched(x, *arguments, **options):
        if options.get("p", arguments[0] if arguments else 0):
            seen.append(x.shape[-1])
        return real(x, *arguments, **options)

    def watched_mask(shape, rate, device):
        seen.append(shape[-1])
        return keep_mask(shape, rate, device)

    monkeypatch.setattr("tokenclean.training.lean_layers.keep_mask", watched_mask)
    monkeypatch.setattr("torch.nn.functional.dropout", watched)
    model(input_ids=IDS)
    return seen


def test_a_layer_draws_four_masks_instead_of_seven(model, monkeypatch):
    assert drawn_inputs(model, monkeypatch) == [32, 32, 32, 32, 32, 32, 48] * 2
    (shared,) = share_dropout(model)
    assert shared.rate == 0.4
    assert drawn_inputs(model, monkeypatch) == [32, 32, 32, 48] * 2


def test_one_module_alone_sees_what_plain_dropout_gives_it(model):
    """With one mask drawn for each input, the first module of each input has plain dropout's own distribution."""
    share_dropout(model)
    layer = model.base_model.model.model.layers[0].self_attn.v_proj
    with torch.no_grad():
        layer.lora_B["round"].weight.normal_()
        x = torch.randn(1, 64, 32)
        model.eval()
        expected = layer(x)
        model.train()
        torch.manual_seed(1)
        samples = torch.stack([layer(x.clone()) for _ in range(3000)])
    error = (samples.mean(0) - expected).abs() / (samples.std(0) / 3000**0.5 + 1e-6)
    assert float(error.max()) < 6


def test_eval_losses_are_untouched_and_every_adapter_gets_a_gradient(model):
    causal_lm = CausalLM(model)
    positions = torch.arange(1, 12)
    model.eval()
    with torch.no_grad():
        before = causal_lm.losses(IDS[0], [12], positions)
        share_dropout(model)
        assert torch.equal(causal_lm.losses(IDS[0], [12], positions), before)
    model.train()
    causal_lm.losses(IDS[0], [12], positions).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("rate", [1e-5, 0.1, 0.5, 0.999])
def test_a_mask_drops_the_share_that_it_says(rate):
    torch.manual_seed(0)
    mask, dropped = keep_mask(torch.Size([1000, 1001]), rate)
    mask = mask.bool()
    assert mask.shape == (1000, 1001)
    assert abs(dropped - rate) <= 2**-17
    count = mask.numel()
    assert abs(int((~mask).sum()) - dropped * count) < 6 * (dropped * (1 - dropped) * count) ** 0.5 + 1e-9
    neighbours = (~mask[:, 1:] & ~mask[:, :-1]).float().mean()
    assert abs(float(neighbours) - dropped**2) < 6 * (dropped**2 / count) ** 0.5 + 1e-9


def test_the_mean_is_kept_and_the_gradient_goes_through_the_same_mask():
    torch.manual_seed(0)
    x = torch.ones(100_000, requires_grad=True)
    dropped = SharedDropout(0.1)(x)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())
    assert abs(float(dropped.detach().mean()) - 1) < 0.01
