from __future__ import annotations

import logging

import pytest
import torch

from tokenclean.models.attention import backend_choice as attention_choice
from tokenclean.models.attention.backend_choice import (
    BUCKETS,
    OWN_KERNEL,
    AttentionCall,
    attention_by_definition,
    choose_kernel,
    select_kernel,
)
from tokenclean.models.attention.features import Features
from tokenclean.models.attention.varlen import FLASH_ATTN, FLEX, TORCH_VARLEN, installed_kernels

ALL = {FLASH_ATTN, TORCH_VARLEN, FLEX}
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


pytestmark = pytest.mark.usefixtures("torch_products")


@pytest.fixture(autouse=True)
def _no_remembered_trials():
    attention_choice.passes_trial.cache_clear()
    yield
    attention_choice.passes_trial.cache_clear()


@pytest.mark.parametrize(
    ("asked", "usable", "expected"),
    [
        ({"dtype": FP32}, {OWN_KERNEL}, OWN_KERNEL),
        ({"dtype": FP32, "has_softcap": True, "has_window": True}, {OWN_KERNEL}, OWN_KERNEL),
        ({"dtype": FP32, "has_gradient": True}, {OWN_KERNEL}, BUCKETS),
        ({"dtype": FP32, "has_dropout": True}, {OWN_KERNEL}, BUCKETS),
        ({"dtype": BF16}, {OWN_KERNEL}, BUCKETS),
        ({"dtype": FP32, "value_dim": 32}, {OWN_KERNEL}, BUCKETS),
        ({"dtype": BF16}, ALL, FLASH_ATTN),
        ({"dtype": FP16}, ALL, FLASH_ATTN),
        ({"dtype": FP16}, ALL - {FLASH_ATTN}, TORCH_VARLEN),
        ({"dtype": BF16}, {FLEX}, BUCKETS),
        ({"dtype": BF16}, set(), BUCKETS),
        ({"dtype": FP32}, ALL, BUCKETS),
        ({"dtype": FP64, "allow_bf16": True}, ALL, BUCKETS),
        ({"dtype": FP32, "allow_bf16": True}, ALL, FLASH_ATTN),
        ({"dtype": FP32, "allow_bf16": True}, {TORCH_VARLEN, FLEX}, TORCH_VARLEN),
        ({"dtype": FP32, "has_window": True}, ALL, FLEX),
        ({"dtype": FP32, "has_softcap": True}, ALL, FLEX),
        ({"dtype": FP32, "has_softcap": True}, {FLASH_ATTN, TORCH_VARLEN}, BUCKETS),
        ({"dtype": BF16, "has_softcap": True}, ALL, FLASH_ATTN),
        ({"dtype": BF16, "has_softcap": True}, {TORCH_VARLEN, FLEX}, FLEX),
        ({"dtype": BF16, "has_window": True}, {TORCH_VARLEN, FLEX}, TORCH_VARLEN),
        ({"dtype": BF16, "has_dropout": True}, ALL, FLASH_ATTN),
        ({"dtype": BF16, "has_dropout": True}, {TORCH_VARLEN, FLEX}, BUCKETS),
        ({"dtype": FP32, "has_dropout": True, "has_window": True}, ALL, BUCKETS),
        ({"dtype": BF16, "head_dim": 512, "value_dim": 512}, ALL, BUCKETS),
        ({"dtype": BF16, "head_dim": 20, "value_dim": 20}, ALL, BUCKETS),
        ({"dtype": BF16, "head_dim": 192, "value_dim": 128}, ALL, BUCKETS),
        ({"dtype": BF16, "head_dim": 192, "value_dim": 128, "has_window": True}, ALL, FLEX),
        ({"dtype": FP32, "head_dim": 8, "value_dim": 8, "has_window": True}, ALL, BUCKETS),
    ],
    ids=lambda given: str(sorted(given)) if isinstance(given, set) else str(given),  # the same in every worker
)
def test_the_choice(asked, usable, expected):
    assert choose_kernel(AttentionCall(CUDA, **asked), usable) == expected


def test_a_cpu_has_the_buckets_alone():
    assert installed_kernels(CPU) == frozenset()
    assert select_kernel(AttentionCall(CPU, BF16, allow_bf16=True)) == BUCKETS


