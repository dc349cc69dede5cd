"""Ratings from an OpenAI-compatible server: many requests at a time, and patience with one that fails or is busy."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import urlsplit

from tokenclean.ds2.answer_cache import AnswerCache
from tokenclean.ds2.questions import ATTEMPTS, Questions, RatingRun, known_rating
from tokenclean.ds2.rater_settings import ServerSettings
from tokenclean.ds2.rating_prompt import Rating, parse_answer
from tokenclean.ds2.ratings import ratings_of
from tokenclean.errors import ModelError, RecipeError, RunError
from tokenclean.observer import Progress
from tokenclean.redaction import redact

logger = logging.getLogger(__name__)

_PATH = "/chat/completions"
_VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_SHORTEST_SECRET = 8  # a shorter key is no secret (the EMPTY of local servers); replacing it would garble texts
_TRANSIENT = frozenset({200, 408, 409, 425, 429})  # 200: one without an answer in it; and 500 to 599
_ABOUT_ONE_ROW = frozenset({400, 413, 422})  # a prompt that is too long, or that a filter holds back
_LONGEST_PAUSE_SECONDS = 600.0
_NOTABLE_PAUSE_SECONDS = 30.0
_EXCERPT_CHARACTERS = 300


@dataclass(frozen=True)
class Endpoint:
    """A server of chat completions, and how to ask it.

    ``url``: such as ``https://api.openai.com/v1``; requests go to ``/chat/completions`` below it. Where the variable of
    the key is not set, none is sent. Requests are repeated after the answers 408, 429 and 5xx, broken ones and none
    within the timeout. Between tries the wait is ``first_wait_seconds``, doubled each time up to
    ``longest_wait_seconds``, less a random part of up to a half, and at least as long as the server asks for.

    Raises RecipeError listing what is wrong.
    """

    url: str
    settings: ServerSettings = field(default_factory=ServerSettings)
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        problems = list(_url_problems(self.url))
        if not _VARIABLE_NAME.fullmatch(self.settings.key_variable):  # not shown: it might be a key
            problems.append("key_variable: expected the name of an environment variable, such as OPENAI_API_KEY")
        if problems:
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


class _Response(Protocol):
    """What is read of an HTTP response."""

    status_code: int
    text: str
    headers: Mapping[str, str]


_Answer = tuple[str, dict[str, int]]
"""Its text, and how many ``prompt_tokens`` and ``output_tokens`` the server counted."""


class _Rater:
    """One run of questions. It holds the key to remove it from what the server says."""

    def __init__(
        self, questions: Questions, endpoint: Endpoint, cache: AnswerCache, attempts: int, progress: Progress | None
    ) -> None:
        settings = endpoint.settings
        self._questions, self._endpoint, self._settings, self._cache = questions, endpoint, settings, cache
        self._attempts, self._progress = attempts, progress
        self._key = _read_key(settings.key_variable)
        self._pace = _Pace(settings.requests_per_minute)
        self._counts = Counter(asked=0, found=0, refused=0, prompt_tokens=0, output_tokens=0)
        self._last_refusal: ModelError | None = None
        self._http = _http_library()
        self._client = self._http.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self._http.Timeout(settings.timeout, pool=None),
            limits=self._http.Limits(max_connections=settings.concurrency),
        )

    async def run(self) -> RatingRun:
        count, done = len(self._questions), 0
        rows = iter(range(count))
        ratings: list[Rating | None] = [None] * count

        async def work() -> None:
            nonlocal done
            for row in rows:
                ratings[row] = await self._rate(row)
                done += 1
                if self._progress is not None:
                    self._progress(done, count)

        async with self._client:
            # The number of workers bounds the open requests: each has one, and waits with it.
            workers = [asyncio.create_task(work()) for _ in range(self._settings.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
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
            answer = await self._ask(row)
            if answer is None:
                self._counts["refused"] += 1
                return None
            (text, tokens), used = answer, used + 1
            self._cache.add(question.key, used, text, row=self._questions.conversations[row].id, **tokens)
            self._counts.update(asked=1, **tokens)
            rating = parse_answer(text)
        return rating

    async def _ask(self, row: int) -> _Answer | None:
        """The answer to one question; None where the server refuses the row and such rows are marked."""
        address, settings, body, fault = self._endpoint.address, self._settings, self._body(row), ""
        for number in range(1, settings.tries + 1):
            await self._pace.wait()
            pause = 0.0
            try:
                async with asyncio.timeout(settings.timeout):
                    response: _Response = await self._client.post(address, json=body)
            except (TimeoutError, self._http.TimeoutException):
                fault = f"no answer within {settings.timeout:g} s"
            except self._http.InvalidURL as error:
                raise RecipeError(f"url: {self._endpoint.url!r} is not a URL ({error})", "endpoint") from error
            except (self._http.TransportError, self._http.DecodingError) as error:
                fault = self._hide(str(error)) or type(error).__name__
            else:
                if (answer := _read_answer(response)) is not None:
                    return self._hide(answer[0]), answer[1]
                if not _is_transient(response):
                    return self._refuse(row, response)
                form = ", but not in the form of a chat completion:" if response.status_code == 200 else ""
                fault = f"{response.status_code}{form} {self._excerpt(response)}"
                pause = self._asked_pause(response)
            if number < settings.tries:
                await self._wait_before(number + 1, pause, fault)
        raise RunError(
            f"{address} gave no answer in {settings.tries} tries, the last: {fault}. The answers so far are "
            f"kept in {self._cache.folder}; the same command continues from there"
        )

    def _body(self, row: int) -> dict[str, object]:
        sampling = self._questions.sampling
        given = sampling.model_dump(exclude={"max_tokens"}, exclude_none=True)
        messages = [{"role": "user", "content": self._questions.prompt(row).text}]
        limit = {self._settings.tokens_parameter: sampling.max_tokens}
        return {"model": self._questions.rater, "messages": messages, **given, **limit}

    async def _wait_before(self, number: int, pause: float, fault: str) -> None:
        """Wait before try ``number``; a pause that the server asks for holds back all other requests too."""
        endpoint = self._endpoint
        if pause:
            self._pace.hold(pause)
        doubled = endpoint.first_wait_seconds * 2.0 ** min(number - 2, 60)
        seconds = max(pause, min(endpoint.longest_wait_seconds, doubled) * random.uniform(0.5, 1.0))
        level = logging.WARNING if seconds >= _NOTABLE_PAUSE_SECONDS else logging.INFO
        text = "%s: %s; try %d of %d in %.1f s"
        logger.log(level, text, endpoint.address, fault, number, self._settings.tries, seconds)
        await asyncio.sleep(seconds)

    def _asked_pause(self, response: _Response) -> float:
        """Seconds that the server asks to wait, 0 for none. Raises RunError for a wait that is too long."""
        seconds = pause_of(response.headers.get("retry-after", ""))
        if seconds > _LONGEST_PAUSE_SECONDS:
            raise RunError(
                f"{self._endpoint.address} asks to wait {seconds:,.0f} s; repeat the same command after that, the "
                f"answers so far are kept in {self._cache.folder}"
            )
        return seconds

    def _refuse(self, row: int, response: _Response) -> None:
        """Remember the refusal of a row that is to be marked. Raises any other as ModelError."""
        status, conversation = response.status_code, self._questions.conversations[row]
        variable = self._settings.key_variable
        excerpt = self._excerpt(response)
        if status == 401:
            excerpt = ""  # servers repeat parts of the key
            state = "holds a key that it does not accept" if self._key else "is not set"
            remedy = f"the environment variable {variable} {state}; set it, or name another with key_variable"
        elif status == 404:
            remedy = f"check the URL (most end in /v1) and the model's name {self._questions.rater!r}"
        elif status in _ABOUT_ONE_ROW:
            remedy = (
                f"asked about {conversation.file}:{conversation.line} ({conversation.id}). If the sampling settings "
                "are the cause, change them; if it is this row, shorten it, remove it from the pool, or have such rows "
                "marked as unrated (mark_refused)"
            )
        elif 300 <= status < 400:
            remedy = "it redirects to another address; use that one"
        else:
            remedy = f"check the account and the rights of the key in {variable}"
        reason = f": {excerpt}" if excerpt else ""
        refusal = ModelError(f"{self._endpoint.address} refuses with {status}{reason}; {remedy}")
        if status not in _ABOUT_ONE_ROW or not self._settings.mark_refused:
            raise refusal
        self._last_refusal = refusal

    def _excerpt(self, response: _Response) -> str:
        """The beginning of what the server said, on one line and without the key."""
        text = response.text
        with suppress(ValueError, RecursionError, LookupError, TypeError):
            error = json.loads(text)["error"]
            text = error if isinstance(error, str) else str(error["message"])
        return " ".join(self._hide(text).split())[:_EXCERPT_CHARACTERS]

    def _hide(self, text: str) -> str:
        return redact(text.replace(self._key, "…") if len(self._key) >= _SHORTEST_SECRET else text)


class _Pace:
    """When the next request may be sent: evenly spaced, and not while the server has asked for a pause."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap_seconds = 0.0 if per_minute is None else 60.0 / per_minute
        self._next_slot = self._free_from = -math.inf

    async def wait(self) -> None:
        clock = asyncio.get_running_loop().time
        slot = max(clock(), self._next_slot)
        self._next_slot = slot + self._gap_seconds
        while (seconds := max(slot, self._free_from) - clock()) > 0:
            await asyncio.sleep(seconds)

    def hold(self, seconds: float) -> None:
        self._free_from = max(self._free_from, asyncio.get_running_loop().time() + seconds)


