from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.errors import RecipeError
from tokenclean.pool.recipe_pool import split_rows
from tokenclean.pool.splits import heldout_rows, stratified_splits
from tokenclean.recipe import recipe_from

quick = settings(max_examples=60, deadline=None)
source_lists = st.lists(st.sampled_from(["flan", "dolly", "oasst", "Grüße"]), min_size=1, max_size=60)
seeds = st.integers(0, 2**64)


def test_contiguous_splits_cut_the_file_in_order():
    recipe = recipe_from(
        {
            "pool": {"sources": [{"path": "a"}]},
            "model": {"base": "m"},
            "cleaning": {"splits": 3, "split_kind": "contiguous"},
        }
    )
    parts = split_rows(("a",) * 7, recipe)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4], [5, 6]]
    assert all(part.dtype == np.int64 for part in parts)
    with pytest.raises(RecipeError, match="3 splits of 2 training rows"):
        split_rows(("a", "b"), recipe)


@quick
@given(source_lists, seeds, st.data())
def test_stratified_splits_are_balanced_parts(sources, seed, data):
    splits = data.draw(st.integers(1, len(sources)))
    parts = stratified_splits(sources, splits, seed)
    assert len(parts) == splits
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(sources)))
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for source in set(sources):
        counts = [sum(sources[row] == source for row in part) for part in parts]
        assert max(counts) - min(counts) <= 1


@quick
@given(source_lists, seeds)
def test_stratified_splits_are_repeatable(sources, seed):
    first, second = (stratified_splits(sources, 1 + len(sources) // 3, seed) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_stratified_splits_depend_on_the_seed():
    first, second = (stratified_splits(["a"] * 50, 2, seed) for seed in (1, 2))
    assert not np.array_equal(first[0], second[0])


def test_sources_are_shuffled_apart():
    alone = stratified_splits(["a"] * 12, 3, seed=7)
    # Six rows of another source fill whole rounds of dealing, before or after those of "a".
    for other in ("b", "A"):
        together = stratified_splits(["a"] * 12 + [other] * 6, 3, seed=7)
        for part, part_alone in zip(together, alone, strict=True):
            np.testing.assert_array_equal(part[part < 12], part_alone)


def test_sources_of_equal_size_get_different_orders():
    part = stratified_splits(["a"] * 40 + ["b"] * 40, 2, seed=0)[0]
    assert part[part < 40].tolist() != (part[part >= 40] - 40).tolist()


@quick
@given(source_lists, seeds, st.data())
def test_heldout_rows_follow_the_shares(sources, seed, data):
    count = data.draw(st.integers(0, len(sources) - 1))
    rows = heldout_rows(sources, count, seed)
    assert rows.shape == (count,)
    assert rows.dtype == np.int64
    assert np.all(np.diff(rows) > 0)
    assert set(rows.tolist()) <= set(range(len(sources)))
    np.testing.assert_array_equal(rows, heldout_rows(sources, count, seed))
    held = Counter(sources[row] for row in rows)
    for source, size in Counter(sources).items():
        assert abs(held[source] - count * size / len(sources)) < 1


def test_heldout_rows_largest_remainders_by_hand():
    # Shares of 4: a 2.0, b 1.33, c 0.67; the one row left goes to c.
    sources = ["a"] * 6 + ["b"] * 4 + ["c"] * 2
    assert Counter(sources[row] for row in heldout_rows(sources, 4, seed=0)) == {"a": 2, "b": 1, "c": 1}
    # Equal remainders go by name, wherever the source stands in the file.
    assert heldout_rows(["b", "a"], 1, seed=0).tolist() == [1]


@pytest.mark.parametrize("seed", [0, 1])
def test_heldout_rows_depend_on_the_seed_alone(seed):
    chosen = [heldout_rows(["a"] * 100, 10, seed=s).tolist() for s in (seed, seed, seed + 1)]
    assert chosen[0] == chosen[1] != chosen[2]
