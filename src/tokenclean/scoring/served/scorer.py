"""Losses of rows under a model behind a server: asked row by row, checked, and kept as they arrive."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.errors import ModelError, NonFiniteError, RunError
from tokenclean.models.packing import trimmed_lengths
from tokenclean.observer import Progress
from tokenclean.ragged import Ragged
from tokenclean.recipe import ServedModel
from tokenclean.scoring.scorer import SERVED_PRECISION
from tokenclean.scoring.served.alignment import place_tokens, spread, token_boundaries
from tokenclean.scoring.served.forms import ReturnedTokens
from tokenclean.scoring.served.probe import ServerForm, find_form
from tokenclean.servers.answer_cache import AnswerCache, open_cache
from tokenclean.servers.client import ABOUT_ONE_ROW, Refusal, ServerClient
from tokenclean.store import array_hash
from tokenclean.tokens import TokenizedPool
from tokenclean.tokens.encoding import exact_offset_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

ALIGNMENTS = {"ids": "token ids, checked one by one", "characters": "losses shared by characters"}
"""How a served model's losses come to be those of our tokens, by the value of ``align``."""

_SPECIAL = (
    "special tokens of the base within a row, such as the one that ends an answer, are sent as they are written; a "
    "server whose tokenizer does not know them reads them as plain text, so their losses mean little"
)


@dataclass(frozen=True)
class _Question:
    """Row ``row`` of a shard up to its last target: its ids (int64, L) and which of them are targets (bool, L)."""

    row: int
    name: str
    ids: np.ndarray
    is_target: np.ndarray

    @property
    def key(self) -> str:
        return array_hash(np.array([self.row]), self.ids, self.is_target)


