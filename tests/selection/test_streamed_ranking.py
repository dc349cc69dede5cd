from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenclean.ragged import Ragged
from tokenclean.selection import kept_count, order_keys, select_tokens
from tokenclean.selection.sortable_keys import random_keys
from tokenclean.selection.streamed_ranking import CHUNK_KEYS, find_cut, mask_of

# Few distinct values force ties; 1e-45 is the smallest denormal of float32, the last two its largest number.
TIED = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 1e-45, -1e-45, 1e-40, 3.4028235e38, -3.4028235e38]).map(np.float32)
SPREAD = st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32)
SHARDS = st.sampled_from([TIED, SPREAD]).flatmap(lambda score: st.lists(st.lists(score, max_size=12), max_size=6))
PROPORTIONS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.6, 0.7, 1.0]))


def selected(shards, proportion):
    """The kept mask over all shards by ``select_tokens``, which holds everything in memory."""
    scores = np.concatenate(shards) if shards else np.empty(0, np.float32)
    is_response = Ragged.from_rows([np.ones(len(scores), dtype=bool)], dtype=bool)
    return select_tokens(is_response.with_values(scores), is_response, proportion=proportion).values


def masked(shards, proportion):
    """The kept mask over all shards by their cut, shard after shard."""
    keys = [order_keys(shard) for shard in shards]
    cut = find_cut(lambda: keys, proportion, bits=8 * keys[0].itemsize if keys else 32)
    total = sum(map(len, keys))
    assert (cut.total, cut.kept) == (total, kept_count(total, proportion))
    masks, ties_taken = [np.empty(0, dtype=bool)], 0
    for part in keys:
        mask, ties_taken = mask_of(part, cut, ties_taken)
        masks.append(mask)
    assert ties_taken == cut.ties
    return np.concatenate(masks)


@given(SHARDS, PROPORTIONS)
@example([], 1.0)
@example([[], [5.0], []], 1.0)
@example([[5.0]], 0.0)
@example([[0.0], [-0.0, 0.0]], 0.4)
def test_the_cut_keeps_what_select_tokens_keeps(rows, proportion):
    shards = [np.array(row, dtype=np.float32) for row in rows]
    assert np.array_equal(masked(shards, proportion), selected(shards, proportion))


@given(SHARDS, PROPORTIONS)
def test_wide_scores_are_cut_in_their_own_dtype(rows, proportion):
    """float64 with a tail that float32 would round away."""
    shards = [np.array(row, dtype=np.float64) + 2.0**-40 * (np.arange(len(row)) % 3) for row in rows]
    assert np.array_equal(masked(shards, proportion), selected(shards, proportion))


def adversaries():
    """Score columns whose keys share their first or their last bits."""
    random = np.random.default_rng(7)
    count = 3 * CHUNK_KEYS + 5
    normal = random.standard_normal(count, dtype=np.float32)
    near_one = (1 + random.integers(0, 300, count) * 2.0**-23).astype(np.float32)
    outlier = np.zeros(count, dtype=np.float32)
    outlier[count // 2] = 1
    return {
        "normal": normal,
        "all equal": np.full(count, 2.5, dtype=np.float32),
        "rising": np.sort(normal),
        "falling": np.sort(normal)[::-1],
        "two values": np.where(normal > 0.3, np.float32(1), np.float32(-1)),
        "signed zeros": np.where(normal > 0, np.float32(0.0), np.float32(-0.0)),
        "denormals": (random.integers(-4000, 4000, count) * 2.0**-149).astype(np.float32),
        "one bin": near_one,
        "an outlier": outlier,
        "all magnitudes": np.exp2(random.uniform(-140, 127, count)).astype(np.float32) * np.sign(normal),
    }


SPLITS = {
    "one huge shard": lambda scores: [scores],
    "empty shards": lambda scores: [scores[:0], scores[:1], scores[1:1], scores[1:70_000], scores[70_000:], scores[:0]],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("scores", adversaries().values(), ids=adversaries().keys())
def test_adversarial_scores_are_cut_exactly(scores, split):
    shards = split(scores)
    for proportion in (1.5 / len(scores), 0.3, 0.6, 1.0):
        assert np.array_equal(masked(shards, proportion), selected(shards, proportion))


def test_random_keys_are_cut_exactly():
    keys = random_keys(5, 0, 2 * CHUNK_KEYS)
    for proportion in (1e-5, 0.6, 1.0):
        cut = find_cut(lambda: np.array_split(keys, 3), proportion, bits=64)
        assert cut.threshold == np.sort(keys)[len(keys) - cut.kept]


def test_neighbouring_keys_beyond_the_floats_are_told_apart():
    keys = np.uint64(2**63) + np.repeat(np.arange(4, dtype=np.uint64), 30_000)
    highest_first = np.argsort(-(keys - np.uint64(2**63)).astype(np.int64), kind="stable")
    for proportion in (0.1, 0.3, 0.6, 0.9):
        assert np.array_equal(
            np.flatnonzero(masked([keys], proportion)), np.sort(highest_first[: int(120_000 * proportion)])
        )


def test_memory_does_not_grow_with_the_keys():
    keys = np.random.default_rng(2).integers(0, 2**32, 8_000_000, dtype=np.uint32)
    tracemalloc.start()
    try:
        chunks = [keys[at : at + CHUNK_KEYS] for at in range(0, len(keys), CHUNK_KEYS)]
        assert find_cut(lambda: chunks * 3, 0.6, bits=32).total == 24_000_000
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024**2  # the keys are 31 MiB
    finally:
        tracemalloc.stop()


def test_a_proportion_is_a_share():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        find_cut(lambda: [], 1.5, bits=32)
