"""A model for lm-evaluation-harness whose log-likelihoods go through the packed scorer, shared beginnings once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from tokenclean.evaluation.task_data import quiet_harness
from tokenclean.models.model_parts import lm_of
from tokenclean.scoring.continuation_likelihoods import ContinuationScorer
from tokenclean.scoring.scorer import PACK_TOKENS

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_HarnessModel: Any = HFLM  # its decorator hides what it is


class PackedLM(_HarnessModel):
    """The harness's own model class with its tokenization, truncation and generation, but our passes for likelihoods.

    ``model``: a loaded causal LM, or the PEFT model around one; ``tokenizer``: its own. ``precision``, ``pack_tokens``
    as of ``Scorer``; ``batch_size``: of generation. ``requested_tokens``/``computed_tokens`` count what likelihoods
    asked for and what went through the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        *,
        precision: str = "exact",
        pack_tokens: int = PACK_TOKENS,
        batch_size: int = 8,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        with quiet_harness():
            super().__init__(
                pretrained=lm_of(model),
                tokenizer=tokenizer,
                batch_size=batch_size,
                max_length=max_length,
                backend="causal",
            )
        self._model = model
        self._scorer = ContinuationScorer(model, precision=precision, pack_tokens=pack_tokens)
        self._progress = progress
        self.requested_tokens = self.computed_tokens = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As the harness's, without its bars."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """As the harness's, without its bars."""
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """As the harness's: (Σ log p, is greedy) of each request, long ones cut on the left."""
        fitting, most = [], self.max_length + 1
        for _, context, continuation in requests:
            tokens = [*context, *continuation][-most:]
            fitting.append((tokens[: -len(continuation)], tokens[-len(continuation) :]))
        if too_long := sum(len(context) + len(continuation) > most for _, context, continuation in requests):
            logger.warning(
                "%d of %d requests are longer than the model's %d tokens and were cut on the left",
                too_long,
                len(requests),
                self.max_length,
            )
        found = self._scorer.score(fitting, self._progress)
        self.requested_tokens += found.requested_tokens
        self.computed_tokens += found.computed_tokens
        answers = list(zip(found.loglikelihoods.tolist(), found.is_greedy.tolist(), strict=True))
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers
