from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, from_dtype

from tokenclean.selection.sortable_keys import order_keys, random_keys, score_of_key

NUMBERS = st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]).map(np.dtype)


@st.composite
def scores(draw):
    dtype = draw(NUMBERS)
    finite = from_dtype(dtype, allow_nan=False, allow_infinity=False)
    zeros = st.sampled_from([0.0, -0.0] if dtype.kind == "f" else [0]).map(dtype.type)
    return draw(arrays(dtype, st.integers(0, 8), elements=finite | zeros))


@given(scores())
def test_keys_have_the_order_and_the_ties_of_the_scores(values):
    keys = order_keys(values)
    assert keys.dtype == (np.uint32 if values.dtype == np.float32 else np.uint64)
    for operator in (np.less, np.equal):
        np.testing.assert_array_equal(operator.outer(keys, keys), operator.outer(values, values))


@given(scores())
def test_a_key_gives_its_score_back(values):
    for value, key in zip(values, order_keys(values).tolist(), strict=True):
        score = score_of_key(key, values.dtype)
        assert score == float(value)
        assert math.copysign(1, score) == 1 or score < 0


def test_keys_of_numbers_that_a_float_cannot_tell_apart():
    top = 2**63
    assert order_keys(np.array([top, top + 1, 2**64 - 1], np.uint64)).tolist() == [top, top + 1, 2**64 - 1]
    assert order_keys(np.array([-top, -top + 1, -1, 0, top - 1])).tolist() == [0, 1, top - 1, top, 2**64 - 1]


@pytest.mark.parametrize("dtype", [bool, complex, "U1"])
def test_what_has_no_order_of_numbers_is_refused(dtype):
    with pytest.raises(ValueError, match="scores must be real numbers, got"):
        order_keys(np.zeros(2, dtype))


@given(st.integers(0, 200), st.integers(0, 2**32), st.data())
def test_any_part_of_the_random_keys_is_drawn_alone(count, seed, data):
    stop = data.draw(st.integers(0, count))
    start = data.draw(st.integers(0, stop))
    whole = np.random.PCG64(seed).random_raw(count)
    assert random_keys(seed, 0, count).dtype == np.uint64
    np.testing.assert_array_equal(random_keys(seed, start, stop), whole[start:stop])
