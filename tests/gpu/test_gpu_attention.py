"""The attention kernels of a GPU against the definition in float32, forward and backward."""

from __future__ import annotations

import pytest
import torch

from tokenclean.models.attention.backend_choice import BUCKETS, AttentionCall, attention_by_definition, select_kernel
from tokenclean.models.attention.features import Features
from tokenclean.models.attention.segments import segment_attention, segments
from tokenclean.models.attention.varlen import FLASH_ATTN, FLEX, TORCH_VARLEN, installed_kernels, varlen_attention

LENGTHS = ((150, 1, 40, 129), (61, 60, 90, 7, 7, 300), (24, 9, 40))
WINDOW, SOFTCAP = 48, 4.0


class Model:
    """All that ``segments`` asks of a model."""

    def __init__(self) -> None:
        self.config = type("Config", (), {"_attn_implementation": "sdpa"})()


def draw(lengths, width=64, dtype=torch.float32, key_heads=2):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, sum(lengths), heads, width) for heads in (4, key_heads, key_heads)]
    drawn = [torch.randn(*shape, generator=generator).transpose(1, 2) for shape in shapes]
    return [t.to("cuda", dtype).requires_grad_() for t in drawn]


def errors(attend, tensors, lengths, softcap, window) -> list[float]:
    """Largest difference of the output and of each gradient."""
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = attention_by_definition(*exact, lengths, Features(softcap=softcap, window=window))
    found = attend(tensors)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to("cuda")
    pairs = [(found, expected)]
    gradients = torch.autograd.grad(found, tensors, pull.to(found.dtype))
    pairs += zip(gradients, torch.autograd.grad(expected, exact, pull.double()), strict=True)
    return [float((a.double() - b).abs().max() / (1 + b.abs().max())) for a, b in pairs]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("softcap", [None, SOFTCAP])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "float32"])
@pytest.mark.parametrize("kernel", [FLASH_ATTN, TORCH_VARLEN, FLEX])
def test_a_kernel_gives_the_attention_of_the_definition(kernel, dtype, softcap, window, lengths):
    if kernel not in installed_kernels(torch.device("cuda")):
        pytest.skip(f"{kernel} is not installed")
    if kernel == TORCH_VARLEN and softcap is not None:
        pytest.skip("not offered")
    tensors = draw(lengths, dtype=dtype)
    found = errors(
        lambda given: varlen_attention(kernel, *given, lengths, Features(softcap=softcap, window=window)),
        tensors,
        lengths,
        softcap,
        window,
    )
    assert max(found) < (1e-5 if kernel == FLEX and dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("softcap", [None, SOFTCAP])
def test_float32_stays_float32(softcap, window):
    lengths = LENGTHS[1]

    def attend(tensors):
        with segments(Model(), lengths):
            return segment_attention(torch.nn.Identity(), *tensors, None, softcap=softcap, sliding_window=window)[0]

    assert max(errors(attend, draw(lengths), lengths, softcap, window)) < 1e-5


def test_bf16_without_window_takes_a_kernel_for_packs():
    device = torch.device("cuda")
    if torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("needs Ampere or newer")
    for has_gradient in (False, True):
        call = AttentionCall(device, torch.bfloat16, has_gradient=has_gradient)
        assert select_kernel(call) != BUCKETS
