"""One score a row, for data pipelines: the mean of its response tokens' scores under a base and a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.models.loading.load import check_two_models, load_model, load_tokenizer
from tokenclean.models.loading.tokenizer_identity import check_same_tokenizer, sample_texts
from tokenclean.pool import Conversation, Pool
from tokenclean.pool.formats import RowError
from tokenclean.pool.formats.row_parser import parse_row
from tokenclean.scoring.scorer import Scorer
from tokenclean.tokens import tokenize_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RowTokens(dict[str, np.ndarray]):
    """A row's per-token columns, each of its number of tokens: ``input_ids`` (int64), ``is_response`` (bool),
    ``base_loss``, and with a reference ``reference_loss`` and ``score`` (float32, nats, NaN off the response)."""

    def mean(self, column: str) -> float:
        """The mean of a column over the row's response tokens."""
        return float(self[column][self["is_response"]].mean(dtype=np.float64))


@dataclass(frozen=True)
class RowScorer:
    """Scores rows; models are loaded with the first rows.

    A row's score is the mean of loss under ``base`` − loss under ``reference`` over its response tokens, in nats a
    token; without a ``reference`` the mean loss under ``base``. Plain text is a response throughout. ``base``,
    ``reference``: Hub ids or folders, also of an adapter. ``template``, ``max_length``: as of ``tokenize_pool``.
    ``precision``: ``exact``, ``safe`` or ``fast``. ``device``: where the models run.

    Its methods raise ModelError for models that cannot be loaded or are one and the same, TokenizerMismatchError for
    two tokenizers, NonFiniteError for a loss that is NaN or infinite.
    """

    base: str
    reference: str | None = None
    template: str = "tulu"
    max_length: int = 2048
    precision: str = "exact"
    device: str = "cpu"

    def score(self, rows: Sequence[Mapping[str, object]]) -> list[float | None]:
        """A score for each row, in any form that a pool file may have (``messages``, ``prompt``/``completion``, …).

        None for a row that cannot be read or rendered, or has no response token.
        """
        return [None if row is None else row.mean(self.wanted) for row in self.score_tokens(rows)]

    @property
    def wanted(self) -> str:
        """The column that a row's score is the mean of."""
        return "base_loss" if self.reference is None else "score"

    def score_tokens(self, rows: Sequence[Mapping[str, object]]) -> list[RowTokens | None]:
        """The tokens of each row, with their losses; None as of ``score``."""
        conversations = [_conversation(row, number) for number, row in enumerate(rows)]
        scored: list[RowTokens | None] = [None] * len(rows)
        for targets in ("response", "all"):  # plain text has no answer to tell apart
            chosen = [c for c in conversations if c is not None and (c.kind == "text") == (targets == "all")]
            if chosen:
                for conversation, tokens in zip(chosen, self._tokens(chosen, targets), strict=True):
                    scored[conversation.line] = tokens if tokens["is_response"].any() else None
        return scored

    def _tokens(self, conversations: Sequence[Conversation], targets: str) -> list[RowTokens]:
        tokens = tokenize_pool(
            conversations, self._tokenizer, template=self.template, max_length=self.max_length, targets=targets
        )
        names = ("base_loss", "reference_loss")
        losses = [scorer.score(tokens)["loss"] for scorer in self._scorers]
        columns = {"input_ids": tokens.input_ids, "is_response": tokens.is_response}
        columns |= dict(zip(names, losses, strict=False))
        if self.reference is not None:
            columns["score"] = losses[0] - losses[1]
        return [RowTokens(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.base)

    @cached_property
    def _scorers(self) -> list[Scorer]:
        """The base's and the reference's, if there is one."""
        names = [self.base]
        if self.reference is not None:
            check_two_models(self.base, self.reference)
            texts = sample_texts(Pool(()), self._tokenizer, self.template)
            check_same_tokenizer(self._tokenizer, load_tokenizer(self.reference), texts)
            names.append(self.reference)
        return [Scorer(load_model(name, device=self.device), precision=self.precision) for name in names]


def _conversation(row: Mapping[str, object], number: int) -> Conversation | None:
    try:
        parsed = parse_row(dict(row))
    except RowError:
        return None
    return Conversation(f"row {number}", "rows", file="rows", line=number, **vars(parsed))
