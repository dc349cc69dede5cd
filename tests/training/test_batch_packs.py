from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.ragged import Ragged
from tokenclean.training.batch_packs import batch_packs, selected_lengths

WEIGHT = st.just(0.0) | st.floats(2**-10, 2**10) | st.floats(-(2**10), -(2**-10))


@st.composite
def batches(draw) -> tuple[Ragged, Ragged, list[int]]:
    """Ids (all different, so that a token tells its place), weights, and the rows of a batch."""
    rows = draw(st.lists(st.lists(WEIGHT, max_size=12), min_size=1, max_size=8))
    weights = Ragged.from_rows([[0.0, *row[1:]] if row else [] for row in rows], np.float64)
    order = draw(st.permutations(range(len(rows))))
    return weights.with_values(np.arange(len(weights.values))), weights, order[: draw(st.integers(1, len(rows)))]


PACK_TOKENS = st.sampled_from([1, 5, 17, 1000])


def coefficients_of(packs) -> dict[int, float]:
    """Coefficient of each token, by its id."""
    pairs = [(int(i), float(c)) for p in packs for i, c in zip(p.input_ids[p.positions], p.coefficients, strict=True)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def selected(ids: Ragged, weights: Ragged, row: int) -> list[tuple[int, float]]:
    return [(int(i), float(w)) for i, w in zip(ids[row], weights[row], strict=True) if w != 0]


@given(batch=batches(), pack_tokens=PACK_TOKENS)
def test_token_coefficients_are_shares_of_all_weight(batch, pack_tokens):
    ids, weights, rows = batch
    packs = batch_packs(ids, weights, rows, pack_tokens=pack_tokens, loss_normalisation="token")
    pairs = [pair for row in rows for pair in selected(ids, weights, row)]
    total = sum(abs(weight) for _, weight in pairs)
    assert coefficients_of(packs) == pytest.approx({i: w / total for i, w in pairs}, rel=1e-6)
    if pairs:
        assert sum(float(np.abs(p.coefficients).sum(dtype=np.float64)) for p in packs) == pytest.approx(1, abs=1e-6)


@given(batch=batches(), pack_tokens=PACK_TOKENS)
def test_sample_coefficients_are_means_of_rows(batch, pack_tokens):
    ids, weights, rows = batch
    packs = batch_packs(ids, weights, rows, pack_tokens=pack_tokens, loss_normalisation="sample")
    by_row = [pairs for row in rows if (pairs := selected(ids, weights, row))]
    expected = {i: w / sum(abs(v) for _, v in pairs) / len(by_row) for pairs in by_row for i, w in pairs}
    assert coefficients_of(packs) == pytest.approx(expected, rel=1e-6)
    if by_row:
        assert sum(float(np.abs(p.coefficients).sum(dtype=np.float64)) for p in packs) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("loss_normalisation", ["token", "sample"])
@given(batch=batches(), pack_tokens=PACK_TOKENS)
def test_packs_hold_each_row_with_a_selection_up_to_its_last_selected_token(loss_normalisation, batch, pack_tokens):
    ids, weights, rows = batch
    packs = batch_packs(ids, weights, rows, pack_tokens=pack_tokens, loss_normalisation=loss_normalisation)
    found = []
    for pack in packs:
        assert pack.input_ids.dtype == np.int64
        assert pack.coefficients.dtype == np.float32
        assert sum(pack.lengths) == len(pack.input_ids)
        assert sum(pack.lengths) <= pack_tokens or len(pack.lengths) == 1
        assert np.all(np.diff(pack.positions) > 0)
        owners = np.array(pack.rows)[pack.row_of_position]
        starts_in_pool = ids.offsets[owners]
        tokens = pack.input_ids[pack.positions]
        assert np.all((starts_in_pool <= tokens) & (tokens < ids.offsets[owners + 1]))
        starts = np.cumsum([0, *pack.lengths[:-1]])
        assert not set(pack.positions) & set(starts)
        found += [part.tolist() for part in np.split(pack.input_ids, starts[1:])]
    expected = [ids[row][: np.flatnonzero(weights[row])[-1] + 1].tolist() for row in rows if weights[row].any()]
    assert sorted(found) == sorted(expected)


def test_a_worked_example():
    ids = Ragged.from_rows([[10, 11, 12, 13], [20, 21, 22], [30, 31], [40, 41, 42]], np.int64)
    weights = Ragged.from_rows([[0, 1, 0, 0], [0, 0, 0], [0, 3], [0, 0, 9]], np.float32)
    token, sample = (
        batch_packs(ids, weights, [0, 1, 2], pack_tokens=100, loss_normalisation=n) for n in ("token", "sample")
    )
    assert len(token) == len(sample) == 1
    assert token[0].input_ids.tolist() == sample[0].input_ids.tolist() == [10, 11, 30, 31]
    assert token[0].lengths == (2, 2)
    assert token[0].rows == (0, 2)
    assert token[0].row_of_position.tolist() == [0, 1]
    assert token[0].positions.tolist() == [1, 3]
    assert token[0].coefficients.tolist() == [0.25, 0.75]
    assert sample[0].coefficients.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("loss_normalisation", ["token", "sample"])
def test_a_batch_without_selection_gives_no_packs(loss_normalisation):
    weights = Ragged.from_rows([[0, 0], [], [0]], np.float32)
    ids = weights.with_values(np.arange(3))
    assert batch_packs(ids, weights, [0, 1, 2], pack_tokens=8, loss_normalisation=loss_normalisation) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, float("nan")], "must be finite"),
        ([0, -float("inf")], "must be finite"),
        ([1, 1], "its weight must be 0"),
        ([-1, 1], "its weight must be 0"),
    ],
)
def test_invalid_weights_are_refused(row, message):
    weights = Ragged.from_rows([[0, 1], [], row], np.float64)
    ids = weights.with_values(np.arange(len(weights.values)))
    with pytest.raises(ValueError, match=message):
        selected_lengths(weights)
    with pytest.raises(ValueError, match=message):
        batch_packs(ids, weights, [0, 2], pack_tokens=8, loss_normalisation="token")
