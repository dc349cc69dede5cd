"""Log-likelihoods of continuations after contexts, by which models answer multiple-choice benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.model_parts import evaluating
from tokenclean.models.precision import check_precision
from tokenclean.models.shared_prefixes import Sequences, measures_in_tree, shares_prefixes
from tokenclean.observer import Progress
from tokenclean.ragged import Ragged
from tokenclean.scoring.scorer import PACK_TOKENS, measure_rows

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
        sequences = [((*context, *continuation), len(context)) for context, continuation in requests]
        self._causal_lm.expect_rows_of(max((len(tokens) for tokens, _ in sequences), default=0))
        shares = self._shares_prefixes()  # the trial runs in float32, so it must stay outside the precision block below
        names = ("loss", "is_top1")
        with evaluating(self.model), torch.no_grad(), self._causal_lm.precision(self.precision):
            self._causal_lm.make_copies()
            if shares:
                found, computed = measures_in_tree(
                    self._causal_lm, sequences, names, budget=self.pack_tokens, progress=progress
                )
            else:
                found, computed = self._whole(sequences, names, progress)
        owners = np.repeat(np.arange(len(requests)), [len(continuation) for _, continuation in requests])
        return Continuations(
            loglikelihoods=-np.bincount(owners, found["loss"].astype(np.float64), minlength=len(requests)),
            is_greedy=np.bincount(owners, found["is_top1"] != 1, minlength=len(requests)) == 0,
            requested_tokens=sum(len(tokens) for tokens, _ in sequences),
            computed_tokens=computed,
        )

    def _shares_prefixes(self) -> bool:
        """Whether the model can share beginnings, tried once for each sliding window that rows exceed."""
        window = self._causal_lm.probed_window
        if window not in self._shares:
            self._shares[window] = shares_prefixes(self._causal_lm)
        return self._shares[window]

    def _whole(
        self, sequences: Sequences, names: Sequence[str], progress: Progress | None
    ) -> tuple[dict[str, np.ndarray], int]:
        """The same as ``measures_in_tree`` through passes of whole sequences, equal ones once."""
        numbers = {sequence: number for number, sequence in enumerate(dict.fromkeys(sequences))}
        input_ids = Ragged.from_rows([tokens for tokens, _ in numbers], np.int64)
        is_target = Ragged.from_rows([np.arange(len(tokens)) >= first for tokens, first in numbers], bool)
        [measured] = measure_rows(self._causal_lm, input_ids, is_target, names, self.pack_tokens, progress)
        asked = [numbers[sequence] for sequence in sequences]
        wanted = is_target.take(asked).values
        found = {name: is_target.with_values(values).take(asked).values[wanted] for name, values in measured.items()}
        return found, len(input_ids.values)
