"""Keys that a format does not read: counted, or refused where leaving them out would change what is trained.

A key's name says what it means, since a pool states nothing else. A key that holds nothing (null, blank, an empty list)
is neither counted nor refused, and one that the user has named with ``ignore`` is only counted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

from tokenclean.pool.formats.field_types import Row, RowError, holds_nothing

PREFERENCE = "a preference label; training on every answer would train the rejected ones"
MEDIA = "an image, a sound or a video, which the model would learn to talk about without being given it"
WEIGHT = "a mask or weight that is not read in this place, so what it masks would be trained"
SECOND_TEXT = "a further text of the prompt that the format does not read, so the answer would be trained without it"
TOOLS = "tools or calls under a key that is not read"
TEMPLATE = "an option for the chat template, which it is not given here"

SYSTEM_KEYS = ("system", "system_prompt", "system_message")

_ANSWERS = r"(response|output|answer|message|completion|text|conversation|reply|turn)s?"
_MEDIA_FILES = r"(path|url|uri|file|filepath|file_path|filename|file_name|name|list|array|byte|data|base64|id)s?"
_PATTERNS = (
    (
        PREFERENCE,
        rf"(chosen|reject|rejected|preferred|dispreferred|non_preferred)(_{_ANSWERS})?|{_ANSWERS}_(chosen|rejected)"
        r"|(response|answer|output|completion|conversation)_[ab]|(response|completion)_?[12]"
        rf"|(better|worse|winning|losing|worst)_{_ANSWERS}|winner|loser|(overall_)?preference"
        r"|good|bad|accepted|desirable",
    ),
    (
        MEDIA,
        r"((pil|decoded)_)?(image|img|picture|photo|video|audio|screenshot|wav|mp4|mp3|jpe?g|png)s?(_?\d+)?"
        rf"(_{_MEDIA_FILES})?"
        rf"|pixel_values|attachments|media|frames|(sound|speech|media|frame)s?_{_MEDIA_FILES}",
    ),
    (
        WEIGHT,
        r"((loss|sample|example|token|train|training|response|answer|label|assistant|assistants|completion|prompt|user"
        r"|turn|message|content)_)?(mask|weight)s?|loss_scale|train_on_\w+|train(ing)?_details?"
        r"|((is|do)_)?(train(able|ed|ing)?|masked|target)|is_response|labels_mask|target_mask|mask_history"
        r"|(compute|calculate|calc|with|need|has|no|ignore|include_in|output_with|mask|use|apply|only_last_turn)_loss"
        r"|loss_enabled|(should|to|no|not|do_not)_train(ed)?|train_this|untrained|(used?|exclude(d)?)_(for|from)_training"
        r"|supervised|learn|skip|exclude|ignore",
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
_KEY_CHARACTERS = 80
_TELLING_CHARACTERS = 10  # a shorter text is found in others by chance
_LABELS = re.compile(
    r"kto|(kto|preference)_(tag|label)|label(_bool)?|thumbs_(up|down)|(dis)?like|good_response"
    r"|is_(good|bad|best|correct|winner|chosen|rejected|preferred|accepted|(un)?desir(ed|able))(_answer|_response)?"
)
_ANSWERS_OR_LABELS = re.compile(r"good|bad|chosen|rejected|preferred|accepted|desirable")  # a text there is an answer
_GOOD = ("true", "1", "1.0", "good", "chosen", "desirable", "desired", "accepted", "preferred", "t")
_BAD = ("false", "0", "0.0", "0.00", "-1", "-1.0", "bad", "rejected", "reject", "undesirable", "undesired", "f")
_MORE_GOOD = ("yes", "y", "positive", "safe", "correct", "pass", "like")  # where the user has said that labels choose
_MORE_BAD = ("no", "n", "negative", "unsafe", "incorrect", "fail", "dislike")


@lru_cache(maxsize=4096)
def meaning_of(key: str) -> str:
    """Why a key of this name may not be left out; empty where it may."""
    name = _normal(key)
    if _LABELS.fullmatch(name):
        return PREFERENCE
    return next((meaning for meaning, pattern in _PATTERNS if re.fullmatch(pattern, name)), "")


def _normal(key: str) -> str:
    """The key in lower case with underscores: imageUrl and Image-URL are image_url."""
    key = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.strip())
    return re.sub(r"[\s\-.]+", "_", key.lower())


def _leaves(value: object) -> Iterator[object]:
    """The values inside the objects and lists of a value, however deep."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict | list):
            todo += item.values() if isinstance(item, dict) else item
        else:
            yield item


def _may_be_media(key: str, value: object) -> bool:
    """Whether the value may be a picture: a path, an address, bytes or a structure; not a switch, figure or word."""
    if isinstance(value, bool | int | float):
        return bool(re.search(r"_ids?$", _normal(key))) and not isinstance(value, bool)
    if isinstance(value, str) and _normal(key) in ("media", "frames", "photo", "picture", "video", "audio", "image"):
        return bool(re.search(r"[./:]", value)) or len(value) > 100
    return True


