"""Thoughts inside a text: tags that have no partner, and texts that say nothing but an empty thought."""

from __future__ import annotations

import re

from tokenclean.pool.formats.field_types import is_blank

_TAG = re.compile(r"(?<!`)<(/?)(think|thinking|thought)>(?!`)", re.IGNORECASE)
_EMPTY = re.compile(r"\A\s*<(think|thinking|thought)>\s*</\1>", re.IGNORECASE)
_WHOLE = re.compile(r"\A\s*<(think|thinking|thought)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)


def lone_tag(text: str) -> str:
    """The first tag of thoughts that lacks its partner: one that closes what was not opened, or an opening one at the
    text's start that never closes. Empty where there is none."""
    if "<" not in text:
        return ""
    opened: set[str] = set()
    for match in _TAG.finditer(text):
        name = match[2].lower()
        if not match[1]:
            opened.add(name)
        elif name not in opened:
            return match[0]
        else:
            return ""
    first = _TAG.match(text.lstrip())
    return first[0] if first and not first[1] else ""


def says_nothing(text: str) -> bool:
    """Whether an answer says nothing: it is blank, or an empty thought alone."""
    return is_blank(text) or ("<" in text and is_blank(_EMPTY.sub("", text)))


def thought_of(text: str) -> str | None:
    """The thought in tags at the start of a text; None where there is none."""
    match = _WHOLE.match(text) if "<" in text else None
    return None if match is None else match[2]
