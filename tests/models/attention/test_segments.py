from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from tokenclean.models.attention import segments as attention
from tokenclean.models.attention.backend_choice import AttentionCall, attention_by_definition, select_kernel
from tokenclean.models.attention.features import Features
from tokenclean.models.attention.length_buckets import starts_of
from tokenclean.models.attention.segments import NAME, segment_attention, segments
from tokenclean.models.attention.varlen import FLASH_ATTN
from tokenclean.models.causal_lm import CausalLM

pytestmark = pytest.mark.usefixtures("products")

LENGTHS = (31, 31, 31, 24, 24, 5, 1, 1)


with_each_kernel = pytest.mark.parametrize("products", ["torch's products", "block products"], indirect=True)


class Model:
    """All that ``segments`` asks of a model."""

    def __init__(self) -> None:
        self.config = type("Config", (), {"_attn_implementation": "sdpa"})()


def attend(tensors, lengths, allow_bf16=False, **asked):
    with segments(Model(), lengths, allow_bf16):
        return segment_attention(torch.nn.Identity(), *tensors, None, **asked)[0]


def draw(lengths, heads=4, key_heads=2, width=8, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, sum(lengths), h, width) for h in (heads, key_heads, key_heads)]
    drawn = [torch.randn(*shape, generator=generator).transpose(1, 2) for shape in shapes]
    return [t.requires_grad_(requires_grad) for t in drawn]


def furthest(found, expected) -> float:
    return float((found - expected).detach().abs().max())


def gradients(output, tensors):
    pull = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad(output, tensors, pull)


@pytest.fixture
def medium():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def seen(monkeypatch):
    """What each call of SDPA is given: shape of its queries, shape of its mask, precision of products there and in
    the gradient."""
    calls = []

    def spy(q, k, v, attn_mask=None, **given):
        forward = torch.get_float32_matmul_precision()
        calls.append({"q": tuple(q.shape), "mask": None if attn_mask is None else attn_mask.shape, "forward": forward})
        here = calls[-1]
        output = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, **given)
        if output.requires_grad:
            output.register_hook(lambda _: here.update(backward=torch.get_float32_matmul_precision()))
        return output

    monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
    return calls


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    st.one_of(st.none(), st.integers(1, 50)),
    st.sampled_from([None, 2.0]),
    st.sampled_from([0.0, 0.125, 0.9]),
    st.sampled_from([4, 256]),
)
def test_each_segment_gets_the_attention_of_the_definition(lengths, heads, window, softcap, padding, block):
    """And its gradient, on a CPU's plan and on a GPU's, by blocks shorter and longer than the rows."""
    tensors = draw(lengths, *heads, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention._PADDING, "cpu", padding)
        patch.setattr(attention, "_BLOCK_QUERIES", block)
        found = attend(tensors, lengths, softcap=softcap, sliding_window=window)
    expected = attention_by_definition(*tensors, lengths, Features(softcap=softcap, window=window))
    assert found.is_contiguous()
    assert furthest(found, expected) < 1e-5
    for g, wanted in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert furthest(g, wanted) < 1e-4


@with_each_kernel
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("padding", [0.0, 0.125])
def test_nothing_of_one_conversation_reaches_another(window, softcap, padding, monkeypatch):
    monkeypatch.setitem(attention._PADDING, "cpu", padding)
    tensors = draw(LENGTHS)
    expected = attend(tensors, LENGTHS, softcap=softcap, sliding_window=window)
    for start, length in zip(starts_of(LENGTHS), LENGTHS, strict=True):
        changed = [t.clone() for t in tensors]
        for t in changed:
            t[:, :, start : start + length] = torch.nan
        found = attend(changed, LENGTHS, softcap=softcap, sliding_window=window)
        same = torch.ones(sum(LENGTHS), dtype=torch.bool)
        same[start : start + length] = False
        assert torch.equal(found[:, same], expected[:, same])
        assert found[:, ~same].isnan().all()


