"""Prompts exchanged and dropped, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tokenclean.ragged import Ragged
from tokenclean.tokens.other_prompts import foreign_prompts, prompts_of, replace_prompts, without_prompts
from tokenclean.tokens.tokenize import TokenizedPool

BOS, TAG = 1, 2


def pool_of(*rows: tuple[list[int], list[int]], sources: str = "") -> TokenizedPool:
    """Rows of a prompt and an answer; token 99 of an answer is no target."""
    ids = Ragged.from_rows([prompt + answer for prompt, answer in rows], np.int64)
    labels = [[False] * len(prompt) + [token != 99 for token in answer] for prompt, answer in rows]
    zeros = ids.map_values(lambda values: np.zeros(len(values), np.int32))
    count = len(rows)
    return TokenizedPool(
        ids,
        Ragged.from_rows(labels, np.bool_),
        zeros,
        zeros,
        tuple(f"row-{n}" for n in range(count)),
        tuple(sources or "s" * count),
        ((),) * count,
        np.zeros(count, bool),
        (),
    )


def lists(rows: list) -> list:
    return [None if row is None else row.tolist() for row in rows]


TOKENS = pool_of(([BOS, 5, TAG], [7, 99, 8]), ([TAG], [9]), ([BOS, 6], [99]))


def test_a_prompt_ends_before_the_first_target():
    assert lists(prompts_of(TOKENS)) == [[BOS, 5, TAG], [TAG], None]


def test_what_follows_the_prompt_stays_with_its_labels():
    found = replace_prompts(TOKENS.take([0, 1]), [np.array([3, 4, 5, TAG]), np.array([4, TAG])])
    assert lists(list(found.input_ids)) == [[3, 4, 5, TAG, 7, 99, 8], [4, TAG, 9]]
    assert lists(list(found.is_response)) == [[False] * 4 + [True, False, True], [False, False, True]]
    assert found.ids == ("row-0", "row-1")
    assert found.take([1]).input_ids[0].tolist() == [4, TAG, 9]


def test_rows_that_cannot_have_another_prompt():
    with pytest.raises(ValueError, match="row 2 has no target"):
        replace_prompts(TOKENS, [np.array([TAG])] * 3)
    with pytest.raises(ValueError, match="row 0 has no prompt"):
        replace_prompts(TOKENS.take([0]), [np.empty(0, np.int64)])
    with pytest.raises(ValueError, match="argument"):
        replace_prompts(TOKENS, [np.array([TAG])])


def test_dropping_a_prompt_leaves_its_last_token_and_bos():
    assert lists(without_prompts(TOKENS, BOS)) == [[BOS, TAG], [TAG], None]
    assert lists(without_prompts(TOKENS, None)) == [[TAG], [TAG], None]
    assert lists(without_prompts(pool_of(([BOS], [7])), BOS)) == [[BOS]]


def test_foreign_prompts_are_the_nearest_in_length_of_the_same_source():
    prompts = [[9], [9, 9], [8, 8], [9, 9, 9, 9], [9, 9], [9, 9, 9, 9, 9, 9], [7, 7]]
    tokens = pool_of(*((prompt, [5]) for prompt in prompts), sources="aaaaaab")
    chosen = foreign_prompts(tokens, 2, 100)
    found = [None if row is None else lists(row) for row in chosen]
    assert found[0] == [[8, 8], [9, 9]]
    assert found[1] == found[4] == [[8, 8], [9]]  # its own prompt, which another row has too, is none
    assert found[3] == [[8, 8], [9, 9]]
    assert found[5] == [[9, 9, 9, 9], [8, 8]]
    assert found[6] is None  # alone in its source
    assert foreign_prompts(TOKENS, 1, 100)[2] is None
    order = [3, 1, 5, 0, 6, 2, 4]
    shuffled = foreign_prompts(tokens.take(order), 2, 100)
    assert [None if row is None else lists(row) for row in shuffled] == [found[row] for row in order]


def test_a_foreign_prompt_leaves_room_for_the_answer():
    tokens = pool_of(([9, 9, 9], [5, 5]), ([8], [5]), ([7, 7, 7, 7], [5]), ([6, 6], [5, 5, 5]))
    tokens = replace(tokens, sources=("s",) * 4)
    assert [row and lists(row) for row in foreign_prompts(tokens, 2, 5)] == [
        [[6, 6], [8]],
        [[6, 6], [9, 9, 9]],
        [[9, 9, 9], [6, 6]],
        None,
    ]
