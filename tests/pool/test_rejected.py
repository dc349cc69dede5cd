from __future__ import annotations

import pytest

from tokenclean.errors import RunFolderError
from tokenclean.pool import RejectedRow, join_rejected, read_rejected, write_rejected

ROWS = [RejectedRow("a.jsonl", line, f"reason {line}", "text") for line in range(1, 6)]


def test_listings_are_joined_in_their_order_also_onto_one_of_them(tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    write_rejected([*ROWS[:2], RejectedRow("caf\udce9", 1, "a\u2028b")], first)
    write_rejected(ROWS[2:], second)
    assert list(read_rejected(second)) == ROWS[2:]
    expected = first.read_bytes() + second.read_bytes()
    join_rejected([first, second], first)
    assert first.read_bytes() == expected
    with pytest.raises(RunFolderError, match="No such file"):
        join_rejected([first, tmp_path / "none.jsonl"], second)
    assert len(second.read_text().splitlines()) == 3
    assert len(list(tmp_path.iterdir())) == 2
