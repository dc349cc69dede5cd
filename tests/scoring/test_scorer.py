from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from tokenclean.errors import NonFiniteError
from tokenclean.models import precision
from tokenclean.models.kernels.cpu import missing_kernels
from tokenclean.pool.conversation import Conversation, Turn
from tokenclean.ragged import Ragged
from tokenclean.scoring import token_losses
from tokenclean.scoring.scorer import FURTHER_COLUMNS, Scorer, flat_pack
from tokenclean.tokens.tokenize import TokenizedPool, tokenize_pool

VOCABULARY = 97


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def pool_of(rows: list[np.ndarray], labels: list[np.ndarray]) -> TokenizedPool:
    """A pool of ids and targets; the columns of characters are empty shells."""
    input_ids = Ragged.from_rows(rows, np.int64)
    spans = input_ids.with_values(np.zeros(len(input_ids.values), np.int32))
    return TokenizedPool(
        input_ids=input_ids,
        is_response=Ragged.from_rows(labels, np.bool_),
        char_start=spans,
        char_end=spans,
        ids=tuple(f"row-{i}" for i in range(len(rows))),
        sources=("test",) * len(rows),
        contents=((),) * len(rows),
        is_truncated=np.zeros(len(rows), bool),
        unusable=(),
    )


def random_pool(seed: int, lengths: list[int], share: float = 0.5) -> TokenizedPool:
    random = np.random.default_rng(seed)
    labels = [random.random(n) < share for n in lengths]
    for row in labels:
        row[:1] = False
    return pool_of([random.integers(0, VOCABULARY, n) for n in lengths], labels)


def plain_losses(model, tokens: TokenizedPool) -> Ragged:
    """The definition: the full forward of each conversation alone."""
    rows = []
    for ids, labels in zip(tokens.input_ids, tokens.is_response, strict=True):
        losses = np.full(len(ids), np.nan, np.float32)
        if labels.any():
            ids = torch.from_numpy(ids)
            with torch.no_grad():
                logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            losses[1:] = cross_entropy(logits, ids[1:], reduction="none").numpy()
            losses[~labels] = np.nan
        rows.append(losses)
    return Ragged.from_rows(rows, np.float32)


def furthest(a: Ragged, b: Ragged) -> float:
    a.check_aligned(b)
    assert np.array_equal(np.isnan(a.values), np.isnan(b.values))
    return float(np.nanmax(np.abs(a.values - b.values), initial=0.0))


LENGTHS = [40, 3, 0, 120, 1, 17, 64, 2, 90, 33, 33]


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=8),
    pack_tokens=st.integers(1, 150),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_losses_are_those_of_the_definition(model, lengths, pack_tokens, share, seed):
    tokens = random_pool(seed, lengths, share)
    losses = token_losses(model, tokens, pack_tokens=pack_tokens)
    assert losses.values.dtype == np.float32
    assert np.array_equal(losses.offsets, tokens.input_ids.offsets)
    assert np.array_equal(np.isfinite(losses.values), tokens.is_response.values)
    assert np.isnan(losses.values[~tokens.is_response.values]).all()
    assert furthest(losses, plain_losses(model, tokens)) < 1e-4


@pytest.mark.parametrize("precision", ["exact", "safe"])
def test_the_further_columns_are_those_of_the_full_distribution_in_float64(model, precision):
    tokens = random_pool(7, LENGTHS)
    found = Scorer(model, precision=precision, pack_tokens=100, columns=FURTHER_COLUMNS).score(tokens)
    double = LlamaForCausalLM(model.config).double()
    double.load_state_dict(model.state_dict())
    expected: dict[str, list[float]] = {name: [] for name in FURTHER_COLUMNS}
    for ids, labels in zip(tokens.input_ids, tokens.is_response, strict=True):
        if not labels.any():
            continue
        with torch.no_grad():
            shares = double(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0, :-1].softmax(-1)
        for share, target, label in zip(shares, ids[1:], labels[1:], strict=True):
            if label:
                expected["entropy"].append(float(-(share * share.log()).sum()))
                expected["is_top1"].append(bool(share[target] == share.max()))
                expected["probability"].append(float(share[target]))
                expected["collision"].append(float((share * share).sum()))
    response = tokens.is_response.values
    for name, values in expected.items():
        assert found[name].values.dtype == (np.bool_ if name == "is_top1" else np.float32)
        np.testing.assert_allclose(found[name].values[response], values, rtol=1e-4)
    assert np.isnan(found["collision"].values[~response]).all()