def pause_of(retry_after: str) -> float:
    """Seconds from now that a Retry-After header asks for, given as seconds or as a date; 0 for anything else."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _is_transient(response: _Response) -> bool:
    if response.status_code == 429 and "insufficient_quota" in response.text:  # waiting would not help
        return False
    return response.status_code in _TRANSIENT or response.status_code >= 500


def _read_answer(response: _Response) -> _Answer | None:
    """The first choice's text, empty where it has none; None for another status or form, such as a cut-off body."""
    if response.status_code != 200:
        return None
    try:
        body = json.loads(response.text)
        text = body["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    counts = {"prompt_tokens": usage.get("prompt_tokens"), "output_tokens": usage.get("completion_tokens")}
    tokens = {name: count if isinstance(count, int) else 0 for name, count in counts.items()}
    return text if isinstance(text, str) else "", tokens


def _read_key(variable: str) -> str:
    """The key in the environment, empty for none. Raises RecipeError, without it, for one that no header can hold."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"the environment variable {variable} contains characters not allowed in an API key; set it again",
            "endpoint",
        )
    return key


def _url_problems(url: str) -> Iterator[str]:
    """What is wrong with the URL, which is not shown where it may hold a secret."""
    try:
        parts = urlsplit(url)
        has_secret = bool(parts.username or parts.password or parts.query or parts.fragment)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_secret = is_address = False
    if has_secret:
        yield "url: expected no user, password or query in it; a key belongs in the environment"
    elif not is_address:
        yield f"url: expected http(s)://host/v1, found {redact(url)!r}"


def _http_library() -> Any:
    """httpx or httpx2, whichever the Hub's client depends on."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    return import_module(HTTPError.__module__.partition(".")[0])
