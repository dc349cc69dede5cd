"""How a server is asked, and which model behind it: the settings of raters and of a served reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from tokenclean.recipe.base_settings import Section
from tokenclean.redaction import redact

_VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


class ServerSettings(Section):
    """How a server is asked. Between tries the wait doubles, and is at least as long as the server asks for."""

    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key."""
    concurrency: int = Field(default=8, ge=1)
    """Requests open at a time."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Send no more than this; the server's own limits are kept anyway."""
    timeout: float = Field(default=60, gt=0)
    """Seconds to wait for an answer."""
    tries: int = Field(default=6, ge=1)
    """Tries of a request that fails (429, 5xx, no connection)."""


class ServedModel(ServerSettings):
    """A model behind an OpenAI-compatible server that gives the log-probabilities of a prompt's tokens: vLLM, SGLang,
    or any with ``echo`` and ``logprobs``."""

    url: str
    """Address of the server, such as ``http://host:8000/v1``, without a key in it."""
    model: str = Field(min_length=1)
    """The model's name on the server."""
    api: Literal["auto", "vllm", "sglang", "echo"] = "auto"
    """How it is asked: ``prompt_logprobs`` of vLLM's completions, ``/generate`` of SGLang, ``echo`` with ``logprobs``
    of completions; ``auto`` tries them in this order with a short prompt and says which one the server knows."""
    align: Literal["ids", "characters"] = "ids"
    """``ids``: the server has the base's tokenizer; it is sent token ids, and those that it returns are checked.
    ``characters``: it has another one; it is sent text, and each of its tokens' losses is shared among our tokens by
    the characters that they have in common."""
    token_budget: int | None = Field(default=None, ge=1)
    """Stop before a process has sent more prompt tokens than this."""

    @model_validator(mode="after")
    def _check_address(self) -> ServedModel:
        if problems := list(server_problems(self.url, self.key_variable)):
            raise ValueError("; ".join(problems))
        return self

    def __str__(self) -> str:
        return f"{self.model} at {self.url}"

    @property
    def identity(self) -> list[str]:
        """What its losses depend on, as far as it is known here: a server may come to serve other weights under the
        same name."""
        return ["served", self.url.rstrip("/"), self.model, self.api, self.align]


def server_problems(url: str, key_variable: str) -> Iterator[str]:
    """What is wrong with an address and the name of a key's variable; neither is shown where it may hold a secret."""
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
    if not _VARIABLE_NAME.fullmatch(key_variable):  # not shown: it might be a key
        yield "key_variable: expected the name of an environment variable, such as OPENAI_API_KEY"
