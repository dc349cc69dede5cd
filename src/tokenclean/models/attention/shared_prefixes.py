"""Attention in a pack of a prefix tree: every token attends to the tokens before it in its own sequence.

A prefix that several sequences share is once in the pack, or was in an earlier pack, whose keys and values were kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenclean.models.attention.features import read_features, repeat_key_heads
from tokenclean.models.attention.segments import attend_visible, float32_products
from tokenclean.models.prefix_tree import Attending, PrefixPack

NAME = "tokenclean_prefixes"

_Kept = dict[int, tuple[torch.Tensor, torch.Tensor]]


@dataclass
class KeptPrefixes:
    """Keys and values for later packs: attention module -> node -> two tensors of shape (1, key heads, n, d)."""

    of_module: dict[int, _Kept] = field(default_factory=dict)

    def drop(self, nodes: tuple[int, ...]) -> None:
        """Free the keys and values that no further pack needs."""
        for kept in self.of_module.values():
            for node in nodes:
                kept.pop(node, None)


@dataclass
class _Pass:
    pack: PrefixPack
    prefixes: KeptPrefixes
    visible: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    """Masks by (number of the call, window), which all layers share."""


_pass: _Pass | None = None


@contextmanager
def prefix_pass(model: PreTrainedModel, pack: PrefixPack, prefixes: KeptPrefixes) -> Iterator[None]:
    """Within the block the model's attention treats its flat input as the pack, and keeps what later packs need.

    The packs of a tree come in their order, with the same ``prefixes``.
    """
    global _pass
    previous, previous_pass = model.config._attn_implementation, _pass
    model.config._attn_implementation, _pass = NAME, _Pass(pack, prefixes)
    try:
        yield
    finally:
        model.config._attn_implementation, _pass = previous, previous_pass
    prefixes.drop(pack.drop)


@torch.compiler.disable
def prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface over the current pack; without gradient and without dropout.

    Shapes and options as for ``segments.segment_attention``. Raises NotImplementedError for a feature it does not
    support.
    """
    features = read_features("prefix attention", attention_mask, options)
    if _pass is None or query.shape[0] != 1 or query.shape[2] != len(_pass.pack.ids):
        raise NotImplementedError("prefix attention needs one flat sequence made of the current pack")
    if features.dropout or query.requires_grad:
        raise NotImplementedError("prefix attention has neither gradient nor dropout")
    kept = _pass.prefixes.of_module.setdefault(id(module), {})
    outputs = []
    with float32_products():
        for number, call in enumerate(_pass.pack.attending):
            keys, values = _seen(call, kept, key, value)
            if query.device.type != "cpu" and query.shape[1] != key.shape[1]:
                keys, values = repeat_key_heads(query, keys, values)
            visible = _visible(number, call, features.window, query.device)
            outputs.append(attend_visible(query[:, :, call.start : call.stop], keys, values, visible, features))
    for node, (start, stop) in _pass.pack.keep.items():
        kept[node] = (key[:, :, start:stop].clone(), value[:, :, start:stop].clone())
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _seen(call: Attending, kept: _Kept, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values in the order of ``call.keys``."""
    parts = [kept[node] for node in call.kept]
    parts += [(key[:, :, start:stop], value[:, :, start:stop]) for start, stop in call.inside]
    keys, values = zip(*parts, strict=True)
    return (keys[0], values[0]) if len(parts) == 1 else (torch.cat(keys, dim=2), torch.cat(values, dim=2))


def _visible(number: int, call: Attending, window: int | None, device: torch.device) -> torch.Tensor:
    """Bool (queries, keys)."""
    assert _pass is not None
    if (number, window) not in _pass.visible:
        queries, keys = (torch.from_numpy(side).to(device) for side in (call.queries, call.keys))
        distance = queries[:, None, 1] - keys[None, :, 1]
        is_own = (keys[None, :, 0] < 0) | (keys[None, :, 0] == queries[:, None, 0])
        visible = is_own & (distance >= 0)
        _pass.visible[number, window] = visible if window is None else visible & (distance < window)
    return _pass.visible[number, window]


ALL_ATTENTION_FUNCTIONS.register(NAME, prefix_attention)
