from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.errors import RunFolderError
from tokenclean.selection.score_shards import RandomRanks, StoredScores
from tokenclean.selection.streaming import CHUNK_SCORES, SAMPLED_FROM_SCORES, find_cut, mask_of, radix_cut


@given(st.integers(0, 200), st.integers(0, 2**32), st.integers(-210, 210), st.integers(-210, 210))
def test_any_part_of_the_random_ranks_is_drawn_alone(count, seed, start, stop):
    whole = np.random.PCG64(seed).random_raw(count)
    ranks = RandomRanks(count, seed)
    assert (len(ranks), ranks.dtype, ranks[:].dtype) == (count, np.uint64, np.uint64)
    np.testing.assert_array_equal(ranks[:], whole)
    np.testing.assert_array_equal(ranks[start:stop], whole[start:stop])


def test_random_ranks_are_cut_exactly():
    ranks = RandomRanks(SAMPLED_FROM_SCORES + 3 * CHUNK_SCORES, 5)
    for proportion in (1e-5, 0.6, 1.0):
        cut = find_cut([ranks], proportion)
        assert cut == radix_cut([ranks], cut.kept) == find_cut([ranks], proportion, memory_bytes=0)
        assert cut.threshold == np.sort(ranks[:])[len(ranks) - cut.kept]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(-9, 9), max_size=5))),
    st.sampled_from([np.float32, np.uint64, np.int8]),
    st.slices(15),
)
def test_each_group_has_its_scores_in_order(tmp_path_factory, added, dtype, where):
    folder = tmp_path_factory.getbasetemp() / "stored"
    expected: dict[int, list[np.ndarray]] = {}
    with StoredScores(folder / "kept.parquet") as stored:
        for group, values in added:
            scores = np.array(values, np.int64).astype(dtype)
            stored.append(group, scores)
            expected.setdefault(group, []).append(scores)
        assert stored.groups().keys() == expected.keys()
        for group, shards in stored.groups().items():
            whole = np.concatenate(expected[group])
            found = np.concatenate([np.empty(0, dtype), *(shard[:] for shard in shards)])
            np.testing.assert_array_equal(found, whole)
            for shard in shards:
                assert shard.dtype == dtype
                start, stop = where.start, where.stop
                np.testing.assert_array_equal(shard[start:stop], shard[:][start:stop])
    assert not folder.exists() or list(folder.iterdir()) == []


def test_scores_that_follow_each_other_are_one_shard(tmp_path):
    with StoredScores(tmp_path / "kept.parquet") as stored:
        for group in (0, 0, 1, 0, 0, 0):
            stored.append(group, np.zeros(3, np.float32))
        assert {group: [len(shard) for shard in shards] for group, shards in stored.groups().items()} == {
            0: [6, 9],
            1: [3],
        }


def test_a_cut_reads_stored_scores_as_it_reads_arrays(tmp_path):
    scores = np.random.default_rng(0).standard_normal(SAMPLED_FROM_SCORES + 2 * CHUNK_SCORES).astype(np.float32)
    with StoredScores(tmp_path / "kept.parquet") as stored:
        for part in np.array_split(scores, 7):
            stored.append(0, part)
            stored.append(1, part[:3])  # so that the parts of group 0 do not follow each other
        assert find_cut(stored.groups()[0], 0.3) == find_cut([scores], 0.3)


def test_the_file_is_gone_after_an_error(tmp_path):
    with pytest.raises(ArithmeticError), StoredScores(tmp_path / "new" / "kept.parquet") as stored:  # noqa: PT012
        stored.append(0, np.zeros(3))
        raise ArithmeticError
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_takes_no_more_is_told(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            StoredScores(tmp_path / "kept.parquet") as stored,
            pytest.raises(RunFolderError, match=r"cannot write scores beside .*kept\.parquet: File too large; raise"),
        ):
            stored.append(0, np.zeros(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        StoredScores(Path(tmp_path / "file" / "kept.parquet")) as stored,
        pytest.raises(RunFolderError, match="cannot write scores beside"),
    ):
        stored.append(0, np.zeros(1))


def test_a_file_that_lost_its_end_is_told(tmp_path):
    with StoredScores(tmp_path / "kept.parquet") as stored:
        stored.append(0, np.zeros(10))
        (shard,) = stored.groups()[0]
        shard.file.truncate(40)
        with pytest.raises(RunFolderError, match="ends early"):
            shard[:]


def test_neighbouring_keys_beyond_the_floats_are_told_apart():
    keys = np.uint64(2**63) + np.repeat(np.arange(4, dtype=np.uint64), 30_000)
    for proportion in (0.1, 0.3, 0.6, 0.9):
        cut = find_cut([keys], proportion)
        assert cut == radix_cut([keys], cut.kept)
        is_kept, ties_taken = mask_of(keys, cut)
        assert ties_taken == cut.ties
        highest_first = np.argsort(-(keys - np.uint64(2**63)).astype(np.int64), kind="stable")
        np.testing.assert_array_equal(np.flatnonzero(is_kept), np.sort(highest_first[: cut.kept]))
