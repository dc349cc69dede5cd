from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenclean.errors import NonFiniteError
from tokenclean.ragged import Ragged
from tokenclean.selection import kept_count, order_keys, select_tokens, streaming
from tokenclean.selection.streaming import (
    CHUNK_SCORES,
    SAMPLED_FROM_SCORES,
    cut_in_bracket,
    find_cut,
    mask_of,
    radix_cut,
)

# Few distinct values force ties; 1e-45 is the smallest denormal of float32, the last two its largest number.
TIED = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 1e-45, -1e-45, 1e-40, 3.4028235e38, -3.4028235e38]).map(np.float32)
SPREAD = st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32)
SHARDS = st.sampled_from([TIED, SPREAD]).flatmap(lambda score: st.lists(st.lists(score, max_size=12), max_size=6))
PROPORTIONS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.6, 0.7, 1.0]))


def shards_of(rows):
    return [np.array(row, dtype=np.float32) for row in rows]


def selected(shards, proportion):
    """The kept mask over all shards by ``select_tokens``, which holds everything in memory."""
    scores = np.concatenate(shards) if shards else np.empty(0, np.float32)
    is_response = Ragged.from_rows([np.ones(len(scores), dtype=bool)], dtype=bool)
    return select_tokens(is_response.with_values(scores), is_response, proportion=proportion).values


def masked(shards, cut):
    """The kept mask over all shards by ``mask_of``, shard after shard."""
    masks, ties_taken = [np.empty(0, dtype=bool)], 0
    for shard in shards:
        mask, ties_taken = mask_of(shard, cut, ties_taken)
        masks.append(mask)
    assert ties_taken == cut.ties
    return np.concatenate(masks)


@given(SHARDS, PROPORTIONS)
@example([], 1.0)
@example([[], [5.0], []], 1.0)
@example([[5.0]], 0.0)
@example([[0.0], [-0.0, 0.0]], 0.4)
def test_both_ways_keep_what_select_tokens_keeps(rows, proportion):
    shards = shards_of(rows)
    expected = selected(shards, proportion)
    cut = find_cut(iter(shards), proportion)
    assert (cut.total, cut.kept) == (len(expected), kept_count(len(expected), proportion))
    assert np.array_equal(masked(shards, cut), expected)
    if cut.kept:
        assert radix_cut(shards, cut.kept) == cut
        assert math.copysign(1, cut.threshold) == 1 or cut.threshold < 0


@given(SHARDS, PROPORTIONS)
def test_wide_scores_are_cut_by_their_keys(rows, proportion):
    """float64 with a tail that float32 would round away."""
    shards = [np.array(row, dtype=np.float64) + 2.0**-40 * (np.arange(len(row)) % 3) for row in rows]
    keys = [order_keys(shard) for shard in shards]
    cut = find_cut(keys, proportion)
    assert np.array_equal(masked(keys, cut), selected(shards, proportion))
    if cut.kept:
        assert radix_cut(keys, cut.kept) == cut


@given(SHARDS, st.data())
def test_any_bracket_gives_the_cut_or_says_that_it_cannot(rows, data):
    shards = shards_of(rows)
    scores = np.concatenate([*shards, np.zeros(1, np.float32)])
    shards.append(scores[-1:])
    kept = data.draw(st.integers(1, len(scores)))
    low, high = sorted(data.draw(st.tuples(*[st.sampled_from(scores.tolist()) | SPREAD.map(float)] * 2)))
    room = data.draw(st.integers(0, len(scores)))
    cut = cut_in_bracket(shards, kept, low, high, room)
    exact = radix_cut(shards, kept)
    fits = np.count_nonzero((scores > low) & (scores < high)) <= room
    assert cut == (exact if fits and low <= exact.threshold <= high else None)


def adversaries():
    """Score columns that defeat a sample or a float, each too long to be gathered whole."""
    random = np.random.default_rng(7)
    count = SAMPLED_FROM_SCORES + 3 * CHUNK_SCORES + 5
    normal = random.standard_normal(count, dtype=np.float32)
    # All in one bin of the upper 16 bits, and all but one far from where a bracket of equal sampled scores lies.
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
        expected = selected(shards, proportion)
        cut = find_cut(shards, proportion)
        assert cut == find_cut(shards, proportion, memory_bytes=0) == radix_cut(shards, cut.kept)
        assert np.array_equal(masked(shards, cut), expected)


def test_neither_the_seed_nor_the_room_bears_on_the_cut():
    scores = np.random.default_rng(1).standard_normal(300_000, dtype=np.float32)
    cuts = {find_cut([scores], 0.6, seed=seed, memory_bytes=room) for seed in range(10) for room in (400, 40_000)}
    assert cuts == {radix_cut([scores], 180_000)}


@pytest.mark.parametrize("proportion", [1e-4, 0.05, 0.6, 0.999])
def test_ordinary_scores_are_cut_in_one_pass(monkeypatch, proportion):
    scores = np.random.default_rng(4).standard_normal(1_000_000, dtype=np.float32)
    exact = radix_cut([scores], kept_count(len(scores), proportion))
    monkeypatch.delattr(streaming, "radix_cut")
    assert find_cut([scores], proportion, memory_bytes=4 * 150_000) == exact


def test_memory_does_not_grow_with_the_scores(tmp_path):
    np.save(tmp_path / "scores.npy", np.random.default_rng(2).standard_normal(8_000_000, dtype=np.float32))
    shards = [np.load(tmp_path / "scores.npy", mmap_mode="r")] * 3
    tracemalloc.start()
    try:
        cut = find_cut(shards, 0.6, memory_bytes=4 * 1024**2)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024**2  # the scores are 92 MiB
        tracemalloc.reset_peak()
        assert radix_cut(shards, cut.kept) == cut
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("found", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("proportion", [0.0, 0.6, 1.0])
def test_scores_that_are_no_number_are_refused_with_their_place(found, proportion):
    scores = np.zeros(SAMPLED_FROM_SCORES + CHUNK_SCORES, dtype=np.float32)
    scores[-2] = found
    shards = [scores[:5], scores]
    with pytest.raises(NonFiniteError, match=rf"shard 1: score {len(scores) - 2} of {len(scores)} is {found}"):
        find_cut(shards, proportion)
    with pytest.raises(NonFiniteError, match="shard 1"):
        radix_cut(shards, 3)


def test_shards_must_be_float32_or_keys():
    with pytest.raises(ValueError, match=r"shard 1 must hold one float32 .* found float64"):
        find_cut([np.zeros(2, np.float32), np.zeros(2)], 0.5)
    with pytest.raises(ValueError, match="shard 1 holds uint64 and shard 0 float32; scores cannot be ranked among"):
        find_cut([np.zeros(2, np.float32), np.zeros(2, np.uint64)], 0.5)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        find_cut([], 1.5)
