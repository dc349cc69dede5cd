"""Found out before any row: which form a server knows, whether it serves the model, whether it has our tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenclean.errors import ModelError, TokenizerMismatchError
from tokenclean.recipe import ServedModel
from tokenclean.scoring.served.forms import FORMS, Form, models_address
from tokenclean.servers.client import ABOUT_ONE_ROW, Refusal, ServerClient

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PROBE_TOKENS = 8
_COMPARED_ROWS = 4
_COMPARED_CHARACTERS = 2000
_ADDED_TOKENS = 2
"""Tokens that a server may put before a text by itself (BOS)."""

_COMPARED_TEXT = "Tokens, 12345 of them:\n\n\tdef f(x):\n        return x**2  # Größe, 価格, цена, 🙂 ½ don't\r\n"
"""Digits, blanks and scripts, at which tokenizers of one size differ."""


@dataclass(frozen=True)
class ServerForm:
    """``form``: how the server is asked. ``max_tokens``: the longest text and answer it takes, None where unknown."""

    form: Form
    max_tokens: int | None = None

    def check_length(self, served: ServedModel, tokens: int) -> None:
        """Raise ModelError where a row of so many tokens, and the one that is generated, is too long."""
        if served.align == "ids" and self.max_tokens is not None and tokens + 1 > self.max_tokens:
            raise ModelError(
                f"{served}: takes {self.max_tokens:,} tokens, but a row has {tokens:,}, and one more is generated; "
                "start the server with a greater maximal length, or lower tokens.max_length"
            )


async def find_form(
    client: ServerClient, served: ServedModel, backend: Tokenizer, rows: Sequence[list[int]]
) -> ServerForm:
    """The form that ``api`` names, or the first that the server knows; with ``align: ids`` the server's tokenizer is
    compared on the texts of some ``rows`` of token ids and one of ours.

    Raises ModelError where the server does not serve the model or knows no form, TokenizerMismatchError where it has
    another tokenizer.
    """
    listed = _listed_models(await client.get(models_address(served.url)))
    if listed and served.model not in listed:
        raise ModelError(
            f"{served.url}: serves {', '.join(sorted(listed))}, not {served.model}; set model to one of these names"
        )
    by_ids = served.align == "ids"
    row = rows[0][:_PROBE_TOKENS]
    prompt = row if by_ids else backend.decode(row, skip_special_tokens=False)
    faults = []
    for form in FORMS.values() if served.api == "auto" else [FORMS[served.api]]:
        body = form.body(served.model, prompt, by_ids)
        answer = await client.post(form.address(served.url), body, _any_json, "JSON")
        if isinstance(answer, Refusal) and answer.status in (401, 403):
            raise client.refused(answer, served.model)
        fault = _fault_of(answer, form, prompt)
        if not fault and form.name == "sglang" and not listed:  # its requests do not name the model
            fault = f"{models_address(served.url)} does not list the model"
        if not fault:
            found = ServerForm(form, listed.get(served.model))
            found.check_length(served, max(map(len, rows)))
            if by_ids:
                await _check_tokenizer(client, served, form, backend, rows)
            return found
        faults.append(f"{form.name}: {fault}")
    wanted = "ids" if by_ids else "texts"
    advice = "; align: characters sends text and needs no ids" if by_ids else ""
    raise ModelError(
        f"{served}: does not give the log-probabilities of a prompt's tokens with their {wanted} "
        f"({'; '.join(faults)}). Expected vLLM, SGLang, or a server of completions with echo and logprobs{advice}"
    )


def _fault_of(answer: Any, form: Form, prompt: str | list[int]) -> str:
    """What an answer to the first prompt lacks; empty where it is complete."""
    if isinstance(answer, Refusal):
        return f"{answer.status} {answer.excerpt}".rstrip()
    try:
        returned = form.read(answer)
    except (LookupError, TypeError, ValueError, AttributeError):
        return "no log-probabilities of the prompt in the answer"
    if isinstance(prompt, str):
        return "" if any(returned.texts) else "no texts of the tokens in the answer"
    return "" if (returned.ids[1:] >= 0).all() else "no ids of the tokens in the answer"


async def _check_tokenizer(
    client: ServerClient, served: ServedModel, form: Form, backend: Tokenizer, rows: Sequence[list[int]]
) -> None:
    """Send texts and compare the ids that the server makes of them with ours; it may put BOS before a text.

    A server returns any ids that it was sent, so ids alone would not show that they mean the same to it.
    """
    texts = [backend.decode(row, skip_special_tokens=False)[:_COMPARED_CHARACTERS] for row in rows[:_COMPARED_ROWS]]
    for text in (_COMPARED_TEXT, *texts):
        ids = backend.encode(text, add_special_tokens=False).ids
        returned = await client.post(
            form.address(served.url), form.body(served.model, text, True), form.read, "the ids of a text's tokens"
        )
        if isinstance(returned, Refusal):
            if returned.status not in ABOUT_ONE_ROW:
                raise client.refused(returned, served.model)
            raise returned.error(f"asked for the ids of the text {text[:60]!r}, by which tokenizers are compared")
        theirs = returned.ids.tolist()
        added = len(theirs) - len(ids)
        # The first of all ids may be unknown.
        same = 0 <= added <= _ADDED_TOKENS and all(
            their in (our, -1) if added + place == 0 else their == our
            for place, (our, their) in enumerate(zip(ids, theirs[added:], strict=True))
        )
        if not same:
            raise TokenizerMismatchError(
                f"{served}: the text {text[:60]!r} gets the ids {theirs[:8]}… there ({len(theirs)} of them) and "
                f"{ids[:8]}… here ({len(ids)}), so it has another tokenizer than the base; choose a reference of the "
                "same model family, or set align: characters, which sends text and shares losses by characters"
            )


def _any_json(body: Any) -> Any:
    return {} if body is None else body


def _listed_models(body: object) -> dict[str, int | None]:
    """Names of the models that a server lists, with the longest text that each takes, None where it does not say."""
    found: dict[str, int | None] = {}
    match body:
        case {"data": [*models]}:
            for model in models:
                match model:
                    case {"id": str() as name}:
                        length = model.get("max_model_len")
                        found[name] = length if isinstance(length, int) else None
    return found
