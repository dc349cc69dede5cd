from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tokenclean.models import precision
from tokenclean.models.attention.features import Features
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.kernels import cpu as cpu_kernels
from tokenclean.models.kernels.cpu import (
    has_bf16_kernels,
    linear,
    measures,
    missing_kernels,
    pack,
    segment_attention,
)

needs_kernels = pytest.mark.skipif(missing_kernels() is not None, reason="no CPU kernels on this machine")
needs_bf16 = pytest.mark.skipif(not has_bf16_kernels(), reason="this processor has no bf16 instructions")
dtypes = pytest.mark.parametrize("as_bf16", [False, pytest.param(True, marks=needs_bf16)])


def rounded(tensor: torch.Tensor, as_bf16: bool) -> torch.Tensor:
    return (tensor.bfloat16() if as_bf16 else tensor).double()


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_kernels
@dtypes
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 140), st.integers(1, 90), st.integers(1, 200), st.booleans())
def test_linear_is_the_product_of_the_rounded_factors(as_bf16, rows, depth, columns, has_bias):
    x, weight = numbers(rows, depth), numbers(columns, depth, seed=1)
    bias = numbers(columns, seed=2) if has_bias else None
    expected = rounded(x, as_bf16) @ rounded(weight, as_bf16).T
    expected = expected if bias is None else expected + bias
    found = linear(x, pack(weight, as_bf16=as_bf16), columns, bias)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


@needs_kernels
@dtypes
def test_linear_adds_up_depths_beyond_one_block(as_bf16):
    x, weight = numbers(3, 5001), numbers(70, 5001, seed=1)
    found = linear(x[None], pack(weight, as_bf16=as_bf16), 70, None)
    assert found.shape == (1, 3, 70)
    expected = rounded(x, as_bf16) @ rounded(weight, as_bf16).T
    torch.testing.assert_close(found[0].double(), expected, atol=2e-3, rtol=1e-5)


@needs_kernels
@dtypes
def test_a_row_is_computed_alike_whatever_stands_beside_it_and_however_many_threads(as_bf16):
    x, packed = numbers(300, 96), pack(numbers(130, 96, seed=1), as_bf16=as_bf16)
    whole = linear(x, packed, 130, None)
    assert torch.equal(whole[:70], linear(x[:70].clone(), packed, 130, None))
    assert torch.equal(whole[131:132], linear(x[131:132].clone(), packed, 130, None))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(whole, linear(x, packed, 130, None))
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@dtypes
@pytest.mark.parametrize(("scale", "softcap", "has_bias"), [(1.0, None, False), (0.25, None, True), (1.0, 4.0, True)])
@pytest.mark.parametrize("vocabulary", [5, 64, 1000])
def test_measures_are_those_of_the_full_logits(vocabulary, scale, softcap, has_bias, as_bf16):
    hidden, weight = numbers(100, 33) * 2, numbers(vocabulary, 33, seed=1)
    bias = numbers(vocabulary, seed=2) if has_bias else None
    targets = torch.randint(0, vocabulary, (100,), generator=torch.Generator().manual_seed(3))
    logits = rounded(hidden, as_bf16) @ rounded(weight, as_bf16).T
    logits = (logits if bias is None else logits + bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    found = measures(
        hidden, pack(weight, as_bf16=as_bf16), targets, vocabulary, bias=bias, scale=scale, softcap=softcap
    )
    log_shares = logits.log_softmax(-1)
    torch.testing.assert_close(found[0].double(), cross_entropy(logits, targets, reduction="none"), atol=2e-5, rtol=0)
    torch.testing.assert_close(found[1].double(), -(log_shares.exp() * log_shares).sum(-1), atol=2e-5, rtol=0)
    assert torch.equal(found[2] == 1, logits.argmax(-1) == targets)
    torch.testing.assert_close(found[3].double(), log_shares.exp().square().sum(-1), atol=0, rtol=1e-5)


@needs_kernels
def test_huge_logits_and_certain_ones_stay_finite_and_nan_shows():
    hidden = torch.tensor([[300.0], [-300.0], [0.0], [float("nan")]])
    weight = torch.arange(70.0)[:, None]
    found = measures(hidden, pack(weight, as_bf16=False), torch.tensor([69, 69, 3, 0]), 70)
    assert found[0, 0] == 0
    assert found[0, 1] == pytest.approx(69 * 300)
    assert found[0, 2] == pytest.approx(float(torch.tensor(70.0).log()), abs=1e-6)
    assert found[1].tolist()[:3] == pytest.approx([0, 0, float(torch.tensor(70.0).log())], abs=1e-5)
    assert found[2].tolist()[:3] == [1, 0, 1]
    assert found[3].tolist()[:3] == pytest.approx([1, 1, 1 / 70], abs=1e-6)
    assert found[0, 3].isnan()


def attention_oracle(q, k, v, lengths, scale, softcap, window):
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    outputs, start = [], 0
    for length in lengths:
        a, b, c = (t[:, :, start : start + length].double() for t in (q, k, v))
        logits = a @ b.transpose(2, 3) * scale
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        visible = (distance >= 0) & (distance < (window or length))
        outputs.append(logits.masked_fill(~visible, float("-inf")).softmax(-1) @ c)
        start += length
    return torch.cat(outputs, 2).transpose(1, 2)


@needs_kernels
@pytest.mark.parametrize(("as_bf16", "tolerance"), [(False, 2e-5), pytest.param(True, 0.06, marks=needs_bf16)])
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (3.0, None), (None, 10), (2.0, 70)])
@pytest.mark.parametrize(
    ("heads", "key_heads", "width", "lengths"),
    [(6, 2, 64, [7, 1, 130, 64, 65]), (4, 4, 33, [100, 3]), (2, 1, 8, [300]), (3, 3, 16, [5] * 20)],
)
def test_attention_is_softmax_over_the_visible_keys(
    heads, key_heads, width, lengths, softcap, window, as_bf16, tolerance
):
    tokens = sum(lengths)
    q = numbers(1, tokens, heads, width).transpose(1, 2) * 2
    k, v = numbers(1, key_heads, tokens, width, seed=1), numbers(1, tokens, key_heads, width, seed=2).transpose(1, 2)
    found = segment_attention(q, k, v, lengths, Features(0.3, softcap=softcap, window=window), as_bf16)
    assert found.shape == (1, tokens, heads, width)
    expected = attention_oracle(q, k, v, lengths, 0.3, softcap, window)
    assert float((found.double() - expected).abs().max()) < tolerance


