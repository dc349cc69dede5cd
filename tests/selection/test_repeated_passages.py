from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.ragged import Ragged
from tokenclean.recipe.cleaning_settings import RepetitionSettings
from tokenclean.selection.repeated_passages import Passage, Repetition, find_repetition

# A few ids make n-grams meet; the large ones would collide in a key that is too narrow.
IDS = st.sampled_from([0, 1, 2, 2**31 - 1])
TOKENS = st.tuples(IDS, st.sampled_from([True, True, True, False]))
ROWS = st.lists(st.lists(TOKENS, max_size=14), max_size=8)


def found_in(input_ids: Ragged, is_response: Ragged, **settings: float) -> Repetition:
    return find_repetition(input_ids, is_response, RepetitionSettings.model_validate(settings))


def column_of(rows):
    """(input_ids, is_response) of rows of (id, is response)."""
    input_ids = Ragged.from_rows([[token for token, _ in row] for row in rows], dtype=np.int32)
    return input_ids, Ragged.from_rows([[response for _, response in row] for row in rows], dtype=bool)


def responses(*rows):
    """Columns in which every token is of the response."""
    return column_of([[(token, True) for token in row] for row in rows])


def by_counting(rows, n, row_share, minimum_rows):
    """The definition, with dicts of sets: (is_repeated, passages)."""
    starts = defaultdict(list)
    for number, row in enumerate(rows):
        for at in range(len(row) - n + 1):
            if all(response for _, response in row[at : at + n]):
                starts[tuple(token for token, _ in row[at : at + n])].append((number, at))
    with_response = sum(any(response for _, response in row) for row in rows)
    needed = max(minimum_rows, round(row_share * with_response, 9))
    repeated = {ngram: places for ngram, places in starts.items() if len({row for row, _ in places}) >= needed}
    is_repeated = [[False] * len(row) for row in rows]
    for places in repeated.values():
        for number, at in places:
            is_repeated[number][at : at + n] = [True] * n
    passages = defaultdict(list)
    for number, row in enumerate(rows):
        run = []
        for (token, _), inside in [*zip(row, is_repeated[number], strict=True), ((0, False), False)]:
            if inside:
                run.append(token)
            elif run:
                passages[tuple(run)].append((number, 0))
                run = []
    counted = [Passage(ids, len({row for row, _ in places}), len(places)) for ids, places in passages.items()]
    return is_repeated, tuple(sorted(counted, key=lambda passage: (-passage.rows, passage.input_ids)))


@given(rows=ROWS, n=st.integers(1, 7), row_share=st.sampled_from([0.0, 0.25, 0.5, 1.0]), minimum_rows=st.integers(1, 4))
def test_finds_what_counting_finds(rows, n, row_share, minimum_rows):
    input_ids, is_response = column_of(rows)
    found = found_in(input_ids, is_response, n=n, row_share=row_share, minimum_rows=minimum_rows)
    is_repeated, passages = by_counting(rows, n, row_share, minimum_rows)
    found.is_repeated.check_aligned(input_ids)
    assert found.is_repeated.values.dtype == bool
    assert [row.tolist() for row in found.is_repeated] == is_repeated
    assert found.passages == passages


@pytest.mark.parametrize(("n", "row_share"), [(1, 0.2), (2, 0.1), (3, 0.03), (6, 0.0)])
def test_finds_what_counting_finds_in_a_larger_pool(n, row_share):
    random = np.random.default_rng(0)
    opener = [3, 1, 4, 1, 5, 9, 2, 6]
    rows = []
    for _ in range(300):
        tokens = random.integers(0, 8, random.integers(0, 30)).tolist()
        row = (opener if random.random() < 0.1 else []) + tokens
        rows.append([(token, bool(random.random() < 0.95)) for token in row])
    found = found_in(*column_of(rows), n=n, row_share=row_share)
    is_repeated, passages = by_counting(rows, n, row_share, 3)
    assert [row.tolist() for row in found.is_repeated] == is_repeated
    assert found.passages == passages
    assert found.passages


