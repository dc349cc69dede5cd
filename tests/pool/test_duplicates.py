from __future__ import annotations

import random
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.errors import MissingExtraError
from tokenclean.pool import Conversation, LabelledTokens, ToolCall, Turn
from tokenclean.pool.duplicates import (
    MISSED_SHARE,
    SHINGLE_PIECES,
    Duplicate,
    choose_bands,
    exact_duplicates,
    jaccard_index,
    near_duplicates,
    shingles,
)
from tokenclean.pool.word_ngrams import pieces_of

quick = settings(max_examples=60, deadline=None)


def chat(question: str, answer: str, number: int = 0, **turn) -> Conversation:
    return Conversation(f"s:{number}:0", "s", (Turn("user", question), Turn("assistant", answer, **turn)))


def tokens(ids: list[int], flags: list[bool]) -> Conversation:
    return Conversation("t", "s", (), "tokens", tokens=LabelledTokens(np.array(ids), np.array(flags)))


def row_of(text: str) -> Conversation:
    """A row that says nothing but the text."""
    return Conversation("x", "s", (Turn("assistant", text),), "text")


def shingles_by_hand(conversation: Conversation) -> set[tuple[str, ...]]:
    pieces = [piece for turn in conversation.turns for piece in pieces_of(turn.content)]
    if len(pieces) < SHINGLE_PIECES:
        return {tuple(pieces)} if pieces else set()
    return {tuple(pieces[i : i + SHINGLE_PIECES]) for i in range(len(pieces) - SHINGLE_PIECES + 1)}


def jaccard_by_hand(first: set, second: set) -> float:
    return len(first & second) / len(first | second) if first | second else 1.0


def near_by_hand(rows: list[Conversation], threshold: float) -> list[Duplicate]:
    """All pairs: a row goes for the first row that stays and is similar enough."""
    sets = [shingles_by_hand(row) for row in rows]
    kept: list[int] = []
    found = []
    for row, own in enumerate(sets):
        of = next((k for k in kept if own and jaccard_by_hand(own, sets[k]) >= threshold), None)
        if of is None:
            kept.append(row)
        else:
            found.append(Duplicate(row, of, jaccard_by_hand(own, sets[of])))
    return found


# --- exact ---


def test_case_spaces_and_composed_characters_do_not_tell_rows_apart():
    rows = [
        chat("What is  é?\n", "A letter."),
        chat("what is e\u0301?", "a LETTER."),
        chat("What is é", "A letter."),
        chat("What is é?", "A letter!"),
        chat("WHAT IS É?", "A letter."),
    ]
    assert exact_duplicates(rows) == [Duplicate(1, 0), Duplicate(4, 0)]


def test_roles_reasoning_calls_and_tools_tell_rows_apart_and_the_kind_does_not():
    plain = chat("2 + 2?", "4")
    others = [
        Conversation("s", "s", (Turn("user", "2 + 2?"), Turn("user", "4"), Turn("assistant", "4"))),
        chat("2 + 2?", "4", reasoning="Add."),
        chat("2 + 2?", "4", tool_calls=(ToolCall("add", "{}"),)),
        Conversation("s", "s", plain.turns, tools="[{}]"),
    ]
    assert exact_duplicates([plain, *others]) == []
    completion = Conversation("s", "s", plain.turns, "completion")
    assert exact_duplicates([*others, plain, completion]) == [Duplicate(5, 4)]


def test_tokenized_rows_agree_in_ids_and_labels():
    rows = [
        tokens([1, 2, 3], [False, True, True]),
        tokens([1, 2, 3], [False, False, True]),
        tokens([1, 2, 3], [False, True, True]),
    ]
    assert exact_duplicates(rows) == [Duplicate(2, 0)]


# --- near ---

SETS = st.sets(st.integers(0, 40), max_size=30)


@quick
@given(SETS, SETS)
def test_the_jaccard_index_is_that_of_sets(first, second):
    arrays = [np.array(sorted(s), dtype=np.uint64) for s in (first, second)]
    assert jaccard_index(*arrays) == jaccard_by_hand(first, second)
    assert jaccard_index(*arrays[::-1]) == jaccard_index(*arrays)


TEXTS = st.lists(st.sampled_from(["a", "b", "c", ",", "7"]), max_size=14).map(" ".join)


