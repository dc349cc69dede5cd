from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenclean.errors import NonFiniteError
from tokenclean.ragged import Ragged
from tokenclean.selection import kept_count, select_tokens

LEVELS = ("global", "sample", "source")
# Few distinct values force ties; 5e-324 and 1e-45 are the smallest denormals of float64 and float32.
TIED = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 5e-324, -5e-324, 1e-45, -1e-45, 1e-40])
SPREAD = st.floats(-(2.0**100), 2.0**100, width=32)
PROPORTIONS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.7, 1.0]))


@st.composite
def pools(draw):
    """(scores, is_response, sources), with NaN or inf on the tokens outside the response."""
    score = draw(st.sampled_from([TIED, SPREAD]))
    outside = st.sampled_from([math.nan, math.inf, 7.0])
    token = st.one_of(st.tuples(score, st.just(True)), st.tuples(outside, st.just(False)))
    rows = draw(st.lists(st.lists(token, max_size=12), max_size=8))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    scores = Ragged.from_rows([[s for s, _ in row] for row in rows], dtype=dtype)
    is_response = Ragged.from_rows([[r for _, r in row] for row in rows], dtype=bool)
    return scores, is_response, [draw(st.sampled_from("abc")) for _ in rows]


def select_by_sorting(scores, is_response, sources, proportion, level):
    """The definition, with Python's sort of (-score, row, position)."""
    groups = defaultdict(list)
    for row in range(len(scores)):
        group = {"global": "", "sample": row, "source": sources[row]}[level]
        for position, score in enumerate(scores[row].tolist()):
            if is_response[row][position]:
                groups[group].append((-score, row, position))
    is_kept = [[False] * len(row) for row in scores]
    for ranking in groups.values():
        for _, row, position in sorted(ranking)[: int(len(ranking) * proportion)]:
            is_kept[row][position] = True
    return is_kept


def rows_of(column):
    return [row.tolist() for row in column]


