"""Words of a text in any language, and n-grams of words as 64-bit hashes.

A word is a run of letters, digits and their marks, after Unicode's compatibility forms and case are folded. Chinese,
Japanese, Thai, Lao, Khmer and Burmese set no spaces between words: there each character is a word of its own, so that
an n-gram of n words covers less than in other languages. Hashes depend on the words alone, never on the order in which
texts are read.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from tokenclean.pool.conversation import Conversation
from tokenclean.ragged import Ragged, offsets_of

# Thai and Lao; Burmese; Khmer; kana, bopomofo and Han with their iteration marks and compatibility forms.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts that set no spaces between words, as ranges of a regular expression's class."""
_LAST_MARK = 0x1E95A
_ASCII_WORD, _ASCII_PIECE = re.compile(r"[a-z0-9]+"), re.compile(r"[a-z0-9]+|\S")  # many times as fast
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word is lost
_MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


def texts_of(conversation: Conversation) -> Iterator[str]:
    """Everything the row says, turn by turn: reasoning, content, tool calls. A tokenized row has no text."""
    for turn in conversation.turns:
        yield from (text for text in (turn.reasoning, turn.content) if text)
        for call in turn.tool_calls:
            yield from (call.name, call.arguments)


def words_of(text: str) -> list[str]:
    """The words of a text, folded; symbols, spaces and underscores part them and are left out."""
    return _ASCII_WORD.findall(text.lower()) if text.isascii() else _patterns()[0].findall(_fold(text))


def pieces_of(text: str) -> list[str]:
    """The words of a text, folded, and each of its other characters that is no space: ``2 + 2`` is no ``2 - 2``."""
    return _ASCII_PIECE.findall(text.lower()) if text.isascii() else _patterns()[1].findall(_fold(text))


class WordHashes(dict[str, int]):
    """64-bit hash of each word asked for, the same in every process."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        self[word] = value
        return value

    def of_texts(self, texts: Iterable[Sequence[str]]) -> Ragged:
        """Hashes (uint64) of the words of each text."""
        rows = [np.fromiter(map(self.__getitem__, words), np.uint64, len(words)) for words in texts]
        return Ragged.from_rows(rows, np.uint64)


def ngram_hashes(words: Ragged, n: int) -> Ragged:
    """Hash (uint64) of every run of n words inside a row: of a row with L words max(L − n + 1, 0) in their order.

    Two n-grams of one hash are the same n-gram, but for about one pair in 2⁶⁴.
    """
    lengths, values = words.lengths, words.values
    counts = np.maximum(lengths - n + 1, 0)
    total = max(len(values) - n + 1, 0)
    hashes = np.zeros(total, dtype=np.uint64)
    for place in range(n):
        hashes *= _FACTOR
        hashes += values[place : place + total]
    for shift, factor in _MIXERS:
        hashes ^= hashes >> shift
        hashes *= factor
    hashes ^= hashes >> np.uint64(31)
    ends = np.repeat(words.offsets[1:], lengths)[:total]
    return Ragged(hashes[np.arange(total) + n <= ends], offsets_of(counts))


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Of words, and of words and other characters. Python's ``\\w`` knows no marks, which Hindi writes its vowels
    with, so they are named one by one."""
    unspaced = re.compile(f"[{UNSPACED}]")
    marks = "".join(
        character
        for character in map(chr, range(0x300, min(_LAST_MARK, sys.maxunicode)))
        if unicodedata.category(character).startswith("M") and not unspaced.match(character)
    )
    letters = rf"[^\W_{UNSPACED}]"
    word = rf"[{UNSPACED}]|{letters}+(?:[{marks}]+{letters}*)*"
    return re.compile(word), re.compile(rf"{word}|\S")