@pytest.mark.parametrize("is_lora", [False, True])
@pytest.mark.parametrize("was_training", [False, True])
def test_the_model_is_left_as_it_was(model, is_lora, was_training):
    scored = LlamaForCausalLM(model.config)
    scored.load_state_dict(model.state_dict())
    if is_lora:
        options = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
        scored = get_peft_model(scored, options)
    scored.train(was_training)
    scored.get_submodule("model.model.norm" if is_lora else "model.norm").train(not was_training)
    modes = [module.training for module in scored.modules()]
    weights = {name: tensor.clone() for name, tensor in scored.state_dict().items()}
    implementation = scored.config._attn_implementation
    tokens = random_pool(3, LENGTHS)

    first = token_losses(scored, tokens, precision="fast")
    assert np.array_equal(first.values, token_losses(scored, tokens, precision="fast").values, equal_nan=True)
    with pytest.raises(ValueError, match="unknown precision"):
        token_losses(scored, tokens, precision="half")
    with pytest.raises(KeyError):
        token_losses(scored, tokens, progress=lambda *_: {}["stop"])

    assert [module.training for module in scored.modules()] == modes
    assert scored.config._attn_implementation == implementation == "sdpa"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in scored.state_dict().items())
    assert torch.get_float32_matmul_precision() == "highest"
    assert all(p.grad is None for p in scored.parameters())


def test_neither_order_nor_packs_matter(model):
    tokens = random_pool(4, LENGTHS)
    expected = token_losses(model, tokens)
    for pack_tokens in (1, 50, 130, 100_000):
        assert furthest(token_losses(model, tokens, pack_tokens=pack_tokens), expected) < 1e-5
    order = np.random.default_rng(5).permutation(len(tokens))
    assert furthest(token_losses(model, tokens.take(order)), expected.take(order)) < 1e-5


def test_what_stands_behind_the_last_target_is_not_run(model):
    tokens = random_pool(6, [20, 30])
    labels = [np.arange(n) == 5 for n in (20, 30)]
    tokens = pool_of(list(tokens.input_ids), labels)
    seen = []
    token_losses(model, tokens, pack_tokens=6, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(6, 12), (12, 12)]
    ids, places = flat_pack(tokens.input_ids, np.array([1, 0]), np.array([6, 2]))
    assert places.tolist() == [20, 21, 22, 23, 24, 25, 0, 1]
    assert ids.tolist() == tokens.input_ids.values[places].tolist()


def test_rows_and_pools_without_a_target_have_no_loss(model):
    tokens = random_pool(7, [10, 0, 5], share=0.0)
    assert np.isnan(token_losses(model, tokens).values).all()
    empty = token_losses(model, random_pool(7, []))
    assert (len(empty), empty.values.dtype) == (0, np.float32)
    mixed = pool_of(list(tokens.input_ids), [np.zeros(10, bool), np.zeros(0, bool), np.arange(5) == 4])
    assert np.flatnonzero(np.isfinite(token_losses(model, mixed).values)).tolist() == [14]


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_damaged_weights_are_refused_with_the_row(model, damage):
    damaged = LlamaForCausalLM(model.config).eval()
    damaged.load_state_dict(model.state_dict())
    with torch.no_grad():
        damaged.model.embed_tokens.weight[11] = damage
    rows = [np.arange(20, 30), np.arange(40, 50), np.array([60, 61, 11, 62, 63])]
    labels = [np.arange(len(row)) > 0 for row in rows]
    with pytest.raises(NonFiniteError, match=r"row 2 \(row-2\), token \d, and \d such losses in all"):
        token_losses(damaged, pool_of(rows, labels), pack_tokens=100)


def test_ids_outside_the_vocabulary_are_refused(model):
    rows = [np.array([1, 2, 3]), np.array([1, VOCABULARY, 3])]
    with pytest.raises(ValueError, match=f"token id {VOCABULARY} is outside the model's {VOCABULARY} embeddings"):
        token_losses(model, pool_of(rows, [np.arange(3) > 0] * 2))