@with_each_kernel
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_on_a_cpu_a_segment_is_the_same_in_any_company(window, softcap):
    tensors = draw(LENGTHS)
    together = attend(tensors, LENGTHS, softcap=softcap, sliding_window=window)
    for start, length in zip(starts_of(LENGTHS), LENGTHS, strict=True):
        alone = [t[:, :, start : start + length] for t in tensors]
        found = attend(alone, [length], softcap=softcap, sliding_window=window)
        assert furthest(found, together[:, start : start + length]) < (1e-6 if softcap else 1e-30)


def test_equal_lengths_share_a_call_and_a_gpus_plan_fills_up(seen, monkeypatch):
    attend(draw(LENGTHS), LENGTHS)
    assert [call["q"] for call in seen] == [(3, 4, 31, 8), (2, 4, 24, 8), (1, 4, 5, 8), (2, 4, 1, 8)]
    monkeypatch.setitem(attention._PADDING, "cpu", 0.125)
    seen.clear()
    attend(draw(LENGTHS), LENGTHS)
    assert [call["q"] for call in seen] == [(5, 4, 31, 8), (1, 4, 5, 8), (2, 4, 1, 8)]


def test_a_window_on_a_long_row_takes_no_mask_of_the_rows_length(seen):
    lengths, window = [1000], 100
    found = attend(draw(lengths), lengths, sliding_window=window)
    assert furthest(found, attention_by_definition(*draw(lengths), lengths, Features(window=window))) < 1e-5
    assert max(call["mask"][1] for call in seen) == 256 + window - 1
    assert sum(call["q"][2] for call in seen) == 1000


def test_a_window_that_no_row_reaches_needs_no_mask(seen):
    attend(draw(LENGTHS), LENGTHS, sliding_window=31)
    assert all(call["mask"] is None for call in seen)


@pytest.mark.parametrize("asked", [{}, {"sliding_window": 7}])
def test_products_are_float32_under_a_lower_precision_there_and_in_the_gradient(asked, seen, medium):
    tensors = draw(LENGTHS, requires_grad=True)
    with torch.no_grad():
        plain = attend(tensors, LENGTHS, **asked)
    found = attend(tensors, LENGTHS, **asked)
    found.sum().backward()
    assert all(call["forward"] == "highest" for call in seen)
    once = len(seen) // 3  # without gradient, with one, and again in the backward pass
    assert [call.get("backward") for call in seen] == [None] * (2 * once) + ["highest"] * once
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.equal(found, plain)


def test_gradients_do_not_change_with_the_precision(medium):
    tensors = draw(LENGTHS, requires_grad=True)
    tensors[1].requires_grad_(False)
    wanted = [tensors[0], tensors[2]]
    under_medium = gradients(attend(tensors, LENGTHS, softcap=2.0), wanted)
    torch.set_float32_matmul_precision("highest")
    under_highest = gradients(attend(tensors, LENGTHS, softcap=2.0), wanted)
    assert all(torch.equal(a, b) for a, b in zip(under_medium, under_highest, strict=True))


def test_what_the_gradient_cannot_give_is_refused(medium):
    tensors = draw(LENGTHS, requires_grad=True)
    output = attend(tensors, LENGTHS).sum()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(output, tensors, create_graph=True)


def test_a_gradient_taken_again_is_the_same(medium):
    tensors = draw(LENGTHS, requires_grad=True)
    output = attend(tensors, LENGTHS).sum()
    first = torch.autograd.grad(output, tensors, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(output, tensors), strict=True))


@pytest.mark.parametrize("asked", [{}, {"sliding_window": 7}, {"softcap": 2.0}])
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_dropout_drops_shares_of_attention(asked, precision, medium):
    torch.set_float32_matmul_precision(precision)
    query, key, value = draw((200, 200, 3), requires_grad=True)
    torch.manual_seed(0)
    found = attend((query, key, torch.ones_like(value)), (200, 200, 3), dropout=0.25, **asked)
    assert abs(found.mean() - 1) < 0.02  # what is kept counts 1 / (1 - 0.25)
    assert found.std() > 0.05
    [gradient] = torch.autograd.grad(found.square().sum(), [query])
    assert gradient.abs().max() > 0.01