def preference_label(key: str, value: object) -> bool | None:
    """What a label says of an answer (KTO): True for a good one, False for a rejected one, None where it says neither.

    Labels are true and false, 1 and 0 (or −1), as values or a CSV's texts, and words such as good and bad.
    """
    name = _normal(key)
    is_label = _LABELS.fullmatch(name)
    if not isinstance(value, (str, int, float) if is_label else bool):
        return None
    text = str(value).strip().lower()
    if not (is_label or _ANSWERS_OR_LABELS.fullmatch(name)) or text not in (*_GOOD, *_BAD):
        return None
    return (text in _GOOD) != bool(re.search(r"bad|rejected|undesir|thumbs_down|dislike", name))


def chosen_label(key: str, value: object) -> bool | None:
    """``preference_label`` of a source whose labels are known to choose, so that more words say good or bad.

    Raises RowError for a label that says neither.
    """
    said = preference_label(key, value)
    if said is not None or not _LABELS.fullmatch(_normal(key)) or holds_nothing(value):
        return said
    text = str(value).strip().lower()
    if text not in (*_MORE_GOOD, *_MORE_BAD):
        raise RowError(
            f"{shown_key(key)}: {value!r:.80} says neither good nor rejected", f"--ignore {shlex.quote(key)}"
        )
    return text in _MORE_GOOD


def changes_meaning(key: str, value: object) -> str:
    """Why the key may not be left out with this value; empty where it may."""
    meaning, name = meaning_of(key), _normal(key)
    if not meaning or all(holds_nothing(item) for item in _leaves(value)):
        return ""
    may_matter = True
    if meaning == PREFERENCE and _LABELS.fullmatch(name):  # another value is a class, such as news or sports
        may_matter = preference_label(key, value) is not None
    elif meaning == MEDIA:
        may_matter = _may_be_media(key, value)
    elif meaning == WEIGHT and not re.search(r"mask|weight|loss|scale|detail|train_on", name):
        may_matter = isinstance(value, bool | list)  # not a figure or a word beside the texts
    elif meaning == PREFERENCE:
        may_matter = isinstance(value, str | list | dict) or preference_label(key, value) is not None
    elif meaning in (SECOND_TEXT, TOOLS):  # not a figure or a switch, or the name of a tool
        is_name = meaning == TOOLS and isinstance(value, str) and not value.lstrip().startswith(("[", "{"))
        may_matter = isinstance(value, str | list | dict) and not is_name
    return meaning if may_matter else ""


def remedy_of(key: str, meaning: str, place: str = "") -> str:
    """The option that lets a row with such a key through. ``place``: of the key in a row whose columns are mapped."""
    ignore = f"--ignore {shlex.quote(key)}"
    ours = "tools" if meaning == TOOLS else "system" if _normal(key) in SYSTEM_KEYS else ""
    if place and ours:
        return f"--column {shlex.quote(f'{ours}={place}')}, or {ignore}"
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
    is_mapped: bool = False,
) -> list[str]:
    """Keys of the row that hold something and are not ``read``. ``ignored``: those that may mean anything.

    ``texts``: what was read of the row. A further prompt that repeats one of them, or holds the longest of them (a
    rendered prompt), is counted like any other key. ``prefix``: path to the keys. ``exempt``: meanings that are no
    fault in this row.

    Raises RowError naming the key where leaving it out would change what is trained.
    """
    unread: list[str] = []
    for key, value in row.items():
        if (key in read and key not in ignored) or holds_nothing(value):
            continue
        name = shown_key(key)
        meaning = "" if key in ignored else changes_meaning(str(key), value)
        is_exempt = meaning in exempt and not (is_mapped and _normal(str(key)) in SYSTEM_KEYS)
        if meaning and not is_exempt and not (meaning == SECOND_TEXT and _repeats(value, texts)):
            raise RowError(
                f"{prefix}{name}: {meaning}", remedy_of(name, meaning, f"{prefix}{key}" if is_mapped else "")
            )
        unread.append(name)
    return unread


def shown_key(key: object) -> str:
    """A key for messages and documents: short, and escaped where it cannot be printed."""
    name = str(key)
    name = name if name.isprintable() and name.strip() else repr(name)
    name = name if len(name) <= _KEY_CHARACTERS else name[:_KEY_CHARACTERS] + "…"
    return name.encode("utf-8", "backslashreplace").decode()


def _repeats(value: object, texts: Sequence[str]) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) and _repeats(item, texts) for item in _leaves(value))
    if not isinstance(value, str) or not texts:
        return False
    said = re.compile(rf"(?<![^\W_]){re.escape(value.strip())}(?![^\W_])")
    if any(said.search(text) for text in texts):
        return True
    long = [text for text in texts if len(text) >= _TELLING_CHARACTERS] or [max(texts, key=len)]
    return any(all(line.strip() in value for line in text.split("\n")) for text in long)
