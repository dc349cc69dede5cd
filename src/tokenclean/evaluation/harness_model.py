"""A model for lm-evaluation-harness: log-likelihoods come from the packed scorer, shared prefixes computed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

from tokenclean.evaluation.task_data import quiet_harness
from tokenclean.models.model_parts import lm_of
from tokenclean.observer import Progress
from tokenclean.scoring.continuation_likelihoods import ContinuationScorer
from tokenclean.scoring.scorer import PACK_TOKENS

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_HarnessModel: Any = HFLM  # its decorator hides its type


class PackedLM(_HarnessModel):
    """The harness's own model class with its tokenization, truncation and generation, but our passes for likelihoods.

    ``model``: a loaded causal LM, or the PEFT model around one; ``tokenizer``: its own. ``precision``, ``pack_tokens``:
    as for ``Scorer``; ``batch_size``: for generation. ``requested_tokens`` counts the tokens of all likelihood
    requests, ``computed_tokens`` those that went through the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
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

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The harness's, without progress bars."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The harness's, without progress bars."""
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(Σ log p, is greedy) of each request, long ones cut on the left as the harness cuts them."""
        fitting, too_long, most = [], 0, self.max_length + 1
        for _, context, continuation in requests:
            tokens = [*context, *continuation]
            too_long += len(tokens) > most
            tokens = tokens[-most:]
            fitting.append((tokens[: -len(continuation)], tokens[-len(continuation) :]))
        if too_long:
            text = "%d of %d requests are longer than the model's %d tokens and were cut on the left"
            logger.warning(text, too_long, len(requests), self.max_length)
        found = self._scorer.score(fitting, self._progress)
        self.requested_tokens += found.requested_tokens
        self.computed_tokens += found.computed_tokens
        answers = list(zip(found.loglikelihoods.tolist(), found.is_greedy.tolist(), strict=True))
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers
