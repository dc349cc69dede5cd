"""Requests to a server: many at a time, and patience with one that fails or is busy."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tokenclean.errors import ModelError, RecipeError, RunError
from tokenclean.recipe.server_settings import ServerSettings
from tokenclean.redaction import redact

logger = logging.getLogger(__name__)

ABOUT_ONE_ROW = frozenset({400, 413, 422})
"""Refusals of a single request: a prompt that is too long, or that a filter holds back."""

_SHORTEST_SECRET = 8  # a shorter key is no secret (the EMPTY of local servers); replacing it would garble texts
_TRANSIENT = frozenset({200, 408, 409, 425, 429})  # 200: one without an answer in it; and 500 to 599
_LONGEST_PAUSE_SECONDS = 600.0
_NOTABLE_PAUSE_SECONDS = 30.0
_EXCERPT_CHARACTERS = 300

_T = TypeVar("_T")


class Response(Protocol):
    """What is read of an HTTP response."""

    status_code: int
    text: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Refusal:
    """An answer that repeating the request would not change. ``excerpt``: the beginning of what the server said, on one
    line and without the key."""

    address: str
    status: int
    excerpt: str

    def error(self, remedy: str) -> ModelError:
        """The refusal as an error. ``remedy``: what to do about it."""
        reason = f": {self.excerpt}" if self.excerpt else ""
        return ModelError(f"{self.address} refuses with {self.status}{reason}; {remedy}")


class ServerClient:
    """Requests to one server, to be used as an asynchronous context manager; it holds the key to remove it from what
    the server says.

    A request is repeated after the answers 408, 429 and 5xx, broken ones and none within the timeout. Between tries the
    wait is ``first_wait_seconds``, doubled each time up to ``longest_wait_seconds``, less a random part of up to a
    half, and at least as long as the server asks for. ``answers``: folder in which the caller keeps the answers, which
    errors name.
    The key is read from the environment here and goes nowhere but into the requests; where its variable is not set,
    none is sent. Raises RecipeError, without showing it, for a key that no header can hold.
    """

    def __init__(
        self,
        settings: ServerSettings,
        answers: Path,
        *,
        first_wait_seconds: float = 1.0,
        longest_wait_seconds: float = 60.0,
    ) -> None:
        self._settings, self._answers = settings, answers
        self._first_wait_seconds, self._longest_wait_seconds = first_wait_seconds, longest_wait_seconds
        self._key = _read_key(settings.key_variable)
        self._pace = _Pace(settings.requests_per_minute)
        self._http = _http_library()
        self._client = self._http.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self._http.Timeout(settings.timeout, pool=None),
            limits=self._http.Limits(max_connections=settings.concurrency),
        )

    async def __aenter__(self) -> ServerClient:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.__aexit__(*error)

    async def work_through(self, count: int, work: Callable[[int], Awaitable[None]]) -> None:
        """``work(number)`` for the numbers from 0 to ``count`` − 1, as many at a time as there may be open requests.
        The first error ends all of them."""
        numbers = iter(range(count))

        async def one_after_another() -> None:
            for number in numbers:
                await work(number)

        # The number of workers bounds the open requests: each has one, and waits with it.
        workers = [asyncio.create_task(one_after_another()) for _ in range(self._settings.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def post(
        self, address: str, body: Mapping[str, object], read: Callable[[Any], _T | None], form: str
    ) -> _T | Refusal:
        """What ``read`` makes of the answer's JSON, or the server's refusal.

        ``read``: gives None, or raises LookupError, TypeError or ValueError, for JSON of another form, which is asked
        for again as a body that is cut off. ``form``: what was expected, with its article, for the error. Raises
        RunError where all tries fail, or the server asks to wait too long.
        """
        fault = ""
        for number in range(1, self._settings.tries + 1):
            await self._pace.wait()
            pause = 0.0
            try:
                async with asyncio.timeout(self._settings.timeout):
                    response: Response = await self._client.post(address, json=body)
            except (TimeoutError, self._http.TimeoutException):
                fault = f"no answer within {self._settings.timeout:g} s"
            except self._http.InvalidURL as error:
                raise RecipeError(f"url: {address!r} is not a URL ({error})", "endpoint") from error
            except (self._http.TransportError, self._http.DecodingError) as error:
                fault = self.hide(str(error)) or type(error).__name__
            else:
                if (answer := _read_answer(response, read)) is not None:
                    return answer
                if not _is_transient(response):
                    return Refusal(address, response.status_code, self._excerpt(response))
                expected = f", but not in the form of {form}:" if response.status_code == 200 else ""
                fault = f"{response.status_code}{expected} {self._excerpt(response)}"
                pause = self._asked_pause(address, response)
            if number < self._settings.tries:
                await self._wait_before(number + 1, pause, address, fault)
        raise RunError(
            f"{address} gave no answer in {self._settings.tries} tries, the last: {fault}. The answers so far are "
            f"kept in {self._answers}; the same command continues from there"
        )

    async def get(self, address: str) -> object | None:
        """The JSON at an address, asked for once; None where the server does not give any."""
        await self._pace.wait()
        with suppress(self._http.TransportError, self._http.DecodingError, TimeoutError, ValueError, RecursionError):
            async with asyncio.timeout(self._settings.timeout):
                response: Response = await self._client.get(address)
            if response.status_code == 200:
                return json.loads(response.text)
        return None

    def refused(self, refusal: Refusal, model: str) -> ModelError:
        """The error for a refusal that is not about one request alone. ``model``: its name on the server."""
        variable = self._settings.key_variable
        if refusal.status == 401:  # without what the server says: servers repeat parts of the key
            state = "holds a key that it does not accept" if self._key else "is not set"
            remedy = f"the environment variable {variable} {state}; set it, or name another with key_variable"
            return Refusal(refusal.address, refusal.status, "").error(remedy)
        if refusal.status == 404:
            return refusal.error(f"check the URL (most end in /v1) and the model's name {model!r}")
        if 300 <= refusal.status < 400:
            return refusal.error("it redirects to another address; use that one")
        return refusal.error(f"check the account and the rights of the key in {variable}")

    def hide(self, text: str) -> str:
        """The text without the key and other secrets."""
        return redact(text.replace(self._key, "…") if len(self._key) >= _SHORTEST_SECRET else text)

    async def _wait_before(self, number: int, pause: float, address: str, fault: str) -> None:
        """Wait before try ``number``; a pause that the server asks for holds back all other requests too."""
        if pause:
            self._pace.hold(pause)
        doubled = self._first_wait_seconds * 2.0 ** min(number - 2, 60)
        seconds = max(pause, min(self._longest_wait_seconds, doubled) * random.uniform(0.5, 1.0))
        level = logging.WARNING if seconds >= _NOTABLE_PAUSE_SECONDS else logging.INFO
        text = "%s: %s; try %d of %d in %.1f s"
        logger.log(level, text, address, fault, number, self._settings.tries, seconds)
        await asyncio.sleep(seconds)

    def _asked_pause(self, address: str, response: Response) -> float:
        """Seconds that the server asks to wait, 0 for none. Raises RunError for a wait that is too long."""
        seconds = pause_of(response.headers.get("retry-after", ""))
        if seconds > _LONGEST_PAUSE_SECONDS:
            raise RunError(
                f"{address} asks to wait {seconds:,.0f} s; repeat the same command after that, the "
                f"answers so far are kept in {self._answers}"
            )
        return seconds

    def _excerpt(self, response: Response) -> str:
        text = response.text
        with suppress(ValueError, RecursionError, LookupError, TypeError):
            body = json.loads(text)
            error = body.get("error", body)  # some put the message at the top
            text = error if isinstance(error, str) else str(error["message"])
        return " ".join(self.hide(text).split())[:_EXCERPT_CHARACTERS]


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


def _is_transient(response: Response) -> bool:
    if response.status_code == 429 and "insufficient_quota" in response.text:  # waiting would not help
        return False
    return response.status_code in _TRANSIENT or response.status_code >= 500


def _read_answer(response: Response, read: Callable[[Any], _T | None]) -> _T | None:
    """None for another status or form, such as a cut-off body."""
    if response.status_code != 200:
        return None
    try:
        return read(json.loads(response.text))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None


def _read_key(variable: str) -> str:
    """The key in the environment, empty for none. Raises RecipeError, without it, for one that no header can hold."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"the environment variable {variable} contains characters not allowed in an API key; set it again",
            "endpoint",
        )
    return key


def _http_library() -> Any:
    """httpx or httpx2, whichever the Hub's client depends on."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    return import_module(HTTPError.__module__.partition(".")[0])
