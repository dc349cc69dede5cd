"""Losses of sequences with common beginnings, each beginning computed once: a pass over the packs of a prefix tree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tokenclean.models.attention.shared_prefixes import KeptPrefixes, prefix_pass
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.head import Measures
from tokenclean.models.model_parts import PROBE_LENGTHS, draw_sample, evaluating, find_problem
from tokenclean.models.precision import precision_policy
from tokenclean.models.prefix_tree import PrefixTree, plan_prefix_packs, plan_prefix_tree

logger = logging.getLogger(__name__)

_PROBE_BRANCHES = ((20, 0, 12), (20, 5, 9), (31, 3, 33), (31, 0, 1))
"""Sequences that branch off the first one: how many of its tokens, then (from, to) of it again."""


def measures_in_tree(
    causal_lm: CausalLM,
    tree: PrefixTree,
    places: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str],
    *,
    budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> Measures:
    """The measures ``names`` (of ``head.MEASURES``) of tokens that follow places of a prefix tree; without gradient.

    ``places``: int64 (P, 2), node and offset in it of the token before each target; ``targets``: int64 (P,), token ids.
    ``budget``: tokens of a forward pass. Returns float32 tensors (P,) on the CPU.
    """
    found = {name: torch.zeros(len(targets)) for name in names}
    order = np.argsort(places[:, 0], kind="stable")
    prefixes, done, device = KeptPrefixes(), 0, causal_lm.device
    for pack in plan_prefix_packs(tree, budget):
        bounds = np.searchsorted(places[order, 0], [min(pack.starts), max(pack.starts) + 1])
        here = order[bounds[0] : bounds[1]]
        rows = np.array([pack.starts[node] for node in places[here, 0]], dtype=np.int64) + places[here, 1]
        ids, positions = (torch.from_numpy(t).to(device)[None] for t in (pack.ids, pack.positions))
        with prefix_pass(causal_lm.lm, pack, prefixes):
            output = causal_lm.body(input_ids=ids, position_ids=positions, use_cache=False)
        if len(here):
            hidden = output.last_hidden_state[0][torch.from_numpy(rows).to(device)]
            measured = causal_lm.measures_of_hidden(hidden, torch.from_numpy(targets[here]).to(device), names)
            for name, values in measured.items():
                found[name][torch.from_numpy(here)] = values.cpu()
        done += len(pack.ids)
        if progress is not None:
            progress(done, tree.tokens)
    return found


def shares_prefixes(causal_lm: CausalLM) -> bool:
    """Whether ``measures_in_tree`` gives the losses of whole sequences, tried now; where not, the log says so."""
    if not causal_lm.is_packed:
        return False
    length = causal_lm.probed_window + sum(PROBE_LENGTHS)
    stem = draw_sample([length], causal_lm.vocabulary_size, causal_lm.device)[0].tolist()
    sequences = [stem, stem[:-9], *(stem[:cut] + stem[start:stop] for cut, start, stop in _PROBE_BRANCHES)]
    tree = plan_prefix_tree([sequence[:-1] for sequence in sequences])
    places = np.array([tree.place(end, len(s) - 2) for end, s in zip(tree.ends.tolist(), sequences, strict=True)])
    targets = np.array([sequence[-1] for sequence in sequences])
    with evaluating(causal_lm.model), torch.no_grad(), precision_policy(causal_lm.body, "exact", with_kernels=False):
        expected = torch.cat([causal_lm.last_loss(torch.tensor(s, device=causal_lm.device)) for s in sequences]).cpu()

        def losses() -> torch.Tensor:
            return measures_in_tree(causal_lm, tree, places, targets, ("loss",), budget=max(PROBE_LENGTHS))["loss"]

        problem = find_problem(losses, expected)
    if problem:
        name = type(causal_lm.lm).__name__
        logger.warning("%s computes every sequence whole, without shared beginnings (%s)", name, problem)
    return not problem
