"""Keys that a format does not read: counted, or refused where leaving them out would change what is trained.

What a key means is told by its name, since a pool states nothing else. A key that holds nothing (null, blank, an empty
list) is neither counted nor refused, and one that the user has named with ``ignore`` is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from tokenclean.pool.formats.fields import Row, RowError, holds_nothing

PREFERENCE = "a preference label; training on every answer would train the rejected ones"
MEDIA = "an image, a sound or a video, which the model would learn to talk about without being given it"
WEIGHT = "a mask or weight that is not read in this place, so what it masks would be trained"
SECOND_TEXT = "a further text of the prompt that the format does not read, so the answer would be trained without it"
TOOLS = "tools or calls under a key that is not read"

_ANSWERS = r"(response|output|answer|message|completion|text|conversation|reply|turn)s?"
_MEANINGS = (
    (
        PREFERENCE,
        rf"(chosen|rejected|preferred|dispreferred|non_preferred)(_{_ANSWERS})?|kto_tag|winner|preference"
        r"|(conversation|response|answer|output|completion)_[ab12]|label|is_good|is_chosen|desirable",
    ),
    (
        MEDIA,
        r"(image|img|picture|photo|video|audio)s?(_(path|url|uri|file|byte|data|base64)s?)?|pixel_values"
        r"|(sound|speech|media|frame|screenshot)s?_(path|url|uri|file|byte|data|base64)s?",
    ),
    (
        WEIGHT,
        r"((loss|sample|example|token|train|training|response|answer|label|assistant|assistants|completion|prompt|user"
        r"|turn|message)_)?(mask|weight)s?|loss_scale|train|training|train_on_\w+|train(ing)?_details?",
    ),
    (
        SECOND_TEXT,
        r"((user|system)_)?(prompt|question|query|instruction)|system|system_message|input|context|document|passage"
        r"|history",
    ),
    (TOOLS, r"tools|functions|(tool|function)_(call|definition|schema|spec)s"),
)
_PATTERNS = tuple((meaning, re.compile(pattern)) for meaning, pattern in _MEANINGS)
_KEY_CHARACTERS = 80
_LABELS = ("label", "is_good", "is_chosen", "desirable", "kto_tag")


@lru_cache(maxsize=4096)
def meaning_of(key: str) -> str:
    """Why a key of this name may not be passed over; empty where it may."""
    name = re.sub(r"[\s\-.]+", "_", key.strip().lower())
    return next((meaning for meaning, pattern in _PATTERNS if pattern.fullmatch(name)), "")


def is_preference_label(key: str, value: object) -> bool:
    """Whether ``key`` says whether an answer is good (KTO): true or false, as a value or a CSV's text, or 1 and 0."""
    if key.strip().lower() not in _LABELS:
        return False
    if isinstance(value, str):
        return value.strip().lower() in ("true", "false")
    return isinstance(value, int | float) and value in (0, 1)


def changes_meaning(key: str, value: Any) -> str:
    """Why the key may not be passed over with this value; empty where it may."""
    meaning = meaning_of(key)
    if not meaning or holds_nothing(value):
        return ""
    if meaning == PREFERENCE and key.strip().lower() in _LABELS:
        return meaning if is_preference_label(key, value) else ""
    if meaning in (PREFERENCE, SECOND_TEXT, TOOLS) and not isinstance(value, str | list | dict):
        return ""  # a figure or a switch beside the texts
    return meaning


def remedy_of(key: str, meaning: str) -> str:
    """The option that lets a row with such a key through."""
    ignore = f"--ignore {key}"
    if meaning == PREFERENCE:
        return f"--preferences chosen (trains the chosen answers alone), or {ignore}"
    return f"{ignore} (trains the text alone)" if meaning == MEDIA else ignore


def check_unread(
    row: Row,
    read: Collection[str],
    ignored: Collection[str],
    texts: Sequence[str],
    *,
    prefix: str = "",
    exempt: Collection[str] = (),
) -> list[str]:
    """Keys of the row that hold something and are not ``read``. ``ignored``: those that may mean anything.

    ``texts``: what was read of the row. A further prompt that repeats one of them, or holds the longest of them (a
    rendered prompt), is counted like any other key. ``prefix``: leads to the keys. ``exempt``: meanings that are no
    fault in this row.

    Raises RowError naming the key where leaving it out would change what is trained.
    """
    unread: list[str] = []
    for key, value in row.items():
        if key in read or holds_nothing(value):
            continue
        meaning = "" if key in ignored else changes_meaning(str(key), value)
        if meaning and meaning not in exempt and not (meaning == SECOND_TEXT and _repeats(value, texts)):
            raise RowError(f"{prefix}{shown_key(key)}: {meaning}", remedy_of(shown_key(key), meaning))
        unread.append(shown_key(key))
    return unread


def shown_key(key: object) -> str:
    """A key as a message and a document can show it: short, and escaped where it cannot be printed."""
    name = str(key)
    name = name if name.isprintable() and name.strip() else repr(name)
    return (
        (name if len(name) <= _KEY_CHARACTERS else name[:_KEY_CHARACTERS] + "…")
        .encode("utf-8", "backslashreplace")
        .decode()
    )


def _repeats(value: object, texts: Sequence[str]) -> bool:
    if isinstance(value, list):
        return all(_repeats(item, texts) for item in value)
    if not isinstance(value, str) or not texts:
        return False
    said = value.strip()
    return any(said in text for text in texts) or max(texts, key=len).strip() in said
