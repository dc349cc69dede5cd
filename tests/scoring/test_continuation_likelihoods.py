from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.shared_prefixes import shares_prefixes
from tokenclean.scoring.continuation_likelihoods import ContinuationScorer

VOCABULARY = 61


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


@pytest.fixture(scope="module")
def scorer(llama) -> ContinuationScorer:
    return ContinuationScorer(llama, pack_tokens=64)


def plainly(model, context, continuation) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation]])).logits[0].double().log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    chosen = [logits[place, token].item() for place, token in zip(places, continuation, strict=True)]
    return sum(chosen), all(logits[p].argmax().item() == t for p, t in zip(places, continuation, strict=True))


tokens = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12))
def test_as_one_sequence_at_a_time(llama, scorer, requests):
    found = scorer.score(requests)
    expected = [plainly(llama, *request) for request in requests]
    np.testing.assert_allclose(found.loglikelihoods, [value for value, _ in expected], atol=1e-4)
    assert found.is_greedy.tolist() == [greedy for _, greedy in expected]


def test_greedy_continuations_are_told(llama, scorer):
    context = [3, 1, 4, 1, 5]
    with torch.no_grad():
        best = llama(torch.tensor([context])).logits[0, -1].argmax().item()
    found = scorer.score([(context, [best]), (context, [(best + 1) % VOCABULARY])])
    assert found.is_greedy.tolist() == [True, False]


def test_shared_tokens_are_computed_once(scorer):
    block = list(range(30))
    questions = [[*block, 40 + number, 7] for number in range(5)]
    found = scorer.score([(question, [option]) for question in questions for option in (50, 51, 52, 53)])
    assert found.requested_tokens == 5 * 4 * 33
    assert found.computed_tokens == 30 + 5 * 2


def test_a_model_that_cannot_share_computes_whole_sequences(llama, scorer, monkeypatch, caplog):
    requests = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6]), ([9], [4, 5, 6, 7]), ([1, 2, 3], [6])]
    expected = scorer.score(requests)
    monkeypatch.setattr("tokenclean.scoring.continuation_likelihoods.shares_prefixes", lambda causal_lm: False)
    found = ContinuationScorer(llama, pack_tokens=8).score(requests)
    np.testing.assert_allclose(found.loglikelihoods, expected.loglikelihoods, atol=1e-5)
    assert found.is_greedy.tolist() == expected.is_greedy.tolist()
    assert found.computed_tokens == 5 + 4 + 5


@pytest.mark.parametrize("precision", ["exact", "safe", "fast"])
def test_sharing_is_tried_outside_of_the_policy(llama, precision, monkeypatch):
    """Products in bf16 are further from the plain losses than the trial allows, and would end all sharing."""
    scorer, tried = ContinuationScorer(llama, precision=precision), []

    def watched(causal_lm: CausalLM) -> bool:
        tried.append((causal_lm._head_copy, causal_lm._policy))
        return shares_prefixes(causal_lm)

    monkeypatch.setattr("tokenclean.scoring.continuation_likelihoods.shares_prefixes", watched)
    found = scorer.score([([1, 2, 3], [4]), ([1, 2, 3], [5])])
    assert tried == [(None, "exact")]
    assert found.computed_tokens == 3


def test_learned_positions_share_too():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
    )
    model.eval()
    requests = [([1, 2, 3, 4, 5, 6], [7, 8]), ([1, 2, 3, 4, 9], [7]), ([2], [1, 2, 3])]
    found = ContinuationScorer(model).score(requests)
    np.testing.assert_allclose(found.loglikelihoods, [plainly(model, *r)[0] for r in requests], atol=1e-4)


@pytest.mark.parametrize("request_", [([], [1]), ([1], [])])
def test_nothing_to_go_on(scorer, request_):
    with pytest.raises(ValueError, match="at least one token"):
        scorer.score([request_])


def test_no_requests(scorer):
    found = scorer.score([])
    assert (len(found.loglikelihoods), found.computed_tokens) == (0, 0)
