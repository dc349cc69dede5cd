"""Answers from an OpenAI-compatible server of chat completions."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tokenclean.asking.questions import ATTEMPTS, Outcome, Questions
from tokenclean.asking.settings import EndpointSettings
from tokenclean.errors import ModelError, RecipeError
from tokenclean.observer import Progress
from tokenclean.recipe.server_settings import server_problems
from tokenclean.servers.answer_cache import AnswerCache
from tokenclean.servers.client import ABOUT_ONE_ROW, Refusal, ServerClient

logger = logging.getLogger(__name__)

_PATH = "/chat/completions"

T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """A server of chat completions, and how to ask it.

    ``url``: such as ``https://api.openai.com/v1``; requests go to ``/chat/completions`` below it. Waits between tries
    are those of ``ServerClient``.

    Raises RecipeError listing what is wrong.
    """

    url: str
    settings: EndpointSettings = field(default_factory=EndpointSettings)
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


def ask_endpoint(
    questions: Questions[T],
    endpoint: Endpoint,
    cache: AnswerCache,
    *,
    attempts: int = ATTEMPTS,
    progress: Progress | None = None,
) -> Outcome[T]:
    """Ask what the cache does not answer; each answer is added to it at once.

    A question is asked up to ``attempts`` times, answers in the cache included, until one can be read. The key is read
    from the environment here and goes nowhere but into the requests.

    Raises ModelError where the server refuses (401, 404 and the like) and RunError where it does not answer. The
    answers until then are in the cache, so the same call continues from there.
    """
    return asyncio.run(_Asking(questions, endpoint, cache, attempts, progress).run())


_Answer = tuple[str, dict[str, int]]
"""Its text, and how many ``prompt_tokens`` and ``output_tokens`` the server counted."""


class _Asking(Generic[T]):
    """One run of questions."""

    def __init__(
        self, questions: Questions[T], endpoint: Endpoint, cache: AnswerCache, attempts: int, progress: Progress | None
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

    async def run(self) -> Outcome[T]:
        count, done = len(self._questions), 0
        answers: list[T | None] = [None] * count

        async def work(number: int) -> None:
            nonlocal done
            answers[number] = await self._ask(number)
            done += 1
            if self._progress is not None:
                self._progress(done, count)

        async with self._client:
            await self._client.work_through(count, work)
        if self._last_refusal is not None:
            if not self._counts["asked"] and not self._counts["found"]:  # the request itself is wrong, not a row
                raise self._last_refusal
            logger.warning(
                "%d questions have no answer; the last refusal: %s", self._counts["refused"], self._last_refusal
            )
        return Outcome(tuple(answers), **self._counts)

    async def _ask(self, number: int) -> T | None:
        questions = self._questions
        answer, used = questions.known(number, self._cache.answers, self._attempts)
        self._counts["found"] += answer is not None or used == self._attempts
        while answer is None and used < self._attempts:
            body = self._body(number)
            received = await self._client.post(self._endpoint.address, body, _read_answer, "a chat completion")
            if isinstance(received, Refusal):
                self._refuse(number, received)
                self._counts["refused"] += 1
                return None
            (text, tokens), used = received, used + 1
            text = self._client.hide(text)
            self._cache.add(questions.items[number].key, used, text, row=questions.conversations[number].id, **tokens)
            self._counts.update(asked=1, **tokens)
            answer = questions.read(number, text)
        return answer

    def _body(self, number: int) -> dict[str, object]:
        sampling = self._questions.model.sampling
        given = sampling.model_dump(exclude={"max_tokens"}, exclude_none=True)
        messages = [{"role": "user", "content": self._questions.prompt(number).text}]
        limit = {self._settings.tokens_parameter: sampling.max_tokens}
        return {"model": self._questions.model.name, "messages": messages, **given, **limit}

    def _refuse(self, number: int, refusal: Refusal) -> None:
        """Remember the refusal of a row that is to be marked. Raises any other as ModelError."""
        if refusal.status not in ABOUT_ONE_ROW:
            raise self._client.refused(refusal, self._questions.model.name)
        conversation = self._questions.conversations[number]
        error = refusal.error(
            f"asked about {conversation.file}:{conversation.line} ({conversation.id}). If the sampling settings "
            "are the cause, change them; if it is this row, shorten it, remove it from the pool, or have such rows "
            "left out and marked (mark_refused)"
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
