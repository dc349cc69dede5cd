"""Small random models of many families, with weights large enough that attention is far from uniform."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from tokenclean.models import precision
from tokenclean.models.attention import backend_choice as attention_choice
from tokenclean.models.kernels.cpu import missing_kernels

VOCABULARY = 211
WINDOW = 16
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

# family -> (configuration class, what it sets beyond the shared sizes)
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": False}),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, {"sliding_window": WINDOW}),
    "qwen2": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
    "gemma2": (
        transformers.Gemma2Config,
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (transformers.Gemma3TextConfig, {"head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED}),
    "neox": (transformers.GPTNeoXConfig, {}),
    "cohere": (transformers.CohereConfig, {"logit_scale": 0.5}),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 4.0}),
    "gpt2": (transformers.GPT2Config, {}),
    "mixtral": (transformers.MixtralConfig, {}),
    # no packed path
    "mamba": (transformers.MambaConfig, {"state_size": 8}),
    "falcon": (transformers.FalconConfig, {"alibi": True}),
    "gpt-oss": (
        transformers.GptOssConfig,
        {"num_local_experts": 4, "head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED},
    ),
    "llama4": (
        transformers.Llama4TextConfig,
        {
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 96,
            "num_local_experts": 2,
            "head_dim": 16,
            "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
            "no_rope_layers": [1, 0, 1],
        },
    ),
    # no separate head
    "bert": (transformers.BertConfig, {"is_decoder": True}),
    "electra": (transformers.ElectraConfig, {"is_decoder": True, "embedding_size": 32}),
}


def build_model(family: str, seed: int = 0, **changes):
    config_class, special = FAMILIES[family]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    config = config_class(**(sizes | special | changes))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model.eval()


def naive_losses(model, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """The definition: full logits of each conversation alone, NLL of every token but its first."""
    parts = []
    for conversation in ids.split(list(lengths)):
        logits = model(input_ids=conversation[None], use_cache=False).logits[0, :-1]
        parts.append(cross_entropy(logits.float(), conversation[1:], reduction="none"))
    return torch.cat(parts)


@pytest.fixture(scope="module", autouse=True)
def _on_one_thread(one_thread: None) -> None:
    """Every test of this room."""


@pytest.fixture(scope="session")
def small_model() -> Callable:
    return build_model


@pytest.fixture(scope="session")
def plain_losses() -> Callable:
    return naive_losses


@pytest.fixture(scope="session")
def pack() -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """(ids, lengths, positions) of a mixed pack: segments of 1 token to over four windows, every token a target."""
    lengths = [50, 7, 2, 33, 1, 70]
    ids = torch.randint(3, VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    positions = torch.cat([torch.arange(s + 1, s + n) for s, n in zip(starts, lengths, strict=True)])
    return ids, lengths, positions


@pytest.fixture
def torch_products(monkeypatch) -> None:
    """Keep to torch's own products, as on a machine without the CPU kernels but with bf16 instructions."""
    for module in (attention_choice, precision):
        monkeypatch.setattr(module, "missing_kernels", lambda: "switched off by the test")
    monkeypatch.setattr("tokenclean.models.device.cpu_multiplies_bf16", lambda: True)


@pytest.fixture
def products(request) -> str:
    """Whose products serve without gradient: torch's, or where a test's parameter says so our own kernels."""
    wanted = getattr(request, "param", "torch's products")
    if wanted == "torch's products":
        request.getfixturevalue("torch_products")
    elif missing_kernels() is not None:
        pytest.skip("no CPU kernels on this machine")
    return wanted


class Forgetful(dict):
    """Remembers nothing, so that every model is probed."""

    def __contains__(self, structure):
        return False


@pytest.fixture(autouse=True)
def every_model_is_probed(monkeypatch):
    """Tests break the parts of one structure and look what a probe says, model after model."""
    monkeypatch.setattr("tokenclean.models.causal_lm._probed", Forgetful())
