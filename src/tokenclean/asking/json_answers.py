"""JSON in a model's answer: inside prose, code fences and other objects, behind its thoughts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

LONGEST_ANSWER = 1 << 14
"""Characters that are read of an answer; only a model that repeats itself writes more."""

_DECODER = json.JSONDecoder()
_THOUGHTS = re.compile(r"<(think|thinking|thought)>.*?(</\1>|\Z)", re.DOTALL)
_LAST_THOUGHT = re.compile(r".*</(?:think|thinking|thought)>", re.DOTALL)

T = TypeVar("T")


def without_thoughts(text: str) -> str:
    """The text behind a model's thoughts; nothing of one that was cut off while it thought. A chat template may have
    written the opening tag, so a closing tag is enough."""
    return _LAST_THOUGHT.sub("", _THOUGHTS.sub("", text))


def the_object(text: str, read: Callable[[object], T]) -> T | None:
    """What ``read`` makes of the one JSON object in an answer that it accepts.

    ``read``: raises ValueError for what it does not accept; its values are hashable. The object may be inside prose, a
    code fence or another object. None where there is none, where it is cut off, and where two say different things.
    """
    found = set(_objects(without_thoughts(text)[:LONGEST_ANSWER], read))
    return found.pop() if len(found) == 1 else None


def _objects(text: str, read: Callable[[object], T]) -> Iterator[T]:
    start = text.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, stop = _DECODER.raw_decode(text, start)
            accepted = read(value)
        except (ValueError, RecursionError):  # not JSON, or of another form; an object inside it may fit
            pass
        else:
            yield accepted
            end = stop
        start = text.find("{", end)
