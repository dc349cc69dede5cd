from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.errors import RunFolderError
from tokenclean.selection.streamed_ranking import CHUNK_KEYS, StoredKeys, find_cut


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 9), max_size=5))),
    st.sampled_from([np.uint32, np.uint64]),
)
def test_each_group_has_its_keys_in_order(tmp_path_factory, added, dtype):
    folder = tmp_path_factory.getbasetemp() / "stored"
    expected: dict[int, list[np.ndarray]] = {}
    with StoredKeys(folder / "kept.parquet") as stored:
        for group, values in added:
            keys = np.array(values, dtype)
            stored.append(group, keys)
            expected.setdefault(group, []).append(keys)
        assert stored.groups == list(expected)
        for group in stored.groups:
            found = np.concatenate([np.empty(0, dtype), *stored.chunks(group)])
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, np.concatenate(expected[group]))
    assert not folder.exists() or list(folder.iterdir()) == []


def test_keys_that_follow_each_other_are_read_together(tmp_path):
    with StoredKeys(tmp_path / "kept.parquet") as stored:
        for group in (0, 0, 1, 0, 0, 0):
            stored.append(group, np.zeros(3, np.uint32))
        assert [[len(chunk) for chunk in stored.chunks(group)] for group in stored.groups] == [[6, 9], [3]]


def test_a_cut_reads_stored_keys_as_it_reads_arrays(tmp_path):
    keys = np.random.default_rng(0).integers(0, 2**32, 3 * CHUNK_KEYS, dtype=np.uint32)
    with StoredKeys(tmp_path / "kept.parquet") as stored:
        for part in np.array_split(keys, 7):
            stored.append(0, part)
            stored.append(1, part[:3])  # so that the parts of group 0 do not follow each other
        assert find_cut(partial(stored.chunks, 0), 0.3, bits=32) == find_cut(lambda: [keys], 0.3, bits=32)


def test_the_file_is_gone_after_an_error(tmp_path):
    with pytest.raises(ArithmeticError), StoredKeys(tmp_path / "new" / "kept.parquet") as stored:  # noqa: PT012
        stored.append(0, np.zeros(3, np.uint64))
        raise ArithmeticError
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_takes_no_more_is_told(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            StoredKeys(tmp_path / "kept.parquet") as stored,
            pytest.raises(RunFolderError, match=r"cannot write scores beside .*kept\.parquet: File too large; raise"),
        ):
            stored.append(0, np.zeros(10_000, np.uint64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        StoredKeys(Path(tmp_path / "file" / "kept.parquet")) as stored,
        pytest.raises(RunFolderError, match="cannot write scores beside"),
    ):
        stored.append(0, np.zeros(1, np.uint64))


def test_a_file_that_lost_its_end_is_told(tmp_path):
    with StoredKeys(tmp_path / "kept.parquet") as stored:
        stored.append(0, np.zeros(10, np.uint64))
        stored._file.truncate(40)
        with pytest.raises(RunFolderError, match="ends early"):
            list(stored.chunks(0))
