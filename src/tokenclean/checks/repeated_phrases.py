"""First and last sentences that many answers share, small variations of wording included.

Sentences belong together if they have their first four words in common; the large groups are then joined, and single
sentences added to them, by the overlap of their words. Contractions are spelt out, and numbers are all alike.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter

from tokenclean.checks.findings import EXAMPLES, Example, Found, Group, answers_of, place_of
from tokenclean.pool.conversation import Conversation
from tokenclean.pool.word_ngrams import words_of

ROW_SHARE = 0.002
LEAST_ROWS = 3
OVERLAP = 0.6  # Jaccard index of the sets of words

_KEY_WORDS, _HEAD_WORDS = 4, 12
_PARTS = 3  # a group is led by a part of at least a third of ``least`` rows
_SAME_PHRASE = 0.8  # share of a group that goes on with the same word
_EDGE = 400  # characters at either end of an answer that are looked at
_GROUPS = 20
_SENTENCE = re.compile(r"[.!?…]+[\"')\]”’*]*(?=\s|$)|[。！？]+|\n+")
_CONTRACTIONS = (
    ("can't", "can not"),
    ("won't", "will not"),
    ("n't", " not"),
    ("'re", " are"),
    ("'m", " am"),
    ("'ve", " have"),
    ("'ll", " will"),
    ("'s", " is"),
)
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")

Words = tuple[str, ...]


@dataclass
class _Phrase:
    """Rows that begin (or end) with a sentence of these words. ``text``: as the first of them writes it."""

    text: str
    row: str
    place: str
    rows: list[int] = field(default_factory=list)


class RepeatedPhrases:
    """A collector of first sentences, or of last ones."""

    def __init__(self, *, is_closer: bool) -> None:
        self._sentences_of = closers_of if is_closer else openers_of
        self._phrases: dict[Words, _Phrase] = {}
        self._count = 0

    def add(self, conversation: Conversation) -> None:
        for _, turn in answers_of(conversation):
            for text in self._sentences_of(turn.content.strip()):
                words = head_of(text)
                if words not in self._phrases:
                    self._phrases[words] = _Phrase(text, conversation.id, place_of(conversation))
                self._phrases[words].rows.append(self._count)
        self._count += 1

    def found(self) -> Found:
        least = max(LEAST_ROWS, math.ceil(ROW_SHARE * self._count))
        weights = {words: len(set(phrase.rows)) for words, phrase in self._phrases.items()}
        groups, rows = [], set[int]()
        for leader, members in cluster(weights, least):
            phrases = [self._phrases[words] for words in members]
            in_rows = {row for phrase in phrases for row in phrase.rows}
            if len(in_rows) < least:
                continue
            rows |= in_rows
            shown = max(phrases, key=lambda phrase: len(phrase.rows))
            text = shown.text if len(leader) < _KEY_WORDS else _beginning(shown.text, len(leader))
            groups.append(Group(text, len(in_rows), len(members), shown.row, shown.place))
        groups.sort(key=lambda group: -group.rows)
        examples = [Example(g.row, g.place, f"{g.rows:,} rows, {g.variants:,} wordings", g.phrase) for g in groups]
        return Found(len(rows), tuple(examples[:EXAMPLES]), tuple(groups[:_GROUPS]))


def openers_of(answer: str) -> Iterator[str]:
    """The first sentence with what follows if it is short, and the short one alone; of an answer of one sentence that
    one if it is not short."""
    beginning = answer[:_EDGE]
    match = _SENTENCE.search(beginning)
    first = beginning[: match.end()] if match else beginning
    rest = beginning[len(first) :].strip()
    is_short = len(words_of(first)) < _KEY_WORDS
    if is_short and rest and _is_exclamation(first):
        yield first.strip()
    if is_short and rest:
        following = _SENTENCE.search(rest)
        first += " " + (rest[: following.end()] if following else rest)
    if len(words_of(first)) >= _KEY_WORDS + (not rest):
        yield first.strip()


def closers_of(answer: str) -> Iterator[str]:
    """The last sentence of an answer that has several."""
    ending = answer[-_EDGE:]
    breaks = [match for match in _SENTENCE.finditer(ending) if match.end() < len(ending)]
    if breaks:
        last = ending[breaks[-1].end() :].strip()
        if len(words_of(last)) >= _KEY_WORDS or _is_exclamation(last):
            yield last


def head_of(sentence: str) -> Words:
    """The first twelve words of a sentence, contractions spelt out and numbers as #."""
    text = sentence.lower().replace("’", "'").replace("cannot", "can not")
    if "'" in text:
        for short, long in _CONTRACTIONS:
            text = text.replace(short, long)
    return tuple(_NUMBER.sub("#", word) for word in words_of(text)[:_HEAD_WORDS])