def rounded(kernel, query, key, value, lengths, *, softcap=None, window=None, **_):
    """A kernel that does as it should, in bf16."""
    half = (t.bfloat16().float() for t in (query, key, value))
    return attention_by_definition(*half, lengths, Features(softcap=softcap, window=window)).to(query.dtype)


def without_window(kernel, *given, softcap=None, window=None, **_):
    return rounded(kernel, *given, softcap=softcap)


def without_softcap(kernel, *given, softcap=None, window=None, **_):
    return rounded(kernel, *given, window=window)


def mixing(kernel, query, key, value, lengths, **_):
    return rounded(kernel, query, key, value, [sum(lengths)], **_)


def without_gradient_of_keys(kernel, query, key, value, lengths, **_):
    return rounded(kernel, query, key + 0 * key.detach() - key + key.detach(), value, lengths, **_)


def failing(kernel, *given, **_):
    raise ValueError("no kernel image\nfor this device")


def failing_for_the_second_size(kernel, query, key, value, lengths, **_):
    if sum(lengths) != 320:
        raise RuntimeError("dynamic shapes")
    return rounded(kernel, query, key, value, lengths, **_)


def with_kernels(monkeypatch, **kernels) -> None:
    named = {"flash": FLASH_ATTN, "varlen": TORCH_VARLEN, "flex": FLEX}
    computing = {named[name]: function for name, function in kernels.items()}
    monkeypatch.setattr(attention_choice, "installed_kernels", lambda device: frozenset(computing))
    monkeypatch.setattr(
        attention_choice,
        "varlen_attention",
        lambda kernel, *given: computing[kernel](kernel, *given[:-1], **given[-1]._asdict()),
    )


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_kernel_that_agrees_is_taken_after_one_trial(dtype, monkeypatch, caplog):
    tried = []
    with_kernels(monkeypatch, flash=lambda *given, **asked: tried.append(0) or rounded(*given, **asked))
    call = AttentionCall(CPU, dtype, has_softcap=True, has_window=True, has_gradient=True, allow_bf16=True)
    with caplog.at_level(logging.WARNING, logger="tokenclean"):
        assert [select_kernel(call) for _ in range(3)] == [FLASH_ATTN] * 3
    assert len(tried) == 3  # packs in one trial
    assert not caplog.records


@pytest.mark.parametrize(
    "broken", [without_window, without_softcap, mixing, without_gradient_of_keys, failing, failing_for_the_second_size]
)
def test_a_kernel_that_fails_its_trial_gives_way_and_the_log_says_so(broken, monkeypatch, caplog):
    with_kernels(monkeypatch, flash=broken, flex=rounded)
    call = AttentionCall(CPU, BF16, has_softcap=True, has_window=True, has_gradient=True)
    with caplog.at_level(logging.WARNING, logger="tokenclean"):
        assert [select_kernel(call) for _ in range(2)] == [FLEX, FLEX]
    [record] = caplog.records
    assert "flash_attn varlen is not used for attention on cpu" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_flex_that_rounds_float32_gives_way(monkeypatch):
    with_kernels(monkeypatch, flex=rounded)
    assert select_kernel(AttentionCall(CPU, FP32, has_window=True)) == BUCKETS
    assert select_kernel(AttentionCall(CPU, BF16, has_window=True)) == FLEX


def test_a_trial_in_float32_is_not_of_tf32(monkeypatch):
    asked = []
    with_kernels(monkeypatch, flex=lambda *given, **_: asked.append(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        select_kernel(AttentionCall(CPU, FP32, has_window=True))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert asked == ["highest"]


def test_where_every_kernel_fails_the_buckets_stay(monkeypatch):
    with_kernels(monkeypatch, flash=failing, varlen=mixing, flex=failing)
    assert select_kernel(AttentionCall(CPU, BF16)) == BUCKETS


def test_a_trial_leaves_the_random_numbers_alone(monkeypatch):
    with_kernels(monkeypatch, flash=rounded)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    select_kernel(AttentionCall(CPU, BF16, has_gradient=True))
    assert torch.equal(torch.rand(3), expected)
