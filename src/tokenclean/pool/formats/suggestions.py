"""Options that would read a row that fits no format, found among the keys it has."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from tokenclean.pool.formats.field_types import Row
from tokenclean.pool.formats.unread_keys import PREFERENCE, meaning_of

_QUESTIONS = (
    *("instruction", "question", "query", "prompt", "problem", "input", "inputs", "user", "human", "request", "q"),
)
_ANSWERS = (
    *("output", "response", "answer", "completion", "solution", "generated_solution", "assistant", "reply", "target"),
    *("targets", "chosen", "bot", "gpt", "model", "a"),
)
_FURTHER = {
    "system": ("system", "system_prompt", "system_message"),
    "input": ("input", "context", "passage", "article"),
    "reasoning_content": ("reasoning_content", "reasoning", "thinking"),
    "history": ("history",),
    "tools": ("tools",),
}
_TEXTS = ("text", "content", "body", "document", "story", "raw")
_SPEAKERS = ("role", "from", "speaker", "author", "who", "sender", "name", "type")
_SAID = ("content", "value", "text", "said", "message", "utterance", "body")
_DEPTH = 3


def suggest_columns(row: Row) -> str:
    """Options that map this row's columns to a format, or an empty text where none is evident."""
    texts = {str(key): value for key, value in row.items() if isinstance(value, str)}
    question, answer = _first(texts, _QUESTIONS), _first(texts, _ANSWERS)
    for path, messages in _lists_of_messages(row, "", _DEPTH):
        speaker, said = (_first(messages[0], names) for names in (_SPEAKERS, _SAID))
        if speaker is None or said is None:
            continue
        options = [("messages", path)]
        if answer is not None and str(messages[-1].get(speaker)).lower() in ("user", "human", "system"):
            options = [("prompt", path), ("completion", answer)]
        elif (speaker, said) not in (("role", "content"), ("from", "value")):
            options += [("role", speaker), ("content", said)]
        return _as_options([*options, *_further(row, ("system", "tools"), path)])
    if question is not None and answer is not None and question != answer:
        return _as_options([("instruction", question), ("output", answer), *_further(row, _FURTHER, question, answer)])
    text = _first(texts, _TEXTS)
    return _as_options([("text", text)]) if text is not None and not (question or answer) else ""


def _further(row: Row, ours: Iterable[str], *taken: str) -> Iterator[tuple[str, str]]:
    """Further keys that the row has, though this one may hold nothing there; each column once."""
    for name in ours:
        theirs = _first(row, _FURTHER[name])
        if theirs is not None and theirs not in taken:
            yield name, theirs


def _lists_of_messages(value: object, path: str, depth: int) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Path and list of every list of objects within the row, the outermost first."""
    if depth < 0:
        return
    inner: dict[str, object] = {}
    if isinstance(value, dict):
        inner = {f"{path}.{key}" if path else str(key): item for key, item in value.items()}
    elif isinstance(value, list) and len(value) == 1:
        inner = {f"{path}.0": value[0]}
    for name, item in inner.items():
        if meaning_of(name.rsplit(".", 1)[-1]) == PREFERENCE:
            continue
        if isinstance(item, list) and item and all(isinstance(entry, dict) for entry in item):
            yield name, item
        yield from _lists_of_messages(item, name, depth - 1)


def _first(keys: Iterable[object], names: tuple[str, ...]) -> str | None:
    """The key that is one of the names, case aside, in the order of the names."""
    found = {str(key).lower(): str(key) for key in keys}
    return next((found[name] for name in names if name in found), None)


def _as_options(pairs: list[tuple[str, str]]) -> str:
    return " ".join(f"--column {shlex.quote(f'{ours}={theirs}')}" for ours, theirs in pairs)
