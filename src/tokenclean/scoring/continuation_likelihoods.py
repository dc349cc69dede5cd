"""Log-likelihoods of continuations after contexts, by which models answer multiple-choice benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.model_parts import evaluating
from tokenclean.models.packing import plan_packs
from tokenclean.models.precision import check_precision
from tokenclean.models.prefix_tree import plan_prefix_tree
from tokenclean.models.shared_prefix_pass import measures_in_tree, shares_prefixes
from tokenclean.observer import Progress
from tokenclean.scoring.scorer import PACK_TOKENS

Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation, at least one each."""


@dataclass(frozen=True)
class Continuations:
    """``loglikelihoods``: Σ log p of each continuation's tokens, nats, float64 (R,). ``is_greedy``: bool (R,), if no
    other token is likelier than the continuation's at any position. ``requested_tokens``: tokens of all contexts and
    continuations; ``computed_tokens``: tokens that went through the model, fewer where beginnings are shared."""

    loglikelihoods: np.ndarray
    is_greedy: np.ndarray
    requested_tokens: int
    computed_tokens: int


class ContinuationScorer:
    """Scores continuations under one model; a beginning that several requests share is computed once.

    ``model``, ``precision`` and ``pack_tokens`` are those of ``Scorer``. Where the model cannot share beginnings (the
    log says so), whole sequences are computed, equal ones once. Raises ValueError for an unknown precision or a
    ``pack_tokens`` below 1.
    """

    def __init__(self, model: torch.nn.Module, *, precision: str = "exact", pack_tokens: int = PACK_TOKENS) -> None:
        check_precision(precision)
        if pack_tokens < 1:
            raise ValueError(f"pack_tokens must be at least 1, got {pack_tokens}")
        self.model, self.precision, self.pack_tokens = model, precision, pack_tokens
        self._causal_lm = CausalLM(model)
        self._shares: dict[int, bool] = {}

    def score(self, requests: Sequence[Request], progress: Progress | None = None) -> Continuations:
        """log p(continuation | context) of every request, without gradient.

        ``progress`` counts tokens, after each forward pass. Raises ValueError for a request without context or
        continuation.
        """
        if any(not len(context) or not len(continuation) for context, continuation in requests):
            raise ValueError("a request needs at least one token of context and one of continuation")
        longest = max((len(context) + len(continuation) for context, continuation in requests), default=0)
        self._causal_lm.expect_rows_of(longest)
        shares = self._shares_prefixes()  # the trial runs in float32, so it must stay outside the precision block below
        with evaluating(self.model), torch.no_grad(), self._causal_lm.precision(self.precision):
            self._causal_lm.make_copies()
            if shares:
                losses, is_top1, computed = self._in_tree(requests, progress)
            else:
                losses, is_top1, computed = self._whole(requests, progress)
        owners = np.repeat(np.arange(len(requests)), [len(continuation) for _, continuation in requests])
        return Continuations(
            loglikelihoods=-np.bincount(owners, losses, minlength=len(requests)),
            is_greedy=np.bincount(owners, ~is_top1, minlength=len(requests)) == 0,
            requested_tokens=sum(len(context) + len(continuation) for context, continuation in requests),
            computed_tokens=computed,
        )

    def _shares_prefixes(self) -> bool:
        """Whether the model can share beginnings, tried once for each sliding window that rows exceed."""
        window = self._causal_lm.probed_window
        if window not in self._shares:
            self._shares[window] = shares_prefixes(self._causal_lm)
        return self._shares[window]

    def _in_tree(self, requests: Sequence[Request], progress: Progress | None) -> tuple[np.ndarray, np.ndarray, int]:
        """Losses and is_top1 of all continuations' tokens, in the order of the requests, and the tokens computed."""
        numbers: dict[tuple[int, ...], int] = {}  # equal inputs have one number
        ends = [numbers.setdefault((*context, *continuation[:-1]), len(numbers)) for context, continuation in requests]
        tree = plan_prefix_tree([np.array(tokens, dtype=np.int64) for tokens in numbers])
        places = np.array(
            [
                tree.place(int(tree.ends[end]), position)
                for end, (context, continuation) in zip(ends, requests, strict=True)
                for position in range(len(context) - 1, len(context) + len(continuation) - 1)
            ],
            dtype=np.int64,
        ).reshape(-1, 2)
        targets = np.array([token for _, continuation in requests for token in continuation], dtype=np.int64)
        found = measures_in_tree(
            self._causal_lm, tree, places, targets, ("loss", "is_top1"), budget=self.pack_tokens, progress=progress
        )
        return found["loss"].double().numpy(), found["is_top1"].numpy() == 1, tree.tokens

    def _whole(self, requests: Sequence[Request], progress: Progress | None) -> tuple[np.ndarray, np.ndarray, int]:
        """The same as ``_in_tree`` through passes of whole sequences."""
        numbers: dict[tuple[tuple[int, ...], int], int] = {}  # equal sequences and contexts have one number
        of_request = [
            numbers.setdefault(((*context, *continuation), len(context)), len(numbers))
            for context, continuation in requests
        ]
        rows = [(np.array(tokens, dtype=np.int64), start) for tokens, start in numbers]
        lengths = np.array([len(tokens) for tokens, _ in rows], dtype=np.int64)
        measured: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        done, device = 0, self._causal_lm.device
        for pack in plan_packs(lengths, self.pack_tokens):
            starts = np.cumsum([0, *lengths[pack][:-1]])
            spans = [np.arange(s + rows[r][1], s + lengths[r]) for s, r in zip(starts, pack, strict=True)]
            ids = np.concatenate([rows[row][0] for row in pack])
            found = self._causal_lm.measures(
                torch.from_numpy(ids).to(device),
                lengths[pack].tolist(),
                torch.from_numpy(np.concatenate(spans)).to(device),
                ("loss", "is_top1"),
            )
            bounds = np.cumsum([len(span) for span in spans])[:-1]
            losses, tops = (np.split(found[name].cpu().numpy(), bounds) for name in ("loss", "is_top1"))
            measured.update({int(row): (loss, top) for row, loss, top in zip(pack, losses, tops, strict=True)})
            done += len(ids)
            if progress is not None:
                progress(done, int(lengths.sum()))
        nothing = (np.zeros(0), np.zeros(0))  # for no request at all
        loss, top = map(np.concatenate, zip(nothing, *(measured[number] for number in of_request), strict=True))
        return loss.astype(np.float64), top == 1, int(lengths.sum())
