"""Losses of sequences with common beginnings, each beginning computed once: a pass over the packs of a prefix tree.

In attention every token attends to the tokens before it in its own sequence. A prefix that several sequences share is
once in the pack, or was in an earlier pack, whose keys and values were kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenclean.models.attention.backend_choice import float32_products
from tokenclean.models.attention.features import read_features, repeat_key_heads
from tokenclean.models.attention.segments import attend_visible
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.model_parts import PROBE_LENGTHS, draw_sample, evaluating, find_problem
from tokenclean.models.precision import precision_policy
from tokenclean.models.prefix_tree import Attending, PrefixPack, plan_prefix_packs, plan_prefix_tree
from tokenclean.observer import Progress

logger = logging.getLogger(__name__)

NAME = "tokenclean_prefixes"

_GROUP_TOKENS = {"cpu": 256}
"""Queries that attend in one call: on a CPU few, which see most of the keys; on a GPU, which would wait for the
processor between many small calls, all of a pack."""

_PROBE_BRANCHES = ((20, 0, 12), (20, 5, 9), (31, 3, 33), (31, 0, 1))
"""Sequences that branch off the first one: how many of its tokens, then (from, to) of it again."""

Sequences = Sequence[tuple[tuple[int, ...], int]]
"""Token ids of each sequence, and the position, at least 1, from which on its tokens are measured."""

_Kept = dict[int, dict[int, tuple[Tensor, Tensor]]]
"""Keys and values for later packs: attention module -> node -> two tensors of shape (1, key heads, n, d)."""


def measures_in_tree(
    causal_lm: CausalLM, sequences: Sequences, names: Sequence[str], *, budget: int, progress: Progress | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """The measures ``names`` (of ``head.MEASURES``) of all sequences' tokens, in their order; without gradient.

    ``budget``: tokens of a forward pass. Returns float32 arrays (P,), and how many tokens went through the model.
    """
    inputs = [tokens[:-1] for tokens, _ in sequences]
    numbers = {tokens: number for number, tokens in enumerate(dict.fromkeys(inputs))}  # equal inputs have one number
    tree = plan_prefix_tree(list(numbers))
    places = [  # node and offset in it of the token before each target
        tree.place(int(tree.ends[numbers[tokens]]), position)
        for tokens, (_, first) in zip(inputs, sequences, strict=True)
        for position in range(first - 1, len(tokens))
    ]
    nodes_P, offsets_P = np.array(places, dtype=np.int64).reshape(-1, 2).T
    targets_P = np.array([token for tokens, first in sequences for token in tokens[first:]], dtype=np.int64)
    found = {name: np.zeros(len(targets_P), dtype=np.float32) for name in names}
    order = np.argsort(nodes_P, kind="stable")
    kept: _Kept = {}
    done, device = 0, causal_lm.device
    for pack in plan_prefix_packs(tree, budget, _GROUP_TOKENS.get(device.type)):
        bounds = np.searchsorted(nodes_P[order], [min(pack.starts), max(pack.starts) + 1])
        here = order[bounds[0] : bounds[1]]
        rows = np.array([pack.starts[node] for node in nodes_P[here]], dtype=np.int64) + offsets_P[here]
        ids, positions = (torch.from_numpy(t).to(device)[None] for t in (pack.ids, pack.positions))
        with _prefix_pass(causal_lm.lm, pack, kept):
            output = causal_lm.body(input_ids=ids, position_ids=positions, use_cache=False)
        if len(here):
            hidden = output.last_hidden_state[0][torch.from_numpy(rows).to(device)]
            measured = causal_lm.measures_of_hidden(hidden, torch.from_numpy(targets_P[here]).to(device), names)
            for name, values in measured.items():
                found[name][here] = values.cpu().numpy()
        done += len(pack.ids)
        if progress is not None:
            progress(done, tree.tokens)
    return found, tree.tokens


def shares_prefixes(causal_lm: CausalLM) -> bool:
    """Whether ``measures_in_tree`` gives the losses of whole sequences, tried now; where not, the log says so."""
    if not causal_lm.is_packed:
        return False
    length = causal_lm.probed_window + sum(PROBE_LENGTHS)
    stem = tuple(draw_sample([length], causal_lm.vocabulary_size, causal_lm.device)[0].tolist())
    tried = [stem, stem[:-9], *(stem[:cut] + stem[start:stop] for cut, start, stop in _PROBE_BRANCHES)]
    sequences = [(tokens, len(tokens) - 1) for tokens in tried]
    with evaluating(causal_lm.model), torch.no_grad(), precision_policy(causal_lm.body, "exact", with_kernels=False):
        expected = torch.cat([causal_lm.last_loss(torch.tensor(s, device=causal_lm.device)) for s in tried]).cpu()

        def losses() -> Tensor:
            return torch.from_numpy(
                measures_in_tree(causal_lm, sequences, ("loss",), budget=max(PROBE_LENGTHS))[0]["loss"]
            )

        problem = find_problem(losses, expected)
    if problem:
        name = type(causal_lm.lm).__name__
        logger.warning("%s computes every sequence whole, without shared beginnings (%s)", name, problem)
    return not problem


@dataclass
class _Pass:
    pack: PrefixPack
    kept: _Kept
    visible: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    """Masks by (number of the call, window), which all layers share."""


_pass: _Pass | None = None


@contextmanager
def _prefix_pass(model: PreTrainedModel, pack: PrefixPack, kept: _Kept) -> Iterator[None]:
    """Within the block the model's attention treats its flat input as the pack, and keeps what later packs need."""
    global _pass
    previous, previous_pass = model.config._attn_implementation, _pass
    model.config._attn_implementation, _pass = NAME, _Pass(pack, kept)
    try:
        yield
    finally:
        model.config._attn_implementation, _pass = previous, previous_pass
    for of_module in kept.values():
        for node in pack.drop:
            of_module.pop(node, None)


