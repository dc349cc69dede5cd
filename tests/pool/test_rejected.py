from __future__ import annotations

import json

import pytest

from tokenclean.errors import PoolError, RunFolderError
from tokenclean.pool import RejectedRow, check_rejected_share, join_rejected, write_rejected

ROWS = [RejectedRow("a.jsonl", line, f"reason {line}", "text") for line in range(1, 6)]


def test_a_share_at_the_limit_passes_and_writes_nothing(tmp_path):
    check_rejected_share(ROWS, 100, 0.05, tmp_path / "rejected.jsonl")
    check_rejected_share([], 0, 0.0, tmp_path / "rejected.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_larger_share_stops_with_the_first_reasons_and_the_whole_list(tmp_path):
    listing = tmp_path / "rejected.jsonl"
    with pytest.raises(PoolError) as stopped:
        check_rejected_share(ROWS, 99, 0.05, listing)
    assert "5 of 99 rows cannot be used (5.1%), more than the 5.0% of pool.max_rejected_share" in str(stopped.value)
    assert "a.jsonl:1: reason 1" in str(stopped.value)
    assert [json.loads(line) for line in listing.read_text().splitlines()] == [
        {"file": "a.jsonl", "line": line, "reason": f"reason {line}", "text": "text"} for line in range(1, 6)
    ]


def test_listings_are_joined_in_their_order_also_onto_one_of_them(tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    write_rejected([*ROWS[:2], RejectedRow("caf\udce9", 1, "a\u2028b")], first)
    write_rejected(ROWS[2:], second)
    expected = first.read_bytes() + second.read_bytes()
    join_rejected([first, second], first)
    assert first.read_bytes() == expected
    with pytest.raises(RunFolderError, match="No such file"):
        join_rejected([first, tmp_path / "none.jsonl"], second)
    assert len(second.read_text().splitlines()) == 3
    assert len(list(tmp_path.iterdir())) == 2
