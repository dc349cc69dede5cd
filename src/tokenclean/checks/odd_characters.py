"""Characters that no writer typed: lost in a wrong encoding, invisible, or escaped once too often."""

from __future__ import annotations

import re

from tokenclean.checks.findings import Spot
from tokenclean.pool.conversation import Conversation

# UTF-8 read as Latin-1 or cp1252: a leading byte as Ã, Â, â or ð, and what cp1252 shows for a trailing one.
_TRAIL = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_ODD = {
    "replacement character": "\ufffd",
    "UTF-8 read in another encoding": (
        f"â[{_TRAIL}][{_TRAIL}]|ð[Ÿ\u009f][{_TRAIL}]|Ã[\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘•˜™š›œžŸ]|Â[\u00a0-\u00bf]"
    ),
    "control character": r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f]",
    "invisible character": (
        "[\u200b\u2060\ufeff\u00ad\u202a-\u202e\u2066-\u2069]|(?<=[A-Za-z ])[\u200c\u200d](?=[A-Za-z ])"
    ),
    "private-use character": "[\ue000-\uf8ff]",
    "escaped line break": (r"(?<![\\\w:/'\"`(\[{,])\\n(?:\\n)*(?=[A-Z\d\-*\s\\])(?![^\n]{0,40}['\"`][);,\s])"),
    "HTML entity": r"&(?:nbsp|quot|amp|#39|#x27|rsquo|lsquo|ldquo|rdquo|mdash|ndash|hellip);",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _ODD.items()}
_IN_ASCII = ("control character", "escaped line break", "HTML entity")
_MARKUP = re.compile(
    r"</?[a-z][a-z0-9]*[ >/]|```|html|xml|escape|entit|\bprint\b|printf|regex|\bjson\b|\bstring\b", re.IGNORECASE
)


def find_odd_characters(conversation: Conversation) -> Spot | None:
    """The first odd character of any turn. Entities and escapes do not count in rows with markup or code."""
    is_markup: bool | None = None
    for number, turn in enumerate(conversation.turns):
        text = turn.content
        for name in _IN_ASCII if text.isascii() else _PATTERNS:
            if (name == "HTML entity" and "&" not in text) or (name == "escaped line break" and "\\n" not in text):
                continue
            match = _PATTERNS[name].search(text)
            if match is None:
                continue
            if name in ("HTML entity", "escaped line break"):
                if is_markup is None:
                    is_markup = any(_MARKUP.search(turn.content) for turn in conversation.turns)
                if is_markup:
                    continue
            if match[0] == "\ufeff" and match.start() == 0:
                name = "byte order mark"
            shown = match[0] if match[0].isprintable() and match[0] != "\ufffd" else f"U+{ord(match[0][0]):04X}"
            return Spot(f"{name} {shown}", number, *match.span())
    return None
