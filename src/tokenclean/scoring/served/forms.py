"""The three forms in which servers give the log-probabilities of a prompt's tokens.

- ``vllm``: ``POST /v1/completions`` with ``prompt_logprobs: 0``: a list, null for the first token, then a mapping of a
  token's id to its ``logprob`` and ``decoded_token``.
- ``sglang``: ``POST /generate``, beside ``/v1``, with ``return_logprob`` and ``logprob_start_len: 0``:
  ``meta_info.input_token_logprobs``, a list of [log-probability or null, id, text or null].
- ``echo``: ``POST /v1/completions`` with ``echo`` and ``logprobs``: ``tokens`` and ``token_logprobs`` of the prompt,
  followed by those that were generated. Ids come only from servers that know ``return_tokens_as_token_ids``, which
  writes a token as ``token_id:17``.

One token is generated each time, since not every server takes 0; it is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Prompt = str | Sequence[int]
"""A text, or token ids."""

UNKNOWN = -1
"""In place of an id that the server does not give."""

_CLAMPED = -9999.0  # what vLLM writes for −inf, which JSON cannot hold
_ID_PREFIX = "token_id:"


@dataclass(frozen=True)
class ReturnedTokens:
    """What a server says of the tokens of a prompt, in their order.

    ``ids``: int64 (P,), UNKNOWN where it gives none. ``texts``: of each, None where it gives none. ``logprobs``:
    float64 (P,), nats, NaN for null.
    """

    ids: np.ndarray
    texts: tuple[str | None, ...]
    logprobs: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Form:
    """``address(url)``: where requests go. ``body(model, prompt, ids)``: a request; ``ids``: whether ids are wanted of
    the returned tokens, not texts. ``read(json)``: the answer; raises LookupError, TypeError, ValueError or
    AttributeError for JSON of another form."""

    name: str
    address: Callable[[str], str]
    body: Callable[[str, Prompt, bool], Mapping[str, object]]
    read: Callable[[Any], ReturnedTokens]


def completions_address(url: str) -> str:
    """``/v1/completions`` of a server's URL, which usually ends in ``/v1``."""
    return f"{url.rstrip('/')}/completions"


def models_address(url: str) -> str:
    """``/v1/models`` of a server's URL."""
    return f"{url.rstrip('/')}/models"


def generate_address(url: str) -> str:
    """``/generate`` of a server's URL, beside ``/v1``."""
    return f"{url.rstrip('/').removesuffix('/v1')}/generate"


def _vllm_body(model: str, prompt: Prompt, ids: bool) -> Mapping[str, object]:
    return {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}


def _read_vllm(body: Any) -> ReturnedTokens:
    ids, texts, logprobs = [], [], []
    for entry in body["choices"][0]["prompt_logprobs"]:
        # The prompt's own token comes first; with prompt_logprobs: 0 it is alone.
        id, found = next(iter(entry.items())) if entry else (UNKNOWN, {"logprob": None})
        ids.append(int(id))
        texts.append(found.get("decoded_token"))
        logprobs.append(found["logprob"])
    return _returned(ids, texts, logprobs)


def _echo_body(model: str, prompt: Prompt, ids: bool) -> Mapping[str, object]:
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "echo": True, "logprobs": 1}
    return {**body, "return_tokens_as_token_ids": True} if ids else body


def _read_echo(body: Any) -> ReturnedTokens:
    count = int(body["usage"]["prompt_tokens"])
    found = body["choices"][0]["logprobs"]
    texts, logprobs = found["tokens"][:count], found["token_logprobs"][:count]
    if not len(texts) == len(logprobs) == count:
        raise ValueError(f"{count} prompt tokens, but {len(texts)} texts and {len(logprobs)} log-probabilities")
    ids = [int(t.removeprefix(_ID_PREFIX)) if t.startswith(_ID_PREFIX) else UNKNOWN for t in texts]
    return _returned(ids, texts, logprobs)


def _sglang_body(model: str, prompt: Prompt, ids: bool) -> Mapping[str, object]:
    return {
        ("text" if isinstance(prompt, str) else "input_ids"): prompt,
        "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": 0,
        "return_text_in_logprobs": not ids,
    }


def _read_sglang(body: Any) -> ReturnedTokens:
    entries = body["meta_info"]["input_token_logprobs"]
    logprobs, ids, texts = zip(*((entry[0], entry[1], entry[2]) for entry in entries), strict=True)
    return _returned(ids, texts, logprobs)


def _returned(ids: Sequence[int], texts: Sequence[str | None], logprobs: Sequence[float | None]) -> ReturnedTokens:
    values = np.array([np.nan if value is None else float(value) for value in logprobs], dtype=np.float64)
    values[values <= _CLAMPED] = -np.inf
    return ReturnedTokens(np.array([int(id) for id in ids], dtype=np.int64), tuple(texts), values)


FORMS = {
    form.name: form
    for form in (
        Form("vllm", completions_address, _vllm_body, _read_vllm),
        Form("sglang", generate_address, _sglang_body, _read_sglang),
        Form("echo", completions_address, _echo_body, _read_echo),
    )
}
"""By name, in the order in which they are tried: a server that knows ``vllm`` knows ``echo`` too, but not the other way
round."""