@torch.compiler.disable
def prefix_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of transformers' interface over the current pack; without gradient and without dropout.

    Shapes and options as for ``segments.segment_attention``. Raises NotImplementedError for a feature it does not
    support.
    """
    features = read_features("prefix attention", attention_mask, options)
    if _pass is None or query.shape[0] != 1 or query.shape[2] != len(_pass.pack.ids):
        raise NotImplementedError("prefix attention needs one flat sequence made of the current pack")
    if features.dropout or query.requires_grad:
        raise NotImplementedError("prefix attention has neither gradient nor dropout")
    kept = _pass.kept.setdefault(id(module), {})
    outputs = []
    with float32_products():
        for number, call in enumerate(_pass.pack.attending):
            parts = [kept[node] for node in call.kept]
            parts += [(key[:, :, start:stop], value[:, :, start:stop]) for start, stop in call.inside]
            keys, values = (side[0] if len(side) == 1 else torch.cat(side, dim=2) for side in zip(*parts, strict=True))
            if query.device.type != "cpu" and query.shape[1] != key.shape[1]:
                keys, values = repeat_key_heads(query, keys, values)
            if (number, features.window) not in _pass.visible:
                _pass.visible[number, features.window] = _visible(call, features.window, query.device)
            visible = _pass.visible[number, features.window]
            outputs.append(attend_visible(query[:, :, slice(*call.inside[-1])], keys, values, visible, features))
    for node, (start, stop) in _pass.pack.keep.items():
        kept[node] = (key[:, :, start:stop].clone(), value[:, :, start:stop].clone())
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _visible(call: Attending, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: bool (queries, keys)."""
    queries, keys, sees = (torch.from_numpy(array).to(device) for array in (call.queries, call.keys, call.sees))
    distance = queries[:, None, 1] - keys[None, :, 1]
    visible = sees[queries[:, 0]][:, keys[:, 0]] & (distance >= 0)
    return visible if window is None else visible & (distance < window)


ALL_ATTENTION_FUNCTIONS.register(NAME, prefix_attention)
