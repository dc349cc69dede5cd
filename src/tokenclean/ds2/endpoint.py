"""Ratings from an OpenAI-compatible server of chat completions."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tokenclean.ds2.questions import ATTEMPTS, Questions, RatingRun, known_rating
from tokenclean.ds2.rater_settings import RaterServerSettings
from tokenclean.ds2.rating_prompt import Rating, parse_answer
from tokenclean.ds2.ratings import ratings_of
from tokenclean.errors import ModelError, RecipeError
from tokenclean.observer import Progress
from tokenclean.recipe.server_settings import server_problems
from tokenclean.servers.answer_cache import AnswerCache
from tokenclean.servers.client import ABOUT_ONE_ROW, Refusal, ServerClient

logger = logging.getLogger(__name__)

_PATH = "/chat/completions"


@dataclass(frozen=True)
class Endpoint:
    """A server of chat completions, and how to ask it.

    ``url``: such as ``https://api.openai.com/v1``; requests go to ``/chat/completions`` below it. Waits between tries
    are those of ``ServerClient``.

    Raises RecipeError listing what is wrong.
    """

    url: str
    settings: RaterServerSettings = field(default_factory=RaterServerSettings)
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        if problems := list(server_problems(self.url, self.settings.key_variable)):
            raise RecipeError(problems, "endpoint")

    @property
    def address(self) -> str:
        """The URL that requests go to."""
        base = self.url.rstrip("/")
        return base if base.endswith(_PATH) else base + _PATH


def rate_by_endpoint(
    questions: Questions,
    endpoint: Endpoint,
    cache: AnswerCache,
    *,
    attempts: int = ATTEMPTS,
    progress: Progress | None = None,
) -> RatingRun:
    """Ask what the cache does not answer; each answer is added to it at once.

    A question is asked up to ``attempts`` times, answers in the cache included, until one can be read; its row has no
    rating if none can. The key is read from the environment here and goes nowhere but into the requests.

    Raises ModelError where the server refuses (401, 404 and the like) and RunError where it does not answer. The
    answers until then are in the cache, so the same call continues from there.
    """
    return asyncio.run(_Rater(questions, endpoint, cache, attempts, progress).run())


_Answer = tuple[str, dict[str, int]]
"""Its text, and how many ``prompt_tokens`` and ``output_tokens`` the server counted."""


class _Rater:
    """One run of questions."""

    def __init__(
        self, questions: Questions, endpoint: Endpoint, cache: AnswerCache, attempts: int, progress: Progress | None
    ) -> None:
        self._questions, self._endpoint, self._settings, self._cache = questions, endpoint, endpoint.settings, cache
        self._attempts, self._progress = attempts, progress
        self._counts = Counter(asked=0, found=0, refused=0, prompt_tokens=0, output_tokens=0)
        self._last_refusal: ModelError | None = None
        self._client = ServerClient(
            endpoint.settings,
            cache.folder,
            first_wait_seconds=endpoint.first_wait_seconds,
            longest_wait_seconds=endpoint.longest_wait_seconds,
        )

    async def run(self) -> RatingRun:
        count, done = len(self._questions), 0
        ratings: list[Rating | None] = [None] * count

        async def work(row: int) -> None:
            nonlocal done
            ratings[row] = await self._rate(row)
            done += 1
            if self._progress is not None:
                self._progress(done, count)

        async with self._client:
            await self._client.work_through(count, work)
        if self._last_refusal is not None:
            if not self._counts["asked"] and not self._counts["found"]:  # the request itself is wrong, not a row
                raise self._last_refusal
            logger.warning("%d rows have no rating; the last refusal: %s", self._counts["refused"], self._last_refusal)
        return RatingRun(ratings_of(self._questions.ids, self._questions.rater, ratings), **self._counts)

    async def _rate(self, row: int) -> Rating | None:
        question = self._questions.items[row]
        rating, used = known_rating(self._cache.answers, question, self._attempts)
        self._counts["found"] += rating is not None or used == self._attempts
        while rating is None and used < self._attempts:
            answer = await self._client.post(self._endpoint.address, self._body(row), _read_answer, "a chat completion")
            if isinstance(answer, Refusal):
                self._refuse(row, answer)
                self._counts["refused"] += 1
                return None
            (text, tokens), used = answer, used + 1
            text = self._client.hide(text)
            self._cache.add(question.key, used, text, row=self._questions.conversations[row].id, **tokens)
            self._counts.update(asked=1, **tokens)
            rating = parse_answer(text)
        return rating

    def _body(self, row: int) -> dict[str, object]:
        sampling = self._questions.sampling
        given = sampling.model_dump(exclude={"max_tokens"}, exclude_none=True)
        messages = [{"role": "user", "content": self._questions.prompt(row).text}]
        limit = {self._settings.tokens_parameter: sampling.max_tokens}
        return {"model": self._questions.rater, "messages": messages, **given, **limit}

    def _refuse(self, row: int, refusal: Refusal) -> None:
        """Remember the refusal of a row that is to be marked. Raises any other as ModelError."""
        if refusal.status not in ABOUT_ONE_ROW:
            raise self._client.refused(refusal, self._questions.rater)
        conversation = self._questions.conversations[row]
        error = refusal.error(
            f"asked about {conversation.file}:{conversation.line} ({conversation.id}). If the sampling settings "
            "are the cause, change them; if it is this row, shorten it, remove it from the pool, or have such rows "
            "marked as unrated (mark_refused)"
        )
        if not self._settings.mark_refused:
            raise error
        self._last_refusal = error


def _read_answer(body: Any) -> _Answer:
    """The first choice's text, empty where it has none."""
    text = body["choices"][0]["message"]["content"]
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    counts = {"prompt_tokens": usage.get("prompt_tokens"), "output_tokens": usage.get("completion_tokens")}
    tokens = {name: count if isinstance(count, int) else 0 for name, count in counts.items()}
    return text if isinstance(text, str) else "", tokens
