"""The file of decisions: torn lines, faults, several writers, a writer that is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reviewing import phrase, row, span

from tokenclean.errors import PoolError, RunFolderError
from tokenclean.review.decisions import to_line
from tokenclean.review.review_file import append_decisions, read_lines, read_review


def test_decisions_are_read_in_the_order_in_which_they_were_appended(tmp_path):
    path, of = tmp_path / "review.jsonl", row("An answer.")
    decisions = [span(of, 0, 2), phrase("answer"), span(of, 3, 9, 0.5)]
    append_decisions(path, decisions[:1])
    append_decisions(path, decisions[1:])
    found = read_review(path)
    assert list(found.decisions) == decisions
    assert found.faults == ()


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_line_that_was_cut_short_loses_nothing_else(tmp_path, cut):
    path, of = tmp_path / "review.jsonl", row("Ein Räuber 王.")
    first, second, third = span(of, 0, 3), span(of, 4, 12), span(of, 0, 12, 1.0)
    append_decisions(path, [first])
    with path.open("ab") as file:
        file.write(to_line(second).encode()[:cut])
    found = read_review(path)
    assert list(found.decisions) == [first]
    assert found.faults == (f"{path}: the last line is left out: cut short, as by a crash",)
    append_decisions(path, [third])
    found = read_review(path)
    assert list(found.decisions) == [first, third]
    assert len(found.faults) == 1
    assert f"{path}, line 2: left out" in found.faults[0]


def test_a_whole_last_line_without_an_end_counts(tmp_path):
    path, of = tmp_path / "review.jsonl", row("An answer.")
    first, second = span(of, 0, 2), span(of, 3, 5)
    path.write_text(f"{to_line(first)}\r\n\n{to_line(second)}", encoding="utf-8")
    assert list(read_review(path).decisions) == [first, second]
    append_decisions(path, [first])
    assert list(read_review(path).decisions) == [first, second, first]


def test_strange_lines_are_listed_and_the_others_count(tmp_path):
    path, good = tmp_path / "review.jsonl", span(row("An answer."), 0, 2)
    path.write_bytes(b"\xff\xfe\n{}\n" + to_line(good).encode() + b"\n\x00\x00\n")
    found = read_review(path)
    assert list(found.decisions) == [good]
    assert [fault.split(": ")[0] for fault in found.faults] == [f"{path}, line {n}" for n in (1, 2, 4)]


def test_later_lines_are_read_by_themselves(tmp_path):
    path, of = tmp_path / "review.jsonl", row("An answer.")
    append_decisions(path, [span(of, 0, 2)])
    end = read_lines(path).end
    append_decisions(path, [late := span(of, 3, 5)])
    found = read_lines(path, end)
    assert (found.start, found.lines) == (end, [to_line(late)])
    assert len(read_lines(path, 10**9).lines) == 2  # another file than the reader knew


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(PoolError, match=r"none\.jsonl: cannot be read"):
        read_review(tmp_path / "none.jsonl")
    with pytest.raises(RunFolderError, match="cannot write"):
        append_decisions(tmp_path, [phrase("x")])


def _write(path: Path, who: str, count: int) -> None:
    of = row("An answer that is long enough.", id="row:0:abc")
    for number in range(count):
        decision = span(of, 0, 2 + number % 20, who=who)
        append_decisions(path, [decision])


def test_two_writers_lose_no_line(tmp_path):
    path = tmp_path / "review.jsonl"
    writers = [
        multiprocessing.get_context("spawn").Process(target=_write, args=(path, who, 60)) for who in ("Ann", "Bob")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = read_review(path)
    assert found.faults == ()
    for who in ("Ann", "Bob"):
        assert sum(decision.signature.who == who for decision in found.decisions) == 60


KILLED = """
import sys
from pathlib import Path
from tokenclean.review.decisions import PhraseDecision, Signature
from tokenclean.review.review_file import append_decisions
number = 0
while True:
    signature = Signature(str(number), "Ann", "2026-11-30T10:00:00Z")
    append_decisions(Path(sys.argv[1]), [PhraseDecision(signature, "x" * 200_000)])
    number += 1
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_every_line_that_it_has_reported(tmp_path):
    path = tmp_path / "review.jsonl"
    for turn in range(3):
        before = len(read_review(path).decisions) if path.exists() else 0
        command = [sys.executable, "-c", KILLED, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.05 + 0.037 * turn)
            os.kill(writer.pid, signal.SIGKILL)
            reported = 1 + len(writer.stdout.read().splitlines())
        found = read_review(path)
        assert before + reported <= len(found.decisions) <= before + reported + 1
        append_decisions(path, [phrase("afterwards")])  # the lock of the dead writer holds nobody up
        assert read_review(path).decisions[-1].kind == "drop_everywhere"
    assert all(json.loads(line) for line in read_lines(path).lines)
