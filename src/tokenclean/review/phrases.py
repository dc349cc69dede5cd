"""Phrases that many answers share, and where a phrase occurs.

First and last sentences are grouped as ``tokenclean look`` groups them, and listed as they are written, since what is
dropped everywhere is a text. Passages inside of answers come from token ids (``selection.repeated_passages``).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenclean.checks.findings import answers_of
from tokenclean.checks.repeated_phrases import LEAST_ROWS, ROW_SHARE, closers_of, cluster, head_of, openers_of
from tokenclean.pool.conversation import Conversation
from tokenclean.pool.word_ngrams import UNSPACED
from tokenclean.selection.repeated_passages import Passage

_GROUPS, _WORDINGS = 50, 10
_LEAST_CHARACTERS = 8
_LETTER = rf"[^\W{UNSPACED}]"


@dataclass(frozen=True)
class RepeatedPhrase:
    """A text that occurs in ``rows`` rows."""

    text: str
    rows: int


@dataclass(frozen=True)
class PhraseGroup:
    """Wordings of one phrase, the most frequent first. ``place``: first sentences, last sentences, or passages."""

    place: str
    phrases: tuple[RepeatedPhrase, ...]

    @property
    def rows(self) -> int:
        """Rows of the most frequent wording."""
        return self.phrases[0].rows


def repeated_phrases(conversations: Sequence[Conversation]) -> list[PhraseGroup]:
    """Groups of first and of last sentences that several rows share word for word, the largest first, at most 50 of
    either with at most ten wordings."""
    least = max(LEAST_ROWS, math.ceil(ROW_SHARE * len(conversations)))
    groups = []
    for place, sentences_of in (("first sentence", openers_of), ("last sentence", closers_of)):
        groups += _groups(conversations, place, sentences_of, least)
    return groups


def passage_groups(
    passages: Sequence[Passage], decode: Callable[[Sequence[int]], str], known: Iterable[PhraseGroup]
) -> list[PhraseGroup]:
    """Each passage (``Repetition.passages``) as a group of one wording, unless a ``known`` group has its text; at most
    50. ``decode``: the text of token ids."""
    texts = {phrase.text for group in known for phrase in group.phrases}
    groups = []
    for passage in passages:
        if len(groups) == _GROUPS:
            break
        text = decode(passage.input_ids).strip()
        if len(text) >= _LEAST_CHARACTERS and "\ufffd" not in text and text not in texts:
            texts.add(text)
            groups.append(PhraseGroup("passage", (RepeatedPhrase(text, passage.rows),)))
    return groups


def find_phrase(phrase: str, text: str) -> Iterator[tuple[int, int]]:
    """Characters [start, end) of each occurrence of a phrase in a text, from the left, without overlap. A phrase that
    begins or ends with a letter or digit does not begin or end inside a word, in scripts that set spaces between
    words."""
    front = f"(?<!{_LETTER})" if re.match(_LETTER, phrase) else ""
    behind = f"(?!{_LETTER})" if re.match(_LETTER, phrase[-1:]) else ""
    for found in re.finditer(front + re.escape(phrase) + behind, text):
        yield found.span()


def _groups(
    conversations: Sequence[Conversation], place: str, sentences_of: Callable[[str], Iterator[str]], least: int
) -> list[PhraseGroup]:
    rows_of: defaultdict[tuple[str, ...], defaultdict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    answers: dict[str, str] = {}  # by sentence, one that has it
    for row, conversation in enumerate(conversations):
        for _, turn in answers_of(conversation):
            for text in sentences_of(turn.content.strip()):
                rows_of[head_of(text)][text].add(row)
                answers.setdefault(text, turn.content)
    weights = {head: len(set().union(*texts.values())) for head, texts in rows_of.items()}
    groups = []
    for _, heads in cluster(weights, least):
        phrases = [
            RepeatedPhrase(text, len(rows))
            for head in heads
            for text, rows in rows_of[head].items()
            if len(rows) >= LEAST_ROWS and any(find_phrase(text, answers[text]))  # a long one is cut inside a word
        ]
        if phrases:
            phrases.sort(key=lambda phrase: (-phrase.rows, phrase.text))
            groups.append(PhraseGroup(place, tuple(phrases[:_WORDINGS])))
    return sorted(groups, key=lambda group: (-group.rows, group.phrases[0].text))[:_GROUPS]