@needs_kernels
def test_attention_of_a_segment_does_not_depend_on_the_others():
    q, k, v = (numbers(1, 2, 150, 16, seed=seed) for seed in range(3))
    whole = segment_attention(q, k, v, [40, 110], Features(0.25))
    alone = segment_attention(q[:, :, 40:], k[:, :, 40:], v[:, :, 40:], [110], Features(0.25))
    assert torch.equal(whole[:, 40:], alone)


@needs_kernels
def test_what_does_not_fit_is_refused():
    packed = pack(numbers(10, 6), as_bf16=False)
    with pytest.raises(RuntimeError, match="does not fit"):
        linear(numbers(2, 5), packed, 10, None)
    with pytest.raises(RuntimeError, match="does not have 100 columns"):
        linear(numbers(2, 6), packed, 100, None)
    with pytest.raises(RuntimeError, match="hold 3 tokens, the pack 4"):
        segment_attention(*(numbers(1, 1, 4, 2) for _ in range(3)), [3], Features(1.0))


def reason_in_a_new_process(tmp_path, **environment: str) -> str:
    program = "from tokenclean.models.kernels.cpu import missing_kernels; print(missing_kernels())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TOKENCLEAN_CACHE": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_without_a_compiler_the_log_says_so_and_torch_serves(tmp_path):
    assert "no C++ compiler found" in reason_in_a_new_process(tmp_path, CXX="no-such-compiler")
    assert reason_in_a_new_process(tmp_path, TOKENCLEAN_KERNELS="off") == "TOKENCLEAN_KERNELS=off"
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are for Linux")
def test_a_compiler_that_fails_is_told(tmp_path):
    assert "failed" in reason_in_a_new_process(tmp_path, CXX="false")


@needs_kernels
def test_kernels_that_disagree_with_torch_are_not_used(monkeypatch, caplog):
    monkeypatch.setattr(cpu_kernels, "linear", lambda *given: linear(*given) + 1)
    with caplog.at_level(logging.WARNING, logger="tokenclean"):
        reason = missing_kernels.__wrapped__()
    assert reason == "their products differ from torch's on this processor"
    assert reason in caplog.text


@pytest.mark.parametrize("policy", ["safe", "fast"])
def test_without_bf16_instructions_every_policy_computes_in_float32(policy, small_model, pack, monkeypatch):
    for module in (precision, cpu_kernels):
        monkeypatch.setattr(module, "has_bf16_kernels", lambda: False)
    monkeypatch.setattr("tokenclean.models.device.cpu_multiplies_bf16", lambda: False)
    # Such a processor multiplies in float32 whatever torch is allowed; one that has the instructions would not.
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda allowed: None)
    causal_lm = CausalLM(small_model("gemma2"))
    with torch.no_grad():
        with causal_lm.precision("exact"):
            exact = causal_lm.losses(*pack)
            assert "in float32" not in causal_lm.kernel
        with causal_lm.precision(policy):
            assert torch.equal(causal_lm.losses(*pack), exact)
            assert causal_lm.kernel.endswith("products in float32")
    with causal_lm.precision(policy):
        assert not any("forward" in vars(module) for module in causal_lm.body.modules())


@needs_kernels
def test_a_refusal_of_bf16_leaves_the_float32_kernels_and_is_told(caplog, monkeypatch):
    check = cpu_kernels._check

    def refuse(*, as_bf16):
        if as_bf16:
            raise RuntimeError("only supported on X64 when\n`amx` is supported")
        check(as_bf16=as_bf16)

    monkeypatch.setattr(cpu_kernels, "_check", refuse)
    monkeypatch.setattr(cpu_kernels, "cpu_multiplies_bf16", lambda: True)
    with caplog.at_level(logging.INFO, "tokenclean"):
        assert cpu_kernels.missing_kernels.__wrapped__() is None
        assert cpu_kernels.has_bf16_kernels.__wrapped__() is False
    assert "(only supported on X64 when `amx` is supported): every precision computes in float32" in caplog.text