COMMON = """the of and a to in is you that it he was for on are as with his they I at be this have from or one had by
word but not what all were we when your can said there use an each which she do how their if will up other about"""
WORDS = COMMON.split()


def conversations(count: int, seed: int) -> list[Conversation]:
    """Unsorted conversations of 1 to 5 exchanges and about 30 to 1,200 tokens, two of them long."""
    random = np.random.default_rng(seed)

    def text(words: int) -> str:
        kinds = [str(random.choice(WORDS)) for _ in range(words)]
        return " ".join(w if random.random() > 0.1 else f"{w}.\n{random.integers(1000)}" for w in kinds)

    found = []
    for number in range(count):
        exchanges = int(random.integers(1, 6))
        words = 760 if number % 25 == 7 else int(np.clip(random.lognormal(3.2, 0.8), 8, 200))
        turns = []
        for _ in range(exchanges):
            turns.append(Turn("user", text(max(2, words // (3 * exchanges)))))
            turns.append(Turn("assistant", text(max(2, 2 * words // (3 * exchanges)))))
        found.append(Conversation(f"c{number}", "made", tuple(turns)))
    return found


@pytest.fixture(scope="module")
def real_pool(smollm2_tokenizer) -> TokenizedPool:
    return tokenize_pool(conversations(48, seed=8), smollm2_tokenizer)


@pytest.mark.slow
def test_smollm2_agrees_with_the_plain_forward(smollm2, real_pool):
    lengths = real_pool.input_ids.lengths
    assert (lengths > 1024).sum() == 2
    assert lengths.min() < 60
    assert list(lengths) != sorted(lengths, reverse=True)
    losses = token_losses(smollm2, real_pool, pack_tokens=2048)
    assert furthest(losses, plain_losses(smollm2, real_pool)) < 1e-4


def changed(tokens: TokenizedPool, row: int, length: int) -> TokenizedPool:
    """The pool with other ids in one row (all but its first token), which becomes ``length`` tokens long."""
    ids, labels = list(tokens.input_ids), list(tokens.is_response)
    other = np.random.default_rng(9).integers(100, 20_000, length)
    other[0] = ids[row][0]
    ids[row] = other
    labels[row] = np.resize(labels[row], length)
    labels[row][0] = False
    labels[row][-1] = True
    return pool_of(ids, labels)


@pytest.mark.slow
def test_no_conversation_of_a_smollm2_pack_bears_on_another(smollm2, real_pool):
    rows = np.flatnonzero(real_pool.input_ids.lengths < 400)[:12]
    tokens = real_pool.take(rows)
    budget = int(tokens.input_ids.lengths.sum()) + 500  # one pack
    middle = int(np.argsort(tokens.input_ids.lengths)[6])
    length = int(tokens.input_ids.lengths[middle])
    others = np.delete(np.arange(len(tokens)), middle)
    before = token_losses(smollm2, changed(tokens, middle, length).take(np.arange(len(tokens))), pack_tokens=budget)
    same_length = token_losses(smollm2, tokens, pack_tokens=budget)
    assert np.array_equal(before.take(others).values, same_length.take(others).values, equal_nan=True)
    assert furthest(before.take([middle]), same_length.take([middle])) > 0.1
    for other_length in (length // 2, length + 300):
        moved = token_losses(smollm2, changed(tokens, middle, other_length), pack_tokens=budget)
        assert furthest(moved.take(others), same_length.take(others)) < 1e-5


@pytest.mark.skipif(missing_kernels() is not None, reason="no CPU kernels on this machine")
def test_weights_are_packed_before_the_first_activation_and_once(model, monkeypatch):
    """Packed one by one between activations they leave the allocator's heap in pieces."""
    reported: list[str] = []
    packed, layer = precision.pack, model.model.layers[0]
    forward = type(layer).forward
    scorer = Scorer(model, pack_tokens=40)
    monkeypatch.setattr(precision, "pack", lambda *args, **named: reported.append("packed") or packed(*args, **named))
    monkeypatch.setattr(
        type(layer), "forward", lambda *args, **named: reported.append("layer") or forward(*args, **named)
    )
    scorer.score(pool_of([np.arange(n) % VOCABULARY for n in (30, 20)], [np.arange(n) > 3 for n in (30, 20)]))
    products = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert reported[:products] == ["packed"] * products
    assert set(reported[products:]) == {"layer"}
