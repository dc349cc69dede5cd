"""Near-duplicates against brute force, and what counts as one."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.checks.near_duplicates import (
    NearDuplicates,
    by_rarity,
    similar_earlier_rows,
    without_stock_phrases,
)
from tokenclean.checks.repeated_rows import Duplicates, RepeatedPrompts
from tokenclean.pool import Conversation, Turn
from tokenclean.ragged import Ragged

SETS = st.lists(st.sets(st.integers(0, 12), max_size=10), max_size=12)


def row(prompt: str, answer: str, line: int) -> Conversation:
    return Conversation(f"s:{line}:x", "s", (Turn("user", prompt), Turn("assistant", answer)), "chat", "s.jsonl", line)


@given(SETS, st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]))
def test_the_pairs_are_those_of_brute_force(rows: list[set[int]], threshold: float):
    expected: dict[int, int] = {}
    for number, own in enumerate(rows):
        for other in range(number):
            both = len(own & rows[other])
            if other not in expected and both and both >= threshold * len(own | rows[other]) - 1e-12:
                expected[number] = other
                break
    sets, counts = by_rarity(Ragged.from_rows([sorted(own) for own in rows], np.uint64))
    assert similar_earlier_rows(sets, counts, threshold) == expected


def test_stock_phrases_do_not_count():
    rows = [[*range(50), *range(100 + 10 * n, 110 + 10 * n)] for n in range(30)]
    rows.append([7, 8])
    sets, counts = by_rarity(Ragged.from_rows(rows, np.uint64))
    kept = without_stock_phrases(sets, counts)
    assert kept.lengths.tolist() == [10] * 30 + [0]
    assert similar_earlier_rows(sets, counts, 0.7)
    assert not similar_earlier_rows(kept, counts, 0.7)


def test_one_other_word_is_near_and_the_same_row_is_not():
    words = [
        "the",
        "old",
        "harbour",
        "of",
        "our",
        "town",
        "was",
        "built",
        "by",
        "two",
        "brothers",
        "who",
        "came",
        "from",
        "the",
        "north",
        "and",
        "stayed",
    ]
    answer = " ".join(words) + "."
    check, exact = NearDuplicates(), Duplicates()
    rows = [
        row("Tell me about the harbour.", answer, 1),
        row("Tell me about the harbour.", answer.replace("brothers", "sisters"), 2),
        row("tell  me about the harbour.", answer, 3),  # exact
        row("Tell me about the harbour.", "It is a nice place in which many ships lie in winter.", 4),
    ]
    for conversation in rows:
        check.add(conversation)
        exact.add(conversation)
    found = check.found()
    assert found.rows == 1
    assert found.examples[0].place == "s.jsonl:2"
    assert "like s.jsonl:1" in found.examples[0].text
    assert exact.found().rows == 1
    assert exact.found().examples[0].text == "the same as s.jsonl:1"


def test_another_question_about_the_same_text_is_no_near_duplicate():
    draw = random.Random(0)
    text = " ".join(draw.choices([f"word{n}" for n in range(200)], k=120))
    check = NearDuplicates()
    check.add(row(f"{text}\nWho came first?", "The two brothers.", 1))
    check.add(row(f"{text}\nWhen was it?", "In 1850, after the flood.", 2))
    assert check.found().rows == 0


def test_what_is_not_compared_is_said():
    check = NearDuplicates(shingles_kept=10)
    for line in range(1, 4):
        check.add(row("Tell me about the old harbour of our town", f"It is a place of ships and people {line}", line))
        check._take_block()
    assert check.found().note == "2 rows after the first 1 not compared"


def test_a_prompt_that_comes_again():
    check = RepeatedPrompts()
    rows = [("Why?", "So."), ("why? ", "Because."), ("Why?", "So."), ("Who?", "So.")]
    for line, (prompt, answer) in enumerate(rows, 1):
        check.add(row(prompt, answer, line))
    assert check.found().rows == 1
    assert check.found().examples[0].text == "the prompt of s.jsonl:1"
