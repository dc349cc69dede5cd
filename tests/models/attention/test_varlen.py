"""The GPU kernels' callers, without a GPU: stand-ins keep to the documented meaning of each argument."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.varlen import varlen_attn

from tokenclean.models.attention import varlen
from tokenclean.models.attention.backend_choice import attention_by_definition
from tokenclean.models.attention.features import Features
from tokenclean.models.attention.varlen import (
    FLASH_ATTN,
    FLEX,
    TORCH_VARLEN,
    first_visible,
    varlen_attention,
    visible_blocks,
)

LENGTHS = (50, 7, 1, 33)


def draw(dtype=torch.float32, lengths=LENGTHS, key_heads=2, requires_grad=False):
    generator = torch.Generator().manual_seed(5)
    heads = (4, key_heads, key_heads)
    return [
        torch.randn(1, sum(lengths), h, 16, generator=generator).transpose(1, 2).to(dtype).requires_grad_(requires_grad)
        for h in heads
    ]


def stand_in(q, k, v, bounds, scale, left, softcap):
    """Causal attention of (T, heads, d) between ``bounds``; a query sees ``left`` keys before its own, -1: all."""
    assert q.dtype in (torch.bfloat16, torch.float16)
    assert bounds.dtype == torch.int32
    outputs = []
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        parts = [t[start:stop].float().transpose(0, 1)[None] for t in (q, k, v)]
        parts[0] = parts[0] * scale * q.shape[-1] ** 0.5
        window = None if left == -1 else left + 1
        outputs.append(attention_by_definition(*parts, [stop - start], Features(softcap=softcap, window=window))[0])
    return torch.cat(outputs).to(q.dtype)


def flash_attn_stand_in(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    assert causal
    assert max_seqlen_q == max_seqlen_k == max(LENGTHS)
    assert dropout_p == 0
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    return stand_in(q, k, v, cu_seqlens_q, softmax_scale, window_size[0], softcap or None)


def torch_varlen_stand_in(*given, **asked):
    bound = inspect.signature(varlen_attn).bind(*given, **asked)
    bound.apply_defaults()
    a = bound.arguments
    assert a["max_q"] == a["max_k"] == max(LENGTHS)
    assert a["window_size"][1] == 0
    assert a["query"].shape[1] == a["key"].shape[1] or a["enable_gqa"]
    return stand_in(a["query"], a["key"], a["value"], a["cu_seq_q"], a["scale"], a["window_size"][0], None)


torch_varlen_stand_in.__signature__ = inspect.signature(varlen_attn)


def torch_2_11_stand_in(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert query.shape[1] == key.shape[1]
    return stand_in(query, key, value, cu_seq_q, scale, window_size[0], None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 9])
@pytest.mark.parametrize(
    ("kernel", "softcap", "name", "function"),
    [
        (FLASH_ATTN, None, "_flash_attn_function", flash_attn_stand_in),
        (FLASH_ATTN, 2.0, "_flash_attn_function", flash_attn_stand_in),
        (TORCH_VARLEN, None, "varlen_attn", torch_varlen_stand_in),
        (TORCH_VARLEN, None, "varlen_attn", torch_2_11_stand_in),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_flash_kernels_are_asked_for_the_attention_of_the_definition(
    kernel, softcap, name, function, window, dtype, monkeypatch
):
    monkeypatch.setattr(varlen, name, function if name == "varlen_attn" else lambda: function)
    tensors = draw(dtype, requires_grad=True)
    found = varlen_attention(kernel, *tensors, LENGTHS, Features(0.3, softcap=softcap, window=window))
    assert found.shape == (1, sum(LENGTHS), 4, 16)
    assert found.dtype == dtype
    query, key, value = (t.detach().float() for t in tensors)
    expected = attention_by_definition(query * 0.3 * 4, key, value, LENGTHS, Features(softcap=softcap, window=window))
    assert (found.float() - expected).abs().max() < 0.04
    found.sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in tensors)


def test_kernels_refuse_what_they_do_not_know():
    with pytest.raises(NotImplementedError, match="soft cap"):
        varlen_attention(TORCH_VARLEN, *draw(), LENGTHS, Features(softcap=2.0))
    with pytest.raises(NotImplementedError, match="dropout"):
        varlen_attention(TORCH_VARLEN, *draw(), LENGTHS, Features(dropout=0.1))
    with pytest.raises(NotImplementedError, match="dropout"):
        varlen_attention(FLEX, *draw(), LENGTHS, Features(dropout=0.1))


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.one_of(st.none(), st.integers(1, 50)),
    st.sampled_from([1, 4, 16]),
)
def test_visible_blocks_are_those_of_the_full_mask(lengths, window, block):
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place = torch.arange(sum(lengths))
    distance = place[:, None] - place[None, :]
    mask = (documents[:, None] == documents[None, :]) & (distance >= 0) & (distance < (window or 10**6))
    in_part, as_a_whole = visible_blocks(first_visible(lengths, window), block)
    edges, diagonal = np.arange(0, len(place), block), np.eye(-(-len(place) // block), dtype=bool)
    is_some, is_all = (
        operation.reduceat(operation.reduceat(mask.numpy(), edges, axis=0), edges, axis=1)
        for operation in (np.logical_or, np.logical_and)
    )
    is_all &= ~diagonal  # always looked at token by token
    assert np.array_equal(as_a_whole, is_all)
    assert np.array_equal(in_part, is_some & ~is_all)


def check_flex(lengths, window, softcap, key_heads):
    tensors = draw(lengths=lengths, key_heads=key_heads)
    with torch.no_grad():
        found = varlen_attention(FLEX, *tensors, lengths, Features(softcap=softcap, window=window))
        expected = attention_by_definition(*tensors, lengths, Features(softcap=softcap, window=window))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("window", "softcap", "key_heads"), [(None, 2.0, 2), (9, None, 4), (9, 2.0, 2)])
def test_flex_uncompiled_gives_the_attention_of_the_definition(window, softcap, key_heads, monkeypatch):
    from torch.nn.attention import flex_attention as flex

    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(varlen, "_flex_function", lambda: flex.flex_attention)
    check_flex(LENGTHS, window, softcap, key_heads)


def test_flex_is_compiled_twice_whatever_the_packs(monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(flex_attention, backend=counter)
    monkeypatch.setattr(varlen, "_flex_function", lambda: compiled)
    # Below one block, exactly one, exactly two, within the third, many.
    for lengths in [(30, 9), (100, 28), (1,), (200, 56), (150, 1, 140, 29), (500, 260), (24, 9, 40)]:
        check_flex(lengths, 16, None, 2)
    assert counter.frame_count == 2


def test_flex_is_never_uncompiled_for_its_many_forms(monkeypatch):
    """Beyond torch's limit, 8 by default, every call would be traced again."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, backend=CompileCounterWithBackend("eager"), fullgraph=True)
    monkeypatch.setattr(varlen, "_flex_function", lambda: compiled)
    for dtype in (torch.float32, torch.float64):
        for window, softcap in ((9, None), (None, 2.0), (9, 2.0)):
            for lengths in ((300,), (50, 7)):  # fullgraph raises where the limit is reached
                features = Features(softcap=softcap, window=window)
                varlen_attention(FLEX, *draw(dtype, lengths), lengths, features)


@pytest.mark.parametrize(("tokens", "padded"), [(1, 256), (128, 256), (256, 256), (257, 384), (4096, 4096)])
def test_flex_gets_whole_blocks_and_at_least_two(tokens, padded):
    assert varlen.flex_tokens(tokens) == padded


@pytest.mark.slow
@pytest.mark.parametrize(("window", "softcap"), [(None, 2.0), (48, None)])
def test_flex_compiled_gives_the_attention_of_the_definition(window, softcap):
    torch._dynamo.reset()  # on a CPU, torch 2.13 cannot compile it for a size it learns of later
    check_flex((150, 1, 140, 29), window, softcap, 2)
