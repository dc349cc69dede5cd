from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.ragged import Ragged, offsets_of

ROWS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6), max_size=6)


def rows_of(column: Ragged) -> list[list]:
    return [row.tolist() for row in column]


def test_contract():
    column = Ragged(np.array([1.0, 2.0, 3.0], np.float32), np.array([0, 2, 2, 3]))
    assert len(column) == 3
    assert column.offsets.dtype == np.int64
    assert rows_of(column) == [[1, 2], [], [3]]
    assert column[-1].tolist() == [3]
    assert column.lengths.tolist() == [2, 0, 1]
    assert column.row_of_value().tolist() == [0, 0, 2]
    assert repr(column) == "Ragged(3 rows, 3 values, float32)"
    column[0][1] = 5
    assert column.values[1] == 5, "a row is a view, no copy"


@pytest.mark.parametrize("row", [3, -4])
def test_a_row_that_is_not_there(row):
    with pytest.raises(IndexError, match=f"row {row} of a Ragged with 3 rows"):
        Ragged.from_rows([[1], [2], [3]])[row]


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        ([[1]], [0, 1], "1-D values"),
        ([1], [[0, 1]], "1-D values"),
        ([], [], "N\\+1 offsets"),
        ([1, 2], [1, 2], "from 0 to the number of values"),
        ([1, 2], [0, 1], "from 0 to the number of values \\(2\\)"),
        ([1, 2], [0, 3, 2], "must rise"),
    ],
)
def test_shapes_that_do_not_fit(values, offsets, message):
    with pytest.raises(ValueError, match=message):
        Ragged(np.array(values), np.array(offsets))


def test_from_rows_takes_the_dtype_given():
    assert Ragged.from_rows([], np.bool_).values.dtype == bool
    assert len(Ragged.from_rows([])) == 0
    column = Ragged.from_rows([[], [1, 0]], np.bool_)
    assert column.values.dtype == bool
    assert rows_of(column) == [[], [True, False]]


def test_difference():
    a, b = Ragged.from_rows([[3.0], [], [5.0, 7.0]]), Ragged.from_rows([[1.0], [], [1.0, np.nan]])
    difference = a - b
    np.testing.assert_array_equal(difference.values, [2, 4, np.nan])
    assert difference.offsets is a.offsets
    with pytest.raises(TypeError):
        a - 1  # type: ignore[operator]


def test_columns_that_are_not_aligned():
    a = Ragged.from_rows([[1], [2, 3]])
    with pytest.raises(ValueError, match="have 2 and 1 rows; they must come from one pool"):
        a.check_aligned(Ragged.from_rows([[1, 2, 3]]))
    with pytest.raises(ValueError, match="differ in row 0: 1 and 2 tokens; they must come from one tokenization"):
        a - Ragged.from_rows([[1, 2], [3]])
    with pytest.raises(ValueError, match="number of values"):
        a.with_values(np.zeros(4))
    with pytest.raises(ValueError, match="number of values"):
        a.map_values(lambda v: v[1:])


def test_row_sums_are_float64():
    sums = Ragged.from_rows([[2.0**24, 1.0], [], [1.5]], np.float32).row_sums()
    assert sums.tolist() == [2.0**24 + 1, 0, 1.5]
    assert Ragged.from_rows([], np.float32).row_sums().tolist() == []


@given(rows=ROWS, data=st.data())
def test_take_is_indexing_a_list(rows, data):
    column = Ragged.from_rows(rows, np.int64)
    picks = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=8) if rows else st.just([]))
    assert rows_of(column.take(picks)) == [rows[i] for i in picks]


def test_take_of_a_row_that_is_not_there():
    with pytest.raises(IndexError):
        Ragged.from_rows([[1], [2]]).take([2])


@given(rows=ROWS, start=st.integers(0, 7), length=st.integers(0, 7))
def test_arrow_round_trip_of_slices(rows, start, length):
    column = Ragged.from_rows(rows, np.int64)
    array = column.to_arrow()
    assert array.type == pa.large_list(pa.int64())
    assert rows_of(Ragged.from_arrow(array)) == rows
    small = pa.array(rows, pa.list_(pa.int32()))
    cut = rows[start : start + length]
    for whole in (array, small, pa.chunked_array([small]), pa.chunked_array([small.slice(0, 1), small.slice(1)])):
        assert rows_of(Ragged.from_arrow(whole)) == rows
        assert rows_of(Ragged.from_arrow(whole.slice(start, length))) == cut


@pytest.mark.parametrize(
    "values", [np.array([True, False]), np.array([np.nan, 1], np.float32), np.array([1, 2], np.int32)]
)
def test_arrow_keeps_dtype_and_nan(values):
    back = Ragged.from_arrow(Ragged(values, np.array([0, 0, 2, 2])).to_arrow())
    assert back.values.dtype == values.dtype
    np.testing.assert_array_equal(back.values, values)
    assert back.offsets.tolist() == [0, 0, 2, 2]


def test_arrow_without_a_chunk():
    assert len(Ragged.from_arrow(pa.chunked_array([], pa.large_list(pa.float32())))) == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pa.array([1, 2]), "expected a list column, found int64"),
        (pa.array([[1], None]), "may not hold nulls"),
        (pa.array([[1, None]]), "may not hold nulls"),
    ],
)
def test_arrow_that_is_no_column(array, message):
    with pytest.raises(ValueError, match=message):
        Ragged.from_arrow(array)


def test_arrow_slice_beside_a_null():
    assert rows_of(Ragged.from_arrow(pa.array([None, [1, 2], [], [None]]).slice(1, 2))) == [[1, 2], []]


def test_offsets_of():
    assert offsets_of([2, 0, 3]).tolist() == [0, 2, 2, 5]
    assert offsets_of(np.array([], np.int32)).tolist() == [0]
    assert offsets_of(n for n in (2**31, 2**31)).tolist() == [0, 2**31, 2**32]


def test_values_of_arrow_are_not_written_to():
    column = Ragged.from_arrow(pa.array([[1, 2], [3]]))
    with pytest.raises(ValueError, match="read-only"):
        column.values[0] = 9