@pytest.mark.parametrize("level", LEVELS)
@given(pool=pools(), proportion=PROPORTIONS)
def test_selects_what_sorting_selects(level, pool, proportion):
    scores, is_response, sources = pool
    is_kept = select_tokens(scores, is_response, proportion=proportion, level=level, sources=sources)
    assert is_kept.values.dtype == bool
    assert rows_of(is_kept) == select_by_sorting(scores, is_response, sources, proportion, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_selects_what_sorting_selects_on_a_larger_pool(level, dtype):
    random = np.random.default_rng(0)
    lengths = random.integers(0, 40, 300)
    is_response = Ragged.from_rows([random.random(length) < 0.7 for length in lengths], dtype=bool)
    scores = is_response.with_values((random.random(len(is_response.values)) * 50).astype(dtype))
    sources = random.choice(["flan", "dolly", "oasst"], len(lengths)).tolist()
    is_kept = select_tokens(scores, is_response, proportion=0.6, level=level, sources=sources)
    assert rows_of(is_kept) == select_by_sorting(scores, is_response, sources, 0.6, level)


def test_the_public_call():
    base = Ragged.from_rows([[math.nan, 2.0, 3.0, 1.0], [math.nan, 1.0, 5.0, 1.0]])
    reference = Ragged.from_rows([[math.nan, 1.0, 1.0, 1.0], [math.nan, 3.0, 1.0, 0.5]])
    is_response = Ragged.from_rows([[False, True, True, True], [False, False, True, True]])
    is_kept = select_tokens(base - reference, is_response, proportion=0.6, level="global")
    assert rows_of(is_kept) == [[False, True, True, False], [False, False, True, False]]


def test_global_may_empty_a_row_and_sample_does_not():
    scores = Ragged.from_rows([[1.0, 2.0], [3.0, 4.0]])
    is_response = Ragged.from_rows([[True, True], [True, True]])
    assert rows_of(select_tokens(scores, is_response, proportion=0.5)) == [[False, False], [True, True]]
    assert rows_of(select_tokens(scores, is_response, proportion=0.5, level="sample")) == [[False, True]] * 2


@pytest.mark.parametrize("level", LEVELS)
def test_ties_go_to_the_earlier_token_whatever_the_sign_of_zero(level):
    scores = Ragged.from_rows([[-0.0, 0.0, -0.0, 0.0], [0.0, -0.0, 0.0, -0.0]])
    is_response = Ragged.from_rows([[True] * 4] * 2)
    is_kept = select_tokens(scores, is_response, proportion=0.5, level=level, sources=["a", "b"])
    earlier = [True, True, False, False]
    assert rows_of(is_kept) == ([[True] * 4, [False] * 4] if level == "global" else [earlier, earlier])


def test_neighbours_in_float64_are_not_merged():
    """A ranking in float32 would see a tie and keep the first."""
    scores = Ragged.from_rows([[1.0, np.nextafter(1.0, 2.0)]])
    is_kept = select_tokens(scores, Ragged.from_rows([[True, True]]), proportion=0.5)
    assert rows_of(is_kept) == [[False, True]]


@pytest.mark.parametrize("level", [*LEVELS, "random"])
@pytest.mark.parametrize(
    "rows", [[], [[], []], [[math.nan, math.inf], []]], ids=["no row", "empty rows", "no response"]
)
def test_nothing_to_select(level, rows):
    scores = Ragged.from_rows(rows, dtype=np.float32)
    is_response = scores.map_values(lambda values: np.zeros(len(values), dtype=bool))
    is_kept = select_tokens(scores, is_response, proportion=1.0, level=level, sources=["a"] * len(rows), seed=0)
    is_kept.check_aligned(is_response)
    assert is_kept.values.dtype == bool
    assert not is_kept.values.any()


@given(total=st.integers(0, 10**9), proportion=PROPORTIONS)
@example(total=90, proportion=0.7)
def test_kept_count_is_the_truncated_float64_product(total, proportion):
    assert kept_count(total, proportion) == int(total * proportion)
    assert 0 <= kept_count(total, proportion) <= total


def test_kept_count_by_hand():
    assert kept_count(90, 0.7) == 62
    assert kept_count(10, 0.6) == 6
    assert kept_count(7, 1.0) == 7
    assert kept_count(0, 0.5) == 0


@pytest.mark.parametrize("total", [10**9, np.int64(10**9), np.int32(10**9)])
def test_kept_count_multiplies_in_float64_whatever_comes_in(total):
    proportion: Any = np.float32(0.1)  # 0.100000001490116 in float64
    count = kept_count(total, proportion)
    assert count == int(10**9 * float(proportion)) == 100000001
    assert type(count) is int


@given(pool=pools(), proportion=PROPORTIONS, seed=st.integers(0, 2**64))
def test_random_keeps_the_exact_count_of_response_tokens(pool, proportion, seed):
    _, is_response, _ = pool
    is_kept = select_tokens(None, is_response, proportion=proportion, level="random", seed=seed)
    assert is_kept.values.sum() == kept_count(int(is_response.values.sum()), proportion)
    assert not np.any(is_kept.values & ~is_response.values)


def test_random_depends_on_the_seed_alone():
    is_response = Ragged.from_rows([[True] * 50] * 4)
    scores = is_response.with_values(np.full(200, math.nan))

    def draw(seed, scores=None, proportion=0.5):
        return select_tokens(scores, is_response, proportion=proportion, level="random", seed=seed).values

    assert np.array_equal(draw(1), draw(1, scores))
    assert not np.array_equal(draw(1), draw(2))
    assert np.all(draw(1) <= draw(1, proportion=0.8))


def test_random_draw_is_the_same_in_every_numpy_version():
    is_kept = select_tokens(None, Ragged.from_rows([[True] * 40]), proportion=0.25, level="random", seed=42)
    assert np.flatnonzero(is_kept.values).tolist() == [2, 5, 7, 11, 13, 18, 22, 23, 24, 31]


def test_random_is_uniform_over_tokens_and_pairs():
    """Over 3000 fixed seeds each token, and each pair, is kept as often as chance says, within five deviations."""
    seeds, tokens, kept = 3000, 20, 6
    is_response = Ragged.from_rows([[True] * 15, [True] * 5])
    draws = np.array(
        [select_tokens(None, is_response, proportion=0.3, level="random", seed=s).values for s in range(seeds)],
        dtype=int,
    )
    assert np.all(draws.sum(axis=1) == kept)
    together = draws.T @ draws
    chance_pair = kept * (kept - 1) / (tokens * (tokens - 1))
    chances = np.where(np.eye(tokens, dtype=bool), kept / tokens, chance_pair)
    assert np.all(np.abs(together - seeds * chances) < 5 * np.sqrt(seeds * chances * (1 - chances)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_score_names_its_row_and_position(level, bad):
    scores = Ragged.from_rows([[], [math.nan, 1.0], [], [math.nan, 1.0, bad, bad]])
    is_response = Ragged.from_rows([[], [False, True], [], [False, True, True, True]], dtype=bool)
    with pytest.raises(NonFiniteError, match=rf"row 3, position 2 is {bad}; 2 of 4 response tokens"):
        select_tokens(scores, is_response, proportion=0.0, level=level, sources=["a"] * 4)


def test_a_non_finite_first_token_after_an_empty_row_is_named():
    scores = Ragged.from_rows([[1.0], [], [math.nan]])
    with pytest.raises(NonFiniteError, match="row 2, position 0 is nan; 1 of 2 response tokens"):
        select_tokens(scores, Ragged.from_rows([[True], [], [True]], dtype=bool), proportion=0.5)


ONE_ROW = Ragged.from_rows([[True, False]])
ONE_ROW_SCORES = Ragged.from_rows([[1.0, 2.0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "sentence"}, "'sentence'; known levels: global, sample, source, random"),
        ({"scores": Ragged.from_rows([[1.0], [2.0]])}, "1 and 2 rows"),
        ({"scores": Ragged.from_rows([[1.0]])}, "differ in row 0"),
        ({"scores": None}, "scores are needed"),
        ({"scores": Ragged.from_rows([[True, True]])}, "real numbers, got a column of bool"),
        ({"scores": Ragged.from_rows([[1j, 1j]])}, "real numbers, got a column of complex128"),
        ({"is_response": Ragged.from_rows([[1, 0]])}, "must be a bool column, got int64"),
        ({"level": "source"}, "needs sources"),
        ({"level": "source", "sources": ["a", "b"]}, "2 names for 1 rows"),
        ({"level": "random"}, "needs a seed"),
        ({"proportion": 1.01}, r"in \[0, 1\], got 1.01"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"scores": ONE_ROW_SCORES, "is_response": ONE_ROW, "proportion": 0.5} | change
    with pytest.raises(ValueError, match=message):
        select_tokens(**arguments)


@pytest.mark.parametrize("proportion", [-0.1, 1.1, math.nan, math.inf, -math.inf])
def test_a_proportion_lies_between_0_and_1(proportion):
    with pytest.raises(ValueError, match="proportion"):
        kept_count(10, proportion)
    for level in (*LEVELS, "random"):
        no_rows = Ragged.from_rows([], dtype=bool)
        with pytest.raises(ValueError, match="proportion"):
            select_tokens(None, no_rows, proportion=proportion, level=level)


def test_a_total_is_not_negative():
    with pytest.raises(ValueError, match="negative"):
        kept_count(-1, 0.5)


def test_inputs_are_left_as_they_were():
    scores, is_response = Ragged.from_rows([[3.0, 1.0, 2.0]]), Ragged.from_rows([[True, True, True]])
    for level in LEVELS:
        select_tokens(scores, is_response, proportion=0.5, level=level, sources=["a"])
    assert scores.values.tolist() == [3.0, 1.0, 2.0]
    assert is_response.values.all()
