"""Losses computed in a prefix tree, against those of whole sequences."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.model_parts import evaluating
from tokenclean.models.shared_prefixes import measures_in_tree, shares_prefixes

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def models():
    torch.manual_seed(0)
    yield "llama", LlamaForCausalLM(LlamaConfig(**SIZES))
    yield "qwen2", Qwen2ForCausalLM(Qwen2Config(**SIZES))
    window = {"sliding_window": 12, "head_dim": 8, "query_pre_attn_scalar": 8}
    yield "gemma2, window and soft caps", Gemma2ForCausalLM(Gemma2Config(**SIZES, **window))


@pytest.mark.parametrize(("name", "model"), list(models()), ids=lambda value: value if isinstance(value, str) else "")
@settings(max_examples=12, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(3, 6), min_size=2, max_size=30), min_size=1, max_size=8),
    budget=st.integers(1, 60),
    in_one_call=st.booleans(),
)
def test_losses_in_a_tree_are_those_of_whole_sequences(name, model, sequences, budget, in_one_call):
    """With a call of attention for siblings, and as on a GPU with one for a whole pack."""
    causal_lm = _causal_lm(model)
    groups = patch.dict("tokenclean.models.shared_prefixes._GROUP_TOKENS", clear=in_one_call)
    with groups, evaluating(model), torch.no_grad(), causal_lm.precision("exact"):
        found, _ = measures_in_tree(
            causal_lm, [(tuple(sequence), 1) for sequence in sequences], ("loss", "is_top1"), budget=budget
        )
        logits = [model(torch.tensor([sequence])).logits[0, :-1].float() for sequence in sequences]
    expected = torch.cat(
        [
            torch.nn.functional.cross_entropy(part, torch.tensor(sequence[1:]), reduction="none")
            for part, sequence in zip(logits, sequences, strict=True)
        ]
    )
    torch.testing.assert_close(torch.from_numpy(found["loss"]), expected, atol=2e-5, rtol=1e-4)
    is_top1 = torch.cat([part.argmax(-1) == torch.tensor(s[1:]) for part, s in zip(logits, sequences, strict=True)])
    assert torch.equal(torch.from_numpy(found["is_top1"] == 1), is_top1)


_made: dict[int, CausalLM] = {}


def _causal_lm(model) -> CausalLM:
    if id(model) not in _made:
        _made[id(model)] = CausalLM(model, longest_row=40)
        assert shares_prefixes(_made[id(model)])
    return _made[id(model)]
