"""What a model asks of its attention, beside queries, keys and values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}


class Features(NamedTuple):
    """``scaling``: of the logits, 1/√d if None. ``dropout``: share of attention weights. ``softcap``: logits become
    softcap·tanh(logits / softcap) (Gemma 2). ``window``: a query sees the last that many keys."""

    scaling: float | None = None
    dropout: float = 0.0
    softcap: float | None = None
    window: int | None = None

    def scale(self, query: torch.Tensor) -> float:
        """The factor of the logits."""
        return query.shape[-1] ** -0.5 if self.scaling is None else self.scaling


def read_features(name: str, attention_mask: torch.Tensor | None, options: dict[str, Any]) -> Features:
    """The features among the options of transformers' attention interface.

    Raises NotImplementedError where a model asks for what the attention called ``name`` does not have.
    """
    unknown = {key for key, value in options.items() if value is not None and value is not False} - _HARMLESS
    unknown -= {"scaling", "dropout", "softcap", "sliding_window"}
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"{name} does not support {sorted(unknown) or 'this attention mask'}")
    window = options.get("sliding_window")
    return Features(options.get("scaling"), options.get("dropout") or 0.0, options.get("softcap"), window)


def repeat_key_heads(query: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Keys and values (1, key heads, T, d) with as many heads as the queries."""
    return [t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in tensors]
