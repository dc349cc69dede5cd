"""Losses on a GPU against those of a CPU: packs, shared beginnings, precision policies."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers import MistralForCausalLM as Mistral

from tokenclean.ragged import Ragged
from tokenclean.scoring.continuation_likelihoods import ContinuationScorer
from tokenclean.scoring.scorer import Scorer
from tokenclean.tokens.tokenize import TokenizedPool

VOCABULARY = 211
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "head_dim": 32,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: Mistral(MistralConfig(**SIZES, sliding_window=16)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SIZES,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=32,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    built = FAMILIES[request.param]().float().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return built


@pytest.fixture(scope="module")
def tokens() -> TokenizedPool:
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 120, 40)
    ids = Ragged.from_rows([generator.integers(3, VOCABULARY, n) for n in lengths], np.int64)
    labels = ids.map_values(lambda values: np.random.default_rng(1).random(len(values)) < 0.6)
    labels.values[labels.offsets[:-1]] = False
    nowhere = ids.with_values(np.zeros(len(ids.values), dtype=np.int32))
    return TokenizedPool(
        input_ids=ids,
        is_response=labels,
        char_start=nowhere,
        char_end=nowhere,
        ids=tuple(map(str, range(len(lengths)))),
        sources=("made up",) * len(lengths),
        contents=((),) * len(lengths),
        is_truncated=np.zeros(len(lengths), dtype=bool),
        unusable=(),
    )


def losses(model, tokens, precision, **options) -> np.ndarray:
    found = Scorer(model, precision=precision, pack_tokens=256, longest_row=120, **options).score(tokens)["loss"].values
    return found[tokens.is_response.values]


@pytest.mark.parametrize(("precision", "most"), [("exact", 1e-4), ("safe", 0.15), ("fast", 0.5)])
def test_the_losses_are_a_cpus(precision, most, model, tokens):
    expected = losses(model, tokens, "exact")
    there = copy.deepcopy(model).cuda()
    found = losses(there, tokens, precision)
    assert expected.std() > 0.5
    assert np.abs(found - expected).max() < most
    if precision == "exact":
        assert Scorer(there, longest_row=120)._causal_lm.is_packed


def test_in_a_pair_rounding_cancels_in_the_score(model, tokens):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.1)

    def score(place: str, precision: str) -> np.ndarray:
        pair = Scorer(copy.deepcopy(adapted).to(place), precision=precision, pack_tokens=256, longest_row=120)
        assert pair.pairs is (precision == "safe")
        base, own = (columns["loss"].values for columns in pair.score_pair(tokens))
        return (base - own)[tokens.is_response.values]

    exact = score("cpu", "exact")
    there = adapted.cuda()
    own = losses(there, tokens, "safe")
    with there.disable_adapter():
        apart = losses(there, tokens, "safe") - own
    assert np.abs(score("cuda", "safe") - exact).mean() < 0.5 * np.abs(apart - exact).mean()


def test_compiled_layers_give_the_same_losses(tokens):
    torch.manual_seed(0)
    model = FAMILIES["llama"]().float().eval().cuda()
    plain, compiled = (losses(model, tokens, "fast", compile=compile) for compile in ("off", "on"))
    assert np.abs(plain - compiled).mean() < 0.02


@pytest.mark.parametrize("precision", ["exact", "safe"])
def test_shared_beginnings_give_the_log_likelihoods_of_a_cpu(precision, model):
    generator = np.random.default_rng(2)
    stem = generator.integers(3, VOCABULARY, 60).tolist()
    requests = []
    for _ in range(12):
        question = [*stem, *generator.integers(3, VOCABULARY, 15).tolist()]
        requests += [(question, generator.integers(3, VOCABULARY, int(n)).tolist()) for n in (1, 2, 6, 1)]
    expected = ContinuationScorer(model, pack_tokens=64).score(requests)
    found = ContinuationScorer(copy.deepcopy(model).cuda(), precision=precision, pack_tokens=64).score(requests)
    assert found.computed_tokens == expected.computed_tokens < expected.requested_tokens / 3
    most = 1e-3 if precision == "exact" else 1.0
    assert np.abs(found.loglikelihoods - expected.loglikelihoods).max() < most
