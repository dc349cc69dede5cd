"""Answers that break off: within a sentence, a word, a bracket or a code block."""

from __future__ import annotations

import re
from dataclasses import replace

from tokenclean.checks.findings import EXAMPLES, Example, Found, Spot, Tally, answers_of, example_of
from tokenclean.pool.conversation import Conversation

_LEAST_WORDS = 12  # below, an answer is a phrase and needs no full stop
_SHORT = 300  # characters, up to which an answer of one line shows whether the pool sets a last full stop
_HABIT = 0.1  # of them without one: the pool often leaves it out

# Words that hardly end a sentence in English.
_OPEN_WORDS = frozenset(
    [
        *("a", "an", "the", "and", "or", "but", "nor", "my", "your", "his", "its", "our", "their", "this", "these"),
        *("those", "is", "are", "was", "were", "be", "being", "has", "have", "can", "could", "will", "would", "should"),
        *("may", "might", "must", "which", "whose", "because", "although", "if", "than", "among", "including", "of"),
        *("for", "with", "by", "at", "from", "to", "in", "into", "on", "about"),
    ]
)
_LIST_ITEM = re.compile(r"\s*(?:[-*•–>|#+]|\(?\w{1,3}[.):]|\d+\b|[A-Z][\w ]{0,30}:)")
_CODE = re.compile(r"[{};=<>|\\_]|\)$|//|^\s*(?:def|class|return|import|print|SELECT|FROM|WHERE)\b")
_SENTENCE_END = re.compile(r"[.!?。！？][\"')\]”’]*\s+(?=[A-Z\"“'(])")
_SIGNED = re.compile(
    r"(?:(?:with|yours|best|kind|warm|many|much|all|my) )*(?:sincerely|regards|wishes|love|thanks|gratitude|truly|"
    r"faithfully|best)\b|with [\w ]{1,30},|yours? [\w ]{1,40},\s*(?-i:[A-Z][\w.'-]*(?: [A-Z][\w.'-]*){0,3})$",
    re.IGNORECASE,
)
_SIGNATURE_WORDS = 8  # at most, in a line below one that ends with a comma


class CutEnds:
    """Answers that end within a code block or a sentence; lists, code, verse and short answers need no full stop.

    A last sentence without a full stop alone is a sign only in a pool that sets them elsewhere, as generated texts do
    and people often do not.
    """

    def __init__(self) -> None:
        self._sure, self._likely = Tally(), Tally()
        self._short = self._unended = 0

    def add(self, conversation: Conversation) -> None:
        reasons = [(number, turn.content, cut_reason(turn.content)) for number, turn in answers_of(conversation)]
        for number, content, reason in reasons:
            if reason:
                self._sure.add(_example(conversation, number, content, reason))
                return
        for number, content, _ in reasons:
            text = content.rstrip()
            if is_unended(text):
                self._likely.add(_example(conversation, number, content, "the last sentence does not end"))
                return
            if len(text) <= _SHORT and "\n" not in text and text.count(" ") + 1 >= _LEAST_WORDS:
                self._short += 1
                self._unended += text[-1].isalpha()

    def found(self) -> Found:
        sure, likely = self._sure, self._likely
        if self._unended > _HABIT * self._short:
            note = f"{likely.rows:,} more without a last full stop, which this pool often leaves out"
            return replace(sure.found(), note=note if likely.rows else "")
        return Found(sure.rows + likely.rows, tuple([*sure.examples, *likely.examples][:EXAMPLES]))


def _example(conversation: Conversation, turn: int, content: str, reason: str) -> Example:
    end = len(content.rstrip())
    return example_of(conversation, Spot(reason, turn, max(0, end - 40), end))


def cut_reason(answer: str) -> str:
    """What shows that the answer is cut, in words; empty if nothing does."""
    text = answer.rstrip()
    if len(re.findall(r"^\s*```", text, re.MULTILINE)) % 2:
        return "the code block does not end"
    if text.count(" ") + 1 < _LEAST_WORDS or "```" in text:
        return ""
    line = text[text.rfind("\n") + 1 :]
    if _CODE.search(line):
        return ""
    if line.count(" ") < 4 or _is_verse(text):  # a greeting's end (Sincerely,), an entry, a song
        return ""
    last = line.split()[-1]
    if text[-1] in ",-–—(" and last[:-1].isalnum():
        return f"ends with {last!r}"
    if not text[-1].isalpha() or not last.strip("\"'“(").isalpha():
        return ""
    if last in _OPEN_WORDS:
        return f"ends with {last!r}"
    is_open = _is_open(_SENTENCE_END.split(text)[-1])
    return "a quotation or bracket does not end" if is_open else ""


def is_unended(text: str) -> bool:
    """Whether the last of at least three sentences of an answer has no end."""
    above, _, line = text.rpartition("\n")
    if "```" in text or _CODE.search(line) or _LIST_ITEM.match(line) or not text[-1].isalpha() or _is_verse(text):
        return False
    if above.rstrip().endswith(",") and line.count(" ") < _SIGNATURE_WORDS:
        return False
    *before, last = _SENTENCE_END.split(text)
    return (
        len(before) >= 2
        and line.count(" ") >= 4
        and last.count(" ") >= 2
        and last.split()[-1].isalpha()
        and not _SIGNED.match(last)
        and not any(mark in last for mark in ".!?")
    )


def _is_open(sentence: str) -> bool:
    """Whether a bracket or quotation begins in the sentence, with two words or more behind it, and does not end."""
    for opening, closing in (("(", ")"), ("“", "”"), (' "', '" ')):
        begun = sentence.rfind(opening)
        if begun >= 0 and closing.strip() not in sentence[begun + len(opening) :] and " " in sentence[begun + 2 :]:
            return True
    return False


def _is_verse(text: str) -> bool:
    """Whether most lines end without a full stop, as in poems, lists and posts."""
    lines = [line.rstrip() for line in text.splitlines()[:-1] if line.strip()]
    return len(lines) >= 2 and sum(line[-1] not in '.!?:"”' for line in lines) > len(lines) / 2
