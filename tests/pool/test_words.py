from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.pool import Conversation, ToolCall, Turn
from tokenclean.pool.word_ngrams import WordHashes, ngram_hashes, pieces_of, texts_of, words_of

quick = settings(max_examples=80, deadline=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't PANIC, it's 2_000 km!", ["don", "t", "panic", "it", "s", "2", "000", "km"]),
        ("Straße ﬁne ＡＢＣ １２", ["strasse", "fine", "abc", "12"]),
        ("私は猫。ABC です", ["私", "は", "猫", "abc", "で", "す"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs are marks, which Python's \w does not know
        ("كِتَابٌ جديد", ["كِتَابٌ", "جديد"]),
        ("ภาษาไทย", list("ภาษาไทย")),
        ("한국어 문장", ["한국어", "문장"]),
        ("e\u0301te\u0301 ❤\ufe0f \u0301", ["été"]),
        ("", []),
        (" \n\t—…", []),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert words_of(text) == expected


def test_pieces_keep_symbols_which_tell_sums_apart():
    assert pieces_of("2 + 2_") == ["2", "+", "2", "_"]
    assert words_of("2 + 2") == words_of("2 - 2")
    assert pieces_of("2 + 2") != pieces_of("2 - 2")


@quick
@given(st.text(max_size=40))
def test_words_are_pieces_and_no_piece_holds_a_space(text):
    pieces = iter(pieces_of(text))
    assert all(word in pieces for word in words_of(text))  # in their order
    assert "".join(pieces_of(text)) == "".join("".join(pieces_of(text)).split())


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=8)


@quick
@given(st.lists(WORDS, max_size=5), st.integers(1, 5))
def test_ngrams_are_those_of_each_row_alone(rows, n):
    hashes = ngram_hashes(WordHashes().of_texts(rows), n)
    ngrams = [[tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in rows]
    assert [len(row) for row in hashes] == [len(row) for row in ngrams]
    assert hashes.values.dtype == np.uint64
    # Equal n-grams have equal hashes, others have others.
    flat = [ngram for row in ngrams for ngram in row]
    pairs = set(zip(flat, hashes.values.tolist(), strict=True))
    assert len(pairs) == len(set(flat)) == len(set(hashes.values.tolist()))


def test_hashes_are_the_same_in_every_process():
    code = (
        "from tokenclean.pool.word_ngrams import *; h = WordHashes(); h['z'];"
        "print(ngram_hashes(h.of_texts([['x', 'y', 'z']]), 2).values.tolist())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    hashes = ngram_hashes(WordHashes().of_texts([["x", "y", "z"]]), 2)
    assert said.strip() == str(hashes.values.tolist())


def test_everything_a_row_says_is_a_text():
    turns = (
        Turn("system", ""),
        Turn("user", "q"),
        Turn("assistant", "", "why", (ToolCall("add", '{"a": 1}'),)),
        Turn("tool", "3"),
        Turn("assistant", "a"),
    )
    assert list(texts_of(Conversation("i", "s", turns))) == ["q", "why", "add", '{"a": 1}', "3", "a"]
