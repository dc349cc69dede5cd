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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, Literal
from urllib.parse import urlsplit

from tokenclean.ds2.answer_cache import AnswerCache
from tokenclean.ds2.questions import ATTEMPTS, Progress, Questions, RatingRun, check_attempts, known_rating
from tokenclean.ds2.rating_prompt import Rating, parse_answer
from tokenclean.ds2.ratings import ratings_of
from tokenclean.errors import ModelError, RecipeError, RunError
from tokenclean.redaction import redact

logger = logging.getLogger(__name__)

_PATH = "/chat/completions"
_VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_SHORTEST_SECRET = 8  # a shorter key is none, such as the EMPTY of local servers, and replacing it would garble texts
_TRANSIENT = frozenset({408, 409, 425, 429})  # and 500 to 599
_OF_ONE_ROW = frozenset({400, 413, 422})  # a prompt that is too long, or that a filter holds back
_LONGEST_PAUSE_SECONDS = 600.0
_TOLD_PAUSE_SECONDS = 30.0
_EXCERPT_CHARACTERS = 300


@dataclass(frozen=True)
class Endpoint:
    """A server of chat completions, and how it is asked.

    ``url``: such as ``https://api.openai.com/v1``; requests go to ``/chat/completions`` below it. ``key_variable``:
    name of the environment variable that holds the API key; where it is not set, none is sent. ``concurrency``:
    requests under way at a time, at most. ``requests_per_minute``: evenly spaced; None for no limit. ``tries``: of one
    request, against answers 408, 429 and 5xx, broken ones and none within ``timeout_seconds``; between them it waits
    ``first_wait_seconds``, each time twice as long up to ``longest_wait_seconds``, less a random part of up to a half,
    and no shorter than the server asks for. ``tokens_parameter``: what the server calls the limit of an answer.
    ``marks_refused``: take a row that the server refuses (400, 413, 422) for one without a rating, instead of stopping.

    Raises RecipeError listing what is wrong.
    """

    url: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_seconds: float = 60.0
    tries: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    marks_refused: bool = False

    def __post_init__(self) -> None:
        problems = list(_url_problems(self.url))
        if not _VARIABLE_NAME.fullmatch(self.key_variable):  # not shown: it might be a key
            problems.append("key_variable: expected the name of an environment variable, such as OPENAI_API_KEY")
        for name in ("concurrency", "tries"):
            if getattr(self, name) < 1:
                problems.append(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.requests_per_minute is not None and not 0 < self.requests_per_minute < math.inf:
            problems.append(f"requests_per_minute: expected a number above 0, found {self.requests_per_minute:g}")
        if not 0 < self.timeout_seconds < math.inf:
            problems.append(f"timeout_seconds: expected a number above 0, found {self.timeout_seconds:g}")
        if not 0 <= self.first_wait_seconds <= self.longest_wait_seconds < math.inf:
            problems.append("first_wait_seconds: expected from 0 up to longest_wait_seconds")
        if problems:
            raise RecipeError(problems, "endpoint")

    @property
    def address(self) -> str:
        """Where requests go."""
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
    """``ask_endpoint`` from code that is not asynchronous."""
    return asyncio.run(ask_endpoint(questions, endpoint, cache, attempts=attempts, progress=progress))


async def ask_endpoint(
    questions: Questions,
    endpoint: Endpoint,
    cache: AnswerCache,
    *,
    attempts: int = ATTEMPTS,
    progress: Progress | None = None,
) -> RatingRun:
    """Ask what the cache does not answer, each answer kept in it at once.

    A question is asked up to ``attempts`` times, answers in the cache included, until one can be read; without any its
    row has no rating. The key is read from the environment here and goes nowhere but into the requests.

    Raises ModelError where the server refuses (401, 404 and the like) and RunError where it does not answer; the
    answers until then are in the cache, so that the same call goes on from there.
    """
    check_attempts(attempts)
    asking = _Asking(questions, endpoint, cache, attempts, progress)
    async with asking.open_client() as client:
        return await asking.run(client)


class _Asking:
    """One run of questions. The key is held to be taken out of what the server says."""

    def __init__(
        self, questions: Questions, endpoint: Endpoint, cache: AnswerCache, attempts: int, progress: Progress | None
    ) -> None:
        self._questions, self._endpoint, self._cache = questions, endpoint, cache
        self._attempts, self._progress = attempts, progress
        self._http, self._key = _http_library(), _read_key(endpoint.key_variable)
        self._pace = _Pace(endpoint.requests_per_minute)
        self._ratings: list[Rating | None] = [None] * len(questions)
        self._found = self._asked = self._done = self._refused = 0
        self._last_refusal: ModelError | None = None
        self._prompt_tokens = self._output_tokens = 0

    def open_client(self) -> Any:
        """An HTTP client that sends the key."""
        many = self._endpoint.concurrency
        return self._http.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self._http.Timeout(self._endpoint.timeout_seconds, pool=None),
            limits=self._http.Limits(max_connections=many, max_keepalive_connections=many),
        )

    async def run(self, client: Any) -> RatingRun:
        rows = iter(range(len(self._questions)))
        # So many workers are the bound on requests under way: each has one, and waits with it.
        workers = [asyncio.create_task(self._work(client, rows)) for _ in range(self._endpoint.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if self._last_refusal is not None:
            if not self._asked and not self._found:  # no row at fault: the request itself
                raise self._last_refusal
            logger.warning("%d rows have no rating; the last refusal: %s", self._refused, self._last_refusal)
        ratings = ratings_of(self._questions.ids, self._questions.rater, self._ratings)
        counts = (self._asked, self._found, self._refused, self._prompt_tokens, self._output_tokens)
        return RatingRun(ratings, *counts)

    async def _work(self, client: Any, rows: Iterator[int]) -> None:
        for row in rows:
            self._ratings[row] = await self._rate(client, row)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, len(self._questions))

    async def _rate(self, client: Any, row: int) -> Rating | None:
        question = self._questions.items[row]
        rating, used = known_rating(self._cache.answers, question, self._attempts)
        if rating is not None or used == self._attempts:
            self._found += 1
        while rating is None and used < self._attempts:
            answer = await self._ask(client, row)
            if answer is None:
                self._refused += 1
                return None
            used += 1
            tokens = {"prompt_tokens": answer.prompt_tokens, "output_tokens": answer.output_tokens}
            self._cache.add(question.key, used, answer.text, row=self._questions.conversations[row].id, **tokens)
            self._asked += 1
            self._prompt_tokens += answer.prompt_tokens
            self._output_tokens += answer.output_tokens
            rating = parse_answer(answer.text)
        return rating

    async def _ask(self, client: Any, row: int) -> _Answer | None:
        """The answer to one request; None where the row is refused and such rows are marked."""
        body, fault = self._body(row), ""
        for number in range(1, self._endpoint.tries + 1):
            await self._pace.wait()
            pause = 0.0
            try:
                async with asyncio.timeout(self._endpoint.timeout_seconds):
                    response = await client.post(self._endpoint.address, json=body)
            except (TimeoutError, self._http.TimeoutException):
                fault = f"no answer within {self._endpoint.timeout_seconds:g} s"
            except self._http.InvalidURL as error:
                raise RecipeError(f"url: {self._endpoint.url!r} is none ({error})", "endpoint") from error
            except (self._http.TransportError, self._http.DecodingError) as error:
                fault = self._hide(str(error)) or type(error).__name__
            else:
                if response.status_code == 200:
                    if (answer := _read_answer(response)) is not None:
                        return _Answer(self._hide(answer.text), answer.prompt_tokens, answer.output_tokens)
                    fault = f"200, but not in the form of a chat completion: {self._excerpt(response)}"
                elif not self._is_transient(response):
                    refusal = self._refusal(row, response)
                    if response.status_code not in _OF_ONE_ROW or not self._endpoint.marks_refused:
                        raise refusal
                    self._last_refusal = refusal
                    return None
                else:
                    fault = f"{response.status_code} {self._excerpt(response)}"
                    pause = self._asked_pause(response)
            if number < self._endpoint.tries:
                await self._wait_before(number + 1, pause, fault)
        raise RunError(
            f"{self._endpoint.address} gave no answer in {self._endpoint.tries} tries, the last: {fault}. The answers "
            f"so far are kept in {self._cache.folder}; the same command goes on from there"
        )

    def _body(self, row: int) -> dict[str, Any]:
        sampling = self._questions.sampling
        given = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": sampling.seed,
            self._endpoint.tokens_parameter: sampling.max_tokens,
        }
        messages = [{"role": "user", "content": self._questions.prompt(row).text}]
        settings = {name: value for name, value in given.items() if value is not None}
        return {"model": self._questions.rater, "messages": messages, **settings}

    async def _wait_before(self, number: int, pause: float, fault: str) -> None:
        """Wait before try ``number``; a pause that the server asks for holds back all other requests too."""
        endpoint = self._endpoint
        if pause:
            self._pace.hold(pause)
        doubled = endpoint.first_wait_seconds * 2.0 ** min(number - 2, 60)
        seconds = max(pause, min(endpoint.longest_wait_seconds, doubled) * random.uniform(0.5, 1.0))
        tell = logger.warning if seconds >= _TOLD_PAUSE_SECONDS else logger.info
        tell("%s: %s; try %d of %d in %.1f s", endpoint.address, fault, number, endpoint.tries, seconds)
        await asyncio.sleep(seconds)

    def _is_transient(self, response: Any) -> bool:
        if response.status_code == 429 and "insufficient_quota" in response.text:  # which no waiting mends
            return False
        return response.status_code in _TRANSIENT or response.status_code >= 500

    def _asked_pause(self, response: Any) -> float:
        """Seconds that the server asks to wait, 0 for none. Raises RunError for more than anybody would sit out."""
        seconds = pause_of(response.headers.get("retry-after", ""))
        if seconds > _LONGEST_PAUSE_SECONDS:
            raise RunError(
                f"{self._endpoint.address} asks to wait {seconds:,.0f} s; start the same command again then, the "
                f"answers so far are kept in {self._cache.folder}"
            )
        return seconds

    def _refusal(self, row: int, response: Any) -> ModelError:
        status, conversation = response.status_code, self._questions.conversations[row]
        variable = self._endpoint.key_variable
        excerpt = self._excerpt(response)
        said = f": {excerpt}" if excerpt else ""
        if status == 401:
            said = ""  # servers repeat parts of the key
            state = "holds a key that it does not take" if self._key else "is not set"
            remedy = f"the environment variable {variable} {state}; set it, or name another with key_variable"
        elif status == 404:
            remedy = f"check the URL (most end in /v1) and the model's name {self._questions.rater!r}"
        elif status in _OF_ONE_ROW:
            remedy = (
                f"asked about {conversation.file}:{conversation.line} ({conversation.id}). Where it is the sampling "
                "settings, change them; where it is this row, cut it shorter, take it out of the pool, or have such "
                "rows marked as unrated (marks_refused)"
            )
        elif 300 <= status < 400:
            remedy = "it sends on to another address; give that one"
        else:
            remedy = f"check the account and the rights of the key in {variable}"
        return ModelError(f"{self._endpoint.address} refuses with {status}{said}; {remedy}")

    def _excerpt(self, response: Any) -> str:
        """The beginning of what the server said, on one line and without the key."""
        text = response.text
        with suppress(ValueError, RecursionError, LookupError, TypeError):
            told = json.loads(text)["error"]
            text = told if isinstance(told, str) else str(told["message"])
        return " ".join(self._hide(text).split())[:_EXCERPT_CHARACTERS]

    def _hide(self, text: str) -> str:
        return redact(text.replace(self._key, "…") if len(self._key) >= _SHORTEST_SECRET else text)


