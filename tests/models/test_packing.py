from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.models.packing import plan_packs, trimmed_lengths
from tokenclean.ragged import Ragged

LENGTHS = st.lists(st.integers(0, 40), max_size=40).map(lambda lengths: np.array(lengths, dtype=np.int64))
BUDGETS = st.integers(1, 100)


@given(lengths=LENGTHS, budget=BUDGETS)
def test_every_row_with_tokens_is_in_one_pack(lengths, budget):
    packs = plan_packs(lengths, budget)
    planned = [int(row) for pack in packs for row in pack]
    assert sorted(planned) == np.flatnonzero(lengths > 0).tolist()
    assert all(len(pack) for pack in packs)


@given(lengths=LENGTHS, budget=BUDGETS)
def test_a_pack_keeps_the_budget_unless_one_row_alone_exceeds_it(lengths, budget):
    for pack in plan_packs(lengths, budget):
        assert lengths[pack].sum() <= budget or len(pack) == 1


@given(lengths=LENGTHS, budget=BUDGETS)
def test_longest_rows_come_first_and_ties_in_row_order(lengths, budget):
    planned = [(-int(lengths[row]), int(row)) for pack in plan_packs(lengths, budget) for row in pack]
    assert planned == sorted(planned)


@given(lengths=LENGTHS, budget=BUDGETS)
def test_no_row_would_have_fitted_into_the_pack_before(lengths, budget):
    packs = plan_packs(lengths, budget)
    for before, after in pairwise(packs):
        assert lengths[before].sum() + lengths[after[0]] > budget


@given(lengths=LENGTHS, budget=BUDGETS, data=st.data())
def test_the_plan_depends_on_the_set_of_rows_alone(lengths, budget, data):
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True) if len(lengths) else st.just([]))
    plans = [plan_packs(lengths, budget, np.array(order, dtype=np.int64)) for order in (rows, sorted(rows), rows[::-1])]
    assert [p.tolist() for p in plans[0]] == [p.tolist() for p in plans[1]] == [p.tolist() for p in plans[2]]
    assert {int(r) for pack in plans[0] for r in pack} == {r for r in rows if lengths[r] > 0}


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_below_one_token_is_refused(budget):
    with pytest.raises(ValueError, match="at least 1"):
        plan_packs(np.array([3]), budget)


@given(rows=st.lists(st.lists(st.booleans(), max_size=10), max_size=12))
def test_useful_lengths_end_behind_the_last_target(rows):
    column = Ragged.from_rows(rows, dtype=bool)
    expected = [max((i + 1 for i, is_target in enumerate(row) if is_target), default=0) for row in rows]
    found = trimmed_lengths(column.values, column.offsets)
    assert found.dtype == np.int64
    assert found.tolist() == expected