@given(rows=ROWS, random=st.randoms(use_true_random=False))
def test_the_order_of_rows_is_of_no_account(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    input_ids, is_response = column_of(rows)
    found = found_in(input_ids, is_response, n=2, minimum_rows=2)
    shuffled = found_in(input_ids.take(order), is_response.take(order), n=2, minimum_rows=2)
    assert np.array_equal(shuffled.is_repeated.values, found.is_repeated.take(order).values)
    assert shuffled.passages == found.passages


def test_a_sentence_is_listed_as_one_passage():
    sentence = [11, 12, 13, 14, 15, 16, 17, 18]
    found = found_in(*responses([1, *sentence, 2], sentence, [3, 4, *sentence], [5, 6, 7, 8, 9, 10, 11]))
    assert found.needed_rows == 3
    assert found.passages == (Passage(tuple(sentence), rows=3, occurrences=3),)
    assert [row.tolist() for row in found.is_repeated] == [
        [False, *[True] * 8, False],
        [True] * 8,
        [False, False, *[True] * 8],
        [False] * 7,
    ]


def test_a_row_counts_once_however_often_it_repeats():
    again = [1, 2, 3] * 5
    assert found_in(*responses(again, [1, 2, 3]), n=3).passages == ()
    found = found_in(*responses(again, [1, 2, 3], [1, 2, 3]), n=3)
    assert found.passages == (
        Passage((1, 2, 3), rows=2, occurrences=2),
        Passage(tuple(again), rows=1, occurrences=1),
    )


def test_an_ngram_lies_within_one_run_of_response_tokens_of_one_row():
    """Two of the rows hold 1 2 3 only across a prompt token, or only over the end of a row."""
    whole = [(1, True), (2, True), (3, True)]
    gap = [(1, True), (2, True), (9, False), (3, True)]
    prompt = [(1, False), (2, True), (3, True)]
    for rows in ([whole, whole, gap], [whole, whole, prompt], [whole, whole, [(1, True), (2, True)], [(3, True)]]):
        assert found_in(*column_of(rows), n=3).passages == ()
    assert len(found_in(*column_of([whole, whole, whole]), n=3).passages) == 1


def test_passages_end_where_the_response_is_interrupted():
    row = [(1, True), (2, True), (9, False), (1, True), (2, True)]
    found = found_in(*column_of([row] * 3), n=2)
    assert found.passages == (Passage((1, 2), rows=3, occurrences=6),)


@pytest.mark.parametrize(
    ("row_share", "rows", "needed"), [(0.03, 200, 6), (0.03, 201, 7), (0.07, 100, 7), (0.03, 20, 3), (1.0, 5, 5)]
)
def test_the_share_is_of_rows_with_a_response_token(row_share, rows, needed):
    """Prompts and empty rows, which have no response token, ask for no more rows."""
    for holding in (needed - 1, needed):
        pool = (
            [[(7, True), (8, True)]] * holding + [[(1, True)]] * (rows - holding) + [[], [(7, False), (8, False)]] * 50
        )
        found = found_in(*column_of(pool), n=2, row_share=row_share)
        assert found.needed_rows == needed
        assert bool(found.passages) == (holding == needed)


@pytest.mark.parametrize("rows", [[], [[], []], [[(1, False)] * 9, []], [[(1, True)] * 5]])
def test_nothing_to_find(rows):
    input_ids, is_response = column_of(rows)
    found = found_in(input_ids, is_response)
    found.is_repeated.check_aligned(input_ids)
    assert found.is_repeated.values.dtype == bool
    assert not found.is_repeated.values.any()
    assert found.passages == ()


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_ids_of_any_integer_dtype(dtype):
    largest = int(np.iinfo(dtype).max)
    input_ids = Ragged.from_rows([[largest, 0, 1]] * 3, dtype=dtype)
    found = found_in(input_ids, input_ids.map_values(lambda ids: np.ones(len(ids), dtype=bool)), n=3)
    assert found.passages == (Passage((largest, 0, 1), rows=3, occurrences=3),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_response": Ragged.from_rows([[True, True]])}, "differ in row 0"),
        ({"is_response": Ragged.from_rows([[1]])}, "bool column, got int64"),
        ({"input_ids": Ragged.from_rows([[1.0]])}, "integers, got float64"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"input_ids": Ragged.from_rows([[1]]), "is_response": Ragged.from_rows([[True]])} | change
    with pytest.raises(ValueError, match=message):
        found_in(**arguments)
