"""A pool surveyed and cut into shards: by its rows alone, in memory that does not grow with it."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.errors import PoolError, RunFolderError
from tokenclean.pool import (
    Conversation,
    LabelledTokens,
    RejectedRow,
    ToolCall,
    Turn,
    count_characters,
    load_sources,
    shard_stream,
    stream_sources,
    survey_pool,
)
from tokenclean.pool.shards import SHARD_ROWS
from tokenclean.recipe import source_from


def row_of(number: int, characters: int) -> Conversation:
    return Conversation(f"a:{number}:x", "a", (Turn("user", ""), Turn("assistant", "y" * characters)))


def write_pool(path: Path, count: int, bad: tuple[int, ...] = (), length: int = 1) -> Path:
    """``count`` rows of ``length`` + 2 characters, those numbered in ``bad`` broken."""
    rows = (json.dumps({"prompt": "ab", "completion": "c" * length}) for _ in range(count))
    path.write_text("".join(f"{'{' if number in bad else row}\n" for number, row in enumerate(rows, start=1)))
    return path


def sources_of(*paths: Path):
    return [source_from({"path": str(path)}) for path in paths]


@given(lengths=st.lists(st.integers(0, 30), max_size=60), limit=st.integers(1, 90))
def test_a_shard_is_cut_as_soon_as_it_holds_its_characters(lengths, limit):
    rows = [row_of(number, length) for number, length in enumerate(lengths)]
    shards = list(shard_stream(iter(rows), limit))
    assert [row for shard in shards for row in shard] == rows
    for number, shard in enumerate(shards):
        assert sum(map(count_characters, shard[:-1])) < limit
        assert number == len(shards) - 1 or sum(map(count_characters, shard)) >= limit


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=60), limit=st.integers(1, 90), cut=st.integers(0, 60))
def test_the_plan_up_to_a_row_does_not_depend_on_the_rows_behind_it(lengths, limit, cut):
    rows = [row_of(number, length) for number, length in enumerate(lengths)]
    whole, part = list(shard_stream(rows, limit)), list(shard_stream(rows[:cut], limit))
    assert part[:-1] == whole[: len(part[:-1])]
    assert not part or part[-1] == whole[len(part) - 1][: len(part[-1])]


def test_rows_of_no_text_are_cut_by_their_number():
    shards = list(shard_stream((row_of(number, 0) for number in range(SHARD_ROWS + 1)), 1))
    assert [len(shard) for shard in shards] == [SHARD_ROWS, 1]


def test_all_that_a_row_says_counts():
    call = ToolCall("name", '{"a": 1}')
    turns = (Turn("user", "1234"), Turn("assistant", "12", reasoning="123", tool_calls=(call, call)))
    assert count_characters(Conversation("a:1:x", "a", turns, tools="[{}]")) == 4 + 2 + 3 + 2 * 12 + 4
    tokens = LabelledTokens(np.arange(5), np.ones(5, bool))
    assert count_characters(Conversation("a:1:x", "a", (), "tokens", tokens=tokens)) == 20


def test_a_survey_counts_what_the_shards_hold_and_lists_what_they_do_not(tmp_path):
    files = write_pool(tmp_path / "a.jsonl", 40, bad=(3, 9)), write_pool(tmp_path / "b.jsonl", 25, bad=(1,), length=5)
    sources, listing = sources_of(*files), tmp_path / "rejected.jsonl"
    pool = load_sources(sources)
    shards = list(shard_stream(pool, 50))
    characters = sum(map(count_characters, pool))
    assert survey_pool(sources, 50, listing, 0.05).counts == (65, 3, len(shards), characters, 0)
    assert tuple(RejectedRow(**json.loads(line)) for line in listing.read_text().splitlines()) == pool.rejected


@pytest.mark.parametrize(("rows", "shards"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_a_survey_counts_no_empty_shard_behind_the_last_row(tmp_path, rows, shards):
    sources = sources_of(write_pool(tmp_path / "a.jsonl", rows))
    assert survey_pool(sources, 6, tmp_path / "rejected.jsonl", 0.0).shards == shards


def test_a_survey_of_a_sound_pool_lists_nothing(tmp_path):
    sources = sources_of(write_pool(tmp_path / "a.jsonl", 7))
    assert survey_pool(sources, 6, tmp_path / "rejected.jsonl", 0.0).counts == (7, 0, 4, 21, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_survey_stops_at_too_many_bad_rows_with_the_first_reasons_and_all_of_them_listed(tmp_path):
    path, listing = write_pool(tmp_path / "a.jsonl", 10, bad=(2, 5, 6, 8)), tmp_path / "new" / "rejected.jsonl"
    with pytest.raises(PoolError) as stopped:
        survey_pool(sources_of(path), 6, listing, 0.3)
    message = str(stopped.value)
    assert "4 of 10 rows cannot be used (40.0%), more than the 30.0% of pool.max_rejected_share" in message
    assert f"(first: {path}:2)" in message
    assert [json.loads(line)["line"] for line in listing.read_text().splitlines()] == [2, 5, 6, 8]
    assert survey_pool(sources_of(path), 6, listing, 0.4).rejected == 4


def test_a_survey_raises_as_loading_does(tmp_path):
    path = write_pool(tmp_path / "a.jsonl", 2, bad=(2,))
    listing = tmp_path / "rejected.jsonl"
    with pytest.raises(PoolError, match="two rows share the id"):
        survey_pool(sources_of(path, path), 6, listing, 1.0)
    with pytest.raises(PoolError, match="no usable row"):
        survey_pool(sources_of(write_pool(tmp_path / "b.jsonl", 2, bad=(1, 2))), 6, listing, 1.0)
    assert not listing.exists()
    with pytest.raises(RunFolderError, match="cannot write"):
        survey_pool(sources_of(path), 6, path / "rejected.jsonl", 1.0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pool(tmp_path):
    def peak_bytes(count: int) -> int:
        sources = sources_of(write_pool(tmp_path / f"{count}.jsonl", count, bad=(1,), length=20))
        gc.collect()
        tracemalloc.start()
        try:
            survey_pool(sources, 2000, tmp_path / "rejected.jsonl", 0.05)
            stream = (row for row in stream_sources(sources, is_first_reading=False) if isinstance(row, Conversation))
            assert sum(map(len, shard_stream(stream, 2000))) == count - 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(200)  # what the first reading imports and caches
    few, many = peak_bytes(2_000), peak_bytes(20_000)
    assert many < few + 100_000