@with_each_kernel
def test_features_not_known_are_refused():
    tensors = draw(LENGTHS)
    with segments(Model(), LENGTHS):
        with pytest.raises(NotImplementedError, match="s_aux"):
            segment_attention(torch.nn.Identity(), *tensors, None, s_aux=torch.zeros(4))
        with pytest.raises(NotImplementedError, match="mask"):
            segment_attention(torch.nn.Identity(), *tensors, torch.zeros(1))
        with pytest.raises(NotImplementedError, match="flat"):
            segment_attention(torch.nn.Identity(), *draw(LENGTHS[1:]), None)
    with pytest.raises(NotImplementedError, match="flat"):
        segment_attention(torch.nn.Identity(), *tensors, None)


def test_segments_end_with_their_block_and_may_nest():
    model = Model()
    with segments(model, [3, 0, 4]):
        assert model.config._attn_implementation == NAME
        with contextlib.suppress(ValueError), segments(model, [5], allow_bf16=True):
            assert attention._pack == attention._Pack((5,), True)
            raise ValueError("inner")
        assert attention._pack == attention._Pack((3, 4), False)
    assert model.config._attn_implementation == "sdpa"
    assert attention._pack.lengths == ()


@pytest.mark.parametrize("allow_bf16", [False, True])
def test_a_gpu_kernel_gets_the_flat_pack_and_the_leave_to_round(allow_bf16, monkeypatch):
    asked = []
    monkeypatch.setattr(attention, "select_kernel", lambda call: asked.append(call) or FLASH_ATTN)

    def by_definition(kernel, *given):
        *given, features = given
        assert (kernel, features.scaling, features.dropout) == (FLASH_ATTN, 0.5, 0.0)
        return attention_by_definition(*given, features._replace(scaling=None))

    monkeypatch.setattr(attention, "varlen_attention", by_definition)
    tensors = draw(LENGTHS)
    found = attend(tensors, LENGTHS, allow_bf16, scaling=0.5, softcap=2.0, sliding_window=7)
    assert torch.equal(found, attention_by_definition(*tensors, LENGTHS, Features(softcap=2.0, window=7)))
    attend(tensors, LENGTHS, allow_bf16, scaling=0.5, sliding_window=max(LENGTHS))
    call, without = asked
    assert not without.has_window  # no row reaches beyond it
    assert (call.allow_bf16, call.has_softcap, call.has_window, call.has_gradient) == (allow_bf16, True, True, False)
    assert (call.head_dim, call.value_dim, call.dtype) == (8, 8, torch.float32)


def test_the_kernel_in_words(monkeypatch):
    assert select_kernel(AttentionCall(torch.device("cpu"), torch.float32, allow_bf16=True)) == "rectangles, SDPA"
    monkeypatch.setattr("tokenclean.models.attention.backend_choice.installed_kernels", lambda device: {FLASH_ATTN})
    monkeypatch.setattr("tokenclean.models.attention.backend_choice.passes_trial", lambda kernel, call: True)
    assert select_kernel(AttentionCall(torch.device("cuda"), torch.float32, allow_bf16=True)) == "flash_attn varlen"
    assert select_kernel(AttentionCall(torch.device("cuda"), torch.float32)) == "rectangles, SDPA"


@with_each_kernel
def test_compiled_layers_serve_any_pack_of_the_same_size(small_model, plain_losses):
    """Compiled once for a number of tokens, whatever conversations these are, and never across the attention."""
    from torch._dynamo.testing import CompileCounter

    model = small_model("mistral")
    causal_lm = CausalLM(model)
    torch._dynamo.reset()
    counter = CompileCounter()
    for layer in model.model.layers:
        layer.compile(backend=counter, dynamic=False)
    graphs = []
    with torch.no_grad():
        for lengths in ([50, 30, 16], [96], [32, 32, 20, 12], [33, 31, 30, 1, 1]):
            ids = torch.randint(3, 200, (96,), generator=torch.Generator().manual_seed(len(lengths)))
            positions = torch.cat(
                [torch.arange(s + 1, s + n) for s, n in zip(starts_of(lengths), lengths, strict=True)]
            )
            losses = causal_lm.losses(ids, lengths, positions)
            graphs.append(counter.frame_count)
            assert furthest(losses, plain_losses(small_model("mistral"), ids, lengths)) < 1e-4
    torch._dynamo.reset()
    assert graphs[0] > 0
    assert graphs == graphs[:1] * 4