def cluster(weights: dict[Words, int], least: int) -> list[tuple[Words, list[Words]]]:
    """Sentences into groups of ``least`` or more: (the words they begin with, the members), the largest first.

    ``weights``: sentence -> rows. A group is led by its largest part and holds only what overlaps with the leader.
    """
    by_key: dict[Words, list[Words]] = defaultdict(list)
    for words in weights:
        by_key[words[:_KEY_WORDS]].append(words)
    totals = {key: sum(weights[words] for words in members) for key, members in by_key.items()}
    clusters: list[tuple[Words, list[Words]]] = []
    leaders = _Leaders()
    for key in sorted(totals, key=lambda key: (-totals[key], key)):
        members, may_lead = by_key[key], _PARTS * totals[key] >= least
        if _is_formula(key) or (not may_lead and len(members) == 1 and len(members[0]) == _HEAD_WORDS):
            continue  # a single long sentence overlaps with no phrase
        phrase = _common_beginning(members, weights) if len(members) > 1 else members[0]
        number = leaders.find(phrase)
        if number is not None:
            clusters[number][1].extend(members)
        elif may_lead:
            leaders.add(phrase)
            clusters.append((phrase, list(members)))
    return [(leader, members) for leader, members in clusters if sum(weights[words] for words in members) >= least]


class _Leaders:
    """Phrases by their words, to find the first that overlaps with another."""

    def __init__(self) -> None:
        self._sets: list[frozenset[str]] = []
        self._by_word: dict[str, list[int]] = defaultdict(list)

    def add(self, phrase: Words) -> None:
        for word in set(phrase):
            self._by_word[word].append(len(self._sets))
        self._sets.append(frozenset(phrase))

    def find(self, phrase: Words) -> int | None:
        words = frozenset(phrase)
        shared: Counter[int] = Counter()
        for word in words:
            shared.update(self._by_word.get(word, ()))
        # |A ∩ B| / |A ∪ B| from |A ∩ B|; few words have to be the same.
        least = OVERLAP if len(words) >= _KEY_WORDS else 1.0
        near = [n for n, both in shared.items() if both >= least * (len(words) + len(self._sets[n]) - both)]
        return min(near, default=None)


def _is_formula(key: Words) -> bool:
    """Whether a sentence begins with numbers and single letters."""
    return len(key) == _KEY_WORDS and sum(word.isalpha() and len(word) > 1 for word in key) < 2


def _common_beginning(members: Iterable[Words], weights: dict[Words, int]) -> Words:
    """The longest beginning that four fifths of the members, by rows, have in common."""
    members = list(members)
    total = sum(weights[words] for words in members)
    phrase = members[0][:_KEY_WORDS]
    while True:
        following: Counter[str] = Counter()
        for words in members:
            if len(words) > len(phrase) and words[: len(phrase)] == phrase:
                following[words[len(phrase)]] += weights[words]
        word, rows = max(following.items(), key=itemgetter(1), default=("", 0))
        if rows < _SAME_PHRASE * total or not rows:
            return phrase
        phrase = (*phrase, word)


def _is_exclamation(sentence: str) -> bool:
    words = words_of(sentence)
    ends_as_one = sentence.rstrip()[-1:] in ".!?。！？"
    return bool(words) and ends_as_one and any(word.isalpha() for word in words) and (len(words) > 1 or "!" in sentence)


def _beginning(text: str, count: int) -> str:
    """The text of a sentence up to its first ``count`` words."""
    end = 0
    for match in _WORD.finditer(text):
        count -= len(head_of(match[0]))
        end = match.end()
        if count <= 0:
            break
    return text[:end] + ("…" if any(map(str.isalnum, text[end:])) else text[end:])
