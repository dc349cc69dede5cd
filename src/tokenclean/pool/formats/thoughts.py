"""Thoughts inside a text: tags without a partner, and texts that hold nothing but an empty thought."""

from __future__ import annotations

import re

from tokenclean.pool.formats.field_types import is_blank

_TAG = re.compile(r"(?<!`)<(/?)(think|thinking|thought)>(?!`)", re.IGNORECASE)
_EMPTY = re.compile(r"\A\s*<(think|thinking|thought)>\s*</\1>", re.IGNORECASE)
_WHOLE = re.compile(r"\A\s*<(think|thinking|thought)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)


def lone_tag(text: str) -> str:
    """The first thought tag without a partner: one that closes what was not opened, or an opening one at the start of
    the text that never closes. Empty where there is none."""
    opened: set[str] = set()
    for match in _TAG.finditer(text) if "<" in text else ():
        name = match[2].lower()
        if match[1]:
            return "" if name in opened else match[0]
        opened.add(name)
    first = _TAG.match(text.lstrip()) if opened else None
    return first[0] if first else ""


def thought_of(text: str) -> str | None:
    """The thought in tags at the start of a text; None where there is none."""
    match = _WHOLE.match(text) if "<" in text else None
    return None if match is None else match[2]


def says_nothing(text: str) -> bool:
    """Whether an answer says nothing: it is blank, or an empty thought alone."""
    return is_blank(text) or ("<" in text and is_blank(_EMPTY.sub("", text)))
