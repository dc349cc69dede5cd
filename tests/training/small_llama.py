"""A small random Llama, rows for it, and the losses by their definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from tokenclean.ragged import Ragged

VOCABULARY = 61


def small_llama(seed: int = 0) -> LlamaForCausalLM:
    """Two layers, tied head, weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def random_rows(lengths: Sequence[int], seed: int = 0) -> Ragged:
    generator = np.random.default_rng(seed)
    return Ragged.from_rows([generator.integers(3, VOCABULARY, n) for n in lengths], np.int64)


def weights_from(input_ids: Ragged, share: float = 0.5, seed: int = 0) -> Ragged:
    """Float weights on about this share of the tokens, never on a row's first."""
    generator = np.random.default_rng(seed)
    values = generator.uniform(0.1, 2.0, len(input_ids.values)) * (generator.random(len(input_ids.values)) < share)
    values[input_ids.offsets[:-1][input_ids.lengths > 0]] = 0
    return input_ids.with_values(values)


def naive_losses(model: torch.nn.Module, row: np.ndarray) -> torch.Tensor:
    """NLL of every token of one conversation but its first, from full logits."""
    ids = torch.from_numpy(row)
    return cross_entropy(model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="none")


def all_losses(model: torch.nn.Module, input_ids: Ragged) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([naive_losses(model, row) for row in input_ids])