@dataclass(frozen=True)
class _Answer:
    text: str
    prompt_tokens: int
    output_tokens: int


class _Pace:
    """When the next request may go: evenly spaced, and not while the server has asked for a pause."""

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


def _read_answer(response: Any) -> _Answer | None:
    """The first choice's text, empty where it has none; None for another form, a cut-off one included."""
    try:
        body = json.loads(response.text)
        text = body["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt, output = (counts.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return _Answer(
        text if isinstance(text, str) else "",
        prompt if isinstance(prompt, int) else 0,
        output if isinstance(output, int) else 0,
    )


def _read_key(variable: str) -> str:
    """The key in the environment, empty for none. Raises RecipeError, without it, for one that no header can hold."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"the environment variable {variable} holds signs that no API key has; set it anew", "endpoint"
        )
    return key


def _url_problems(url: str) -> Iterator[str]:
    """What is wrong with the URL, which is not shown where it may hold a secret."""
    try:
        parts = urlsplit(url)
        has_secret = bool(parts.username or parts.password or parts.query or parts.fragment)
        is_address = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        has_secret = is_address = False
    if has_secret:
        yield "url: expected neither user, password nor query in it; a key belongs into the environment"
    elif not is_address:
        yield f"url: expected http(s)://host/v1, found {redact(url)!r}"


def _http_library() -> Any:
    """httpx or httpx2, whichever the Hub's client brings along."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    return import_module(HTTPError.__module__.partition(".")[0])