class ServedScorer:
    """Scores rows under one served model, any number of times; the server is tried and checked at the first request.

    ``tokenizer``: the base's. ``note``: shows a line on how the server is asked. ``first_wait_seconds``: before the
    second try of a request.
    """

    def __init__(
        self,
        served: ServedModel,
        tokenizer: PreTrainedTokenizerBase,
        note: Callable[[str], None],
        *,
        first_wait_seconds: float = 1.0,
    ) -> None:
        self.served, self._note, self._first_wait_seconds = served, note, first_wait_seconds
        self._tokenizer = tokenizer
        self._form: ServerForm | None = None
        self._sent_tokens = 0

    def score(
        self, tokens: TokenizedPool, answers: Path, progress: Progress | None = None
    ) -> tuple[Ragged, dict[str, object]]:
        """Losses of the response tokens, float32 nats, NaN elsewhere, and their policy: how they were computed.

        ``answers``: the folder of answers so far; the same call continues from them. ``progress`` counts tokens.

        Raises ModelError where the server refuses, does not fit, or leaves out a token's log-probability,
        TokenizerMismatchError where it has another tokenizer than ``align: ids`` promises, NonFiniteError naming the
        row for a probability of 0, RunError where it does not answer or the token budget is used up.
        """
        labels = tokens.is_response
        lengths = trimmed_lengths(labels.values, labels.offsets)
        questions = [
            _Question(row, tokens.ids[row], tokens.input_ids[row][: lengths[row]], labels[row][: lengths[row]])
            for row in np.flatnonzero(lengths).tolist()
        ]
        whole = np.full(len(labels.values), np.nan, dtype=np.float32)
        forms: set[str] = set()
        with open_cache(answers) as cache:
            asyncio.run(self._ask_all([q for q in questions if (q.key, 1) not in cache.answers], cache, progress))
            for question in questions:
                form, _, packed = cache.answers[question.key, 1].partition(" ")
                indices = int(labels.offsets[question.row]) + np.flatnonzero(question.is_target)
                whole[indices] = np.frombuffer(base64.b64decode(packed), dtype="<f4")
                forms.add(form)
        return labels.with_values(whole), self._policy(forms)

    def _policy(self, forms: set[str]) -> dict[str, object]:
        return {
            "precision": SERVED_PRECISION,
            "api": " and ".join(sorted(forms)),
            "model": self.served.model,
            "url": self.served.url,
            "alignment": ALIGNMENTS[self.served.align],
        }

    async def _ask_all(self, questions: list[_Question], cache: AnswerCache, progress: Progress | None) -> None:
        total, done = sum(len(question.ids) for question in questions), 0
        if not questions:
            return
        self._spend(total, cache)
        backend = exact_offset_backend(self._tokenizer)
        async with ServerClient(self.served, cache.folder, first_wait_seconds=self._first_wait_seconds) as client:
            if self._form is None:
                self._form = await find_form(client, self.served, backend, [q.ids.tolist() for q in questions])
                self._note(
                    f"server {self.served.url}: {self.served.model}, asked in the form {self._form.form.name}; "
                    f"{ALIGNMENTS[self.served.align]}"
                )
                if self.served.align == "characters":
                    self._note(_SPECIAL)
            self._form.check_length(self.served, max(len(question.ids) for question in questions))

            async def work(number: int) -> None:
                nonlocal done
                question = questions[number]
                losses = await self._ask(client, backend, question)
                packed = base64.b64encode(losses.astype("<f4").tobytes()).decode()
                assert self._form is not None
                cache.add(question.key, 1, f"{self._form.form.name} {packed}", row=question.name)
                done += len(question.ids)
                if progress is not None:
                    progress(done, total)

            await client.work_through(len(questions), work)

    def _spend(self, count: int, cache: AnswerCache) -> None:
        budget = self.served.token_budget
        if budget is not None and self._sent_tokens + count > budget:
            raise RunError(
                f"token_budget: {self._sent_tokens:,} prompt tokens were sent to {self.served.url}, and the next rows "
                f"have {count:,}, more than the budget of {budget:,}; raise it, and the same command continues (the "
                f"answers so far are kept in {cache.folder})"
            )
        self._sent_tokens += count

    async def _ask(self, client: ServerClient, backend: Tokenizer, question: _Question) -> np.ndarray:
        """Losses of a row's targets, float64."""
        assert self._form is not None
        served, form = self.served, self._form.form
        by_ids = served.align == "ids"
        ids = question.ids.tolist()
        text, boundaries = ("", np.empty(0)) if by_ids else _text_of(backend, ids)
        body = form.body(served.model, ids if by_ids else text, by_ids)
        address = form.address(served.url)
        returned = await client.post(address, body, form.read, f"{form.name}: the log-probabilities of a prompt")
        if isinstance(returned, Refusal):
            if returned.status not in ABOUT_ONE_ROW:
                raise client.refused(returned, served.model)
            raise returned.error(
                f"asked about the {len(ids):,} tokens of row {question.name}. If they are too many, start the server "
                "with a greater maximal length or lower tokens.max_length; if ids are out of range, the server has "
                "another tokenizer than the base (align: characters sends text)"
            )
        losses = self._of_ids(question, returned) if by_ids else _by_characters(question, text, boundaries, returned)
        of_targets = losses[question.is_target]
        _check_losses(served, question, of_targets)
        return of_targets

    def _of_ids(self, question: _Question, returned: ReturnedTokens) -> np.ndarray:
        """The losses of the row's tokens, float64 (L,); every id that came back is compared."""
        if len(returned) != len(question.ids):
            raise ModelError(
                f"{self.served}: row {question.name} has {len(question.ids):,} tokens, the server returned "
                f"{len(returned):,}: it adds or cuts tokens, so its log-probabilities cannot be matched by position"
            )
        differ = (returned.ids != question.ids) & (np.arange(len(returned)) > 0)  # no form has the first one's id
        differ[0] = returned.ids[0] not in (question.ids[0], -1)
        if differ.any():
            place = int(differ.argmax())
            raise ModelError(
                f"{self.served}: token {place} of row {question.name} was sent as id {question.ids[place]} and came "
                f"back as {'no id' if returned.ids[place] < 0 else returned.ids[place]}, so its log-probability cannot "
                "be trusted"
            )
        return -returned.logprobs


def _text_of(backend: Tokenizer, ids: list[int]) -> tuple[str, np.ndarray]:
    """``token_boundaries`` without a special token that a row begins with: the server begins a text as its model
    does."""
    special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    if ids[0] not in special:
        return token_boundaries(backend, ids)
    text, boundaries = token_boundaries(backend, ids[1:])
    return text, np.concatenate([[0.0], boundaries])


def _by_characters(question: _Question, text: str, boundaries: np.ndarray, returned: ReturnedTokens) -> np.ndarray:
    try:
        ends, losses = place_tokens(text, returned)
    except ValueError as error:
        raise ModelError(
            f"row {question.name}: the tokens that the server returned do not make up the text sent: {error}"
        ) from error
    return spread(ends, losses, boundaries)


def _check_losses(served: ServedModel, question: _Question, losses: np.ndarray) -> None:
    """Raise ModelError or NonFiniteError for the first target without a finite loss."""
    if np.isfinite(losses).all():
        return
    first = int(np.flatnonzero(~np.isfinite(losses))[0])
    place = int(np.flatnonzero(question.is_target)[first])
    where = f"token {place} of row {question.name}"
    if np.isnan(losses[first]):
        raise ModelError(
            f"{served}: no log-probability for {where}, which is trained. A server gives none for the first token of a "
            "text: with align: characters begin rows with a prompt, or have the server add a BOS token"
        )
    raise NonFiniteError(f"{served}: gives {where} a probability of 0, so its loss is infinite; leave the row out")