@quick
@given(st.lists(TEXTS, min_size=2, max_size=6))
def test_shingles_are_runs_of_five_pieces(texts):
    rows = [row_of(text) for text in texts]
    sets, by_hand = shingles(rows), [shingles_by_hand(row) for row in rows]
    assert [len(s) for s in sets] == [len(s) for s in by_hand]
    assert all((np.diff(s) > 0).all() for s in sets)
    for (a, b), (x, y) in zip(pairwise(sets), pairwise(by_hand), strict=True):
        assert jaccard_index(a, b) == jaccard_by_hand(x, y)
    backwards = shingles(rows[::-1])
    assert all(np.array_equal(a, b) for a, b in zip(sets, reversed(list(backwards)), strict=True))


def test_shingles_of_blocks_are_those_of_the_whole(monkeypatch):
    rows = [row_of(f"some words and a number {number} at the end") for number in range(7)]
    whole = shingles(rows)
    monkeypatch.setattr("tokenclean.pool.duplicates._BLOCK_ROWS", 3)
    assert [s.tolist() for s in shingles(rows)] == [s.tolist() for s in whole]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_are_as_wide_as_few_misses_allow(threshold):
    bands, rows = choose_bands(threshold)
    assert bands * rows <= 128
    assert bands >= 2
    assert (1 - threshold**rows) ** bands <= MISSED_SHARE
    if rows < 64:
        assert (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) > MISSED_SHARE


def edited(generator: random.Random, words: list[str], edits: int) -> list[str]:
    words = list(words)
    for _ in range(edits):
        place = generator.randrange(len(words))
        change = generator.choice(["replace", "drop", "insert"])
        if change == "insert":
            words.insert(place, f"new{generator.randrange(50)}")
        elif change == "drop" and len(words) > 1:
            del words[place]
        else:
            words[place] = f"new{generator.randrange(50)}"
    return words


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_are_those_of_all_pairs(threshold, seed):
    generator = random.Random(seed)
    texts = [[f"w{generator.randrange(30)}" for _ in range(generator.randrange(3, 150))] for _ in range(12)]
    rows = [row_of(" ".join(edited(generator, t, generator.choice([0, 0, 1, 2, 4])))) for t in texts for _ in range(5)]
    generator.shuffle(rows)
    expected = near_by_hand(rows, threshold)
    assert near_duplicates(rows, threshold) == expected
    assert near_duplicates(rows, threshold) == expected
    assert len(expected) > 5


@settings(max_examples=25, deadline=None)
@given(st.lists(TEXTS, max_size=12), st.sampled_from([0.4, 0.75, 1.0]))
def test_what_goes_truly_resembles_a_row_that_stays(texts, threshold):
    rows = [row_of(text) for text in texts]
    found = near_duplicates(rows, threshold)
    gone = {duplicate.row for duplicate in found}
    assert len(gone) == len(found)
    for duplicate in found:
        assert duplicate.of < duplicate.row
        assert duplicate.of not in gone
        sets = [shingles_by_hand(rows[row]) for row in (duplicate.row, duplicate.of)]
        assert duplicate.similarity == jaccard_by_hand(*sets) >= threshold


def test_a_row_does_not_go_for_a_chain_of_others():
    words = [f"w{number}" for number in range(40)]
    chain = [row_of(" ".join(words[start : start + 30])) for start in (0, 2, 4)]
    threshold = jaccard_by_hand(*(shingles_by_hand(row) for row in chain[:2]))
    assert near_duplicates(chain, threshold) == [Duplicate(1, 0, threshold)]


def test_tokenized_rows_are_compared_by_their_ids():
    ids = list(range(100, 140))
    rows = [tokens(ids, [True] * 40), tokens([7, *ids], [True] * 41), tokens(ids[::-1], [True] * 40)]
    assert near_duplicates(rows, 0.9) == [Duplicate(1, 0, 36 / 37)]
    assert near_duplicates([rows[0], row_of(" ".join(map(str, ids)))], 0.1) == []


def test_rows_without_a_shingle_stay():
    assert near_duplicates([row_of(" "), row_of(""), row_of(" ")], 0.5) == []
    assert near_duplicates([], 0.5) == []


def test_without_the_library_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingExtraError, match=r"'datasketch': pip install 'tokenclean\[curate\]'"):
        near_duplicates([row_of("a")], 0.8)
