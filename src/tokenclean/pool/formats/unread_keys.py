"""Keys that a format does not read: counted, or refused where leaving them out would change what is trained.

What a key means is told by its name, since a pool states nothing else. A key that holds nothing (null, blank, an empty
list) is neither counted nor refused, and one that the user has named with ``ignore`` is passed over.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from tokenclean.pool.formats.fields import Row, RowError, holds_nothing

PREFERENCE = "a preference label; training on every answer would train the rejected ones"
MEDIA = "an image, a sound or a video, which the model would learn to talk about without being given it"
WEIGHT = "a mask or weight that is not read in this place, so what it masks would be trained"
SECOND_TEXT = "a further text of the prompt that the format does not read, so the answer would be trained without it"
TOOLS = "tools or calls under a key that is not read"

TEMPLATE = "an option for the chat template, which it is not given here"

_ANSWERS = r"(response|output|answer|message|completion|text|conversation|reply|turn)s?"
_MEDIA_FILES = r"(path|url|uri|file|filepath|file_path|filename|file_name|name|list|array|byte|data|base64|id)s?"
_MEANINGS = (
    (
        PREFERENCE,
        rf"(chosen|reject|rejected|preferred|dispreferred|non_preferred)(_{_ANSWERS})?|{_ANSWERS}_(chosen|rejected|[ab12])"
        rf"|(better|worse|good|bad|winning|losing|best|worst)_{_ANSWERS}|winner|loser|preference"
        r"|label|kto_(tag|label)|(is_)?(good|bad|chosen|rejected|preferred|accepted|desirable)|thumbs_up",
    ),
    (
        MEDIA,
        rf"((pil|decoded)_)?(image|img|picture|photo|video|audio|screenshot|wav|mp4|mp3|jpe?g|png)s?(_?\d+)?(_{_MEDIA_FILES})?"
        rf"|pixel_values|attachments|media|frames|(sound|speech|media|frame)s?_{_MEDIA_FILES}",
    ),
    (
        WEIGHT,
        r"((loss|sample|example|token|train|training|response|answer|label|assistant|assistants|completion|prompt|user"
        r"|turn|message|content)_)?(mask|weight)s?|loss_scale|train_on_\w+|train(ing)?_details?"
        r"|((is|do)_)?(train(able|ed|ing)?|masked|target)"
        r"|(compute|calculate|calc|with|need|has|no|ignore|include_in|output_with|mask|use)_loss",
    ),
    (
        SECOND_TEXT,
        r"((user|system)_)?(prompt|question|query|instruction|input)s?|system|system_message|contexts?|documents?"
        r"|passages?|article|evidence|preamble|history",
    ),
    (
        TOOLS,
        r"((available|xml|python|json)_)?(tool|function|api)s?(_(list|json|call|definition|schema|spec)s?)?",
    ),
    (TEMPLATE, r"(chat_)?template_(kwargs|args|options)|enable_thinking|thinking_mode"),
)
_PATTERNS = tuple((meaning, re.compile(pattern)) for meaning, pattern in _MEANINGS)
_KEY_CHARACTERS = 80
_LABELS = re.compile(r"kto_(tag|label)|label|is_(good|bad|chosen|rejected|preferred|accepted|desirable)|thumbs_up")
_ANSWERS_OR_LABELS = re.compile(r"good|bad|chosen|rejected|preferred|accepted|desirable")  # a text there is an answer
_GOOD = ("true", "1", "1.0", "good", "chosen", "desirable", "accepted", "preferred")
_BAD = ("false", "0", "0.0", "-1", "-1.0", "bad", "rejected", "undesirable")


@lru_cache(maxsize=4096)
def meaning_of(key: str) -> str:
    """Why a key of this name may not be passed over; empty where it may."""
    name = _normal(key)
    return next((meaning for meaning, pattern in _PATTERNS if pattern.fullmatch(name)), "")


def _normal(key: str) -> str:
    """The key in small letters and underscores: imageUrl and Image-URL are image_url."""
    key = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.strip())
    return re.sub(r"[\s\-.]+", "_", key.lower())


def preference_label(key: str, value: object) -> bool | None:
    """What a label says of an answer (KTO): True for a good one, False for a rejected one, None where it says neither.

    Read are true and false, 1 and 0 (or −1), as values or a CSV's texts, and words such as good and bad.
    """
    name = _normal(key)
    kinds = (str, int, float) if _LABELS.fullmatch(name) else (int, float)
    if kinds == (int, float) and not _ANSWERS_OR_LABELS.fullmatch(name):
        return None
    if not isinstance(value, kinds):
        return None
    text = str(value).strip().lower()
    if text not in _GOOD and text not in _BAD:
        return None
    return (text in _GOOD) != name.endswith(("bad", "rejected"))


def changes_meaning(key: str, value: Any) -> str:
    """Why the key may not be passed over with this value; empty where it may."""
    meaning = meaning_of(key)
    if not meaning or holds_nothing(value):
        return ""
    if meaning == PREFERENCE and preference_label(key, value) is not None:
        return meaning
    if meaning == PREFERENCE and _LABELS.fullmatch(_normal(key)):
        return ""  # a class, such as news or sports
    if meaning in (PREFERENCE, SECOND_TEXT, TOOLS) and not isinstance(value, str | list | dict):
        return ""  # a figure or a switch beside the texts
    if meaning == TOOLS and isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        return ""  # the name of one
    return meaning


def remedy_of(key: str, meaning: str) -> str:
    """The option that lets a row with such a key through."""
    ignore = f"--ignore {shlex.quote(key)}"
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
    said = re.compile(rf"(?<!\w){re.escape(value.strip())}(?!\w)")
    return any(said.search(text) for text in texts) or max(texts, key=len).strip() in value
