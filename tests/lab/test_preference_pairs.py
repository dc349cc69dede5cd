"""Pairs of a clean and a noisy answer: which rows are pairs, and that none of them is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenclean.errors import PoolError
from tokenclean.lab.pairs import Pairs, read_pairs
from tokenclean.pool import load_pool

ROWS: list[dict[str, Any]] = [
    {"prompt": "A?", "response": "It is Lyon.", "noise": [[6, 10]], "clean": "It is Paris."},
    {"prompt": "B?", "response": "It is Rome.", "noise": [], "clean": "It is, well, Rome."},  # a change of style
    {"prompt": "C?", "response": "It is Oslo.", "clean": "It is Bern."},
    {"prompt": "D?", "response": "It is Kiel.", "noise": [[6, 10]]},  # nobody knows what it should be
    {"prompt": "E?", "response": "It is Linz.", "noise": [[6, 10]], "clean": "It is Graz."},
    {"prompt": "F?", "response": "It is Metz."},
]


def read(tmp_path: Path, *trained: tuple[str, str], rows: list[dict[str, Any]] = ROWS) -> tuple[Pairs, str]:
    file, pool = tmp_path / "pairs.jsonl", tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in (("X?", "x"), *trained)
    ]
    pool.write_text("".join(json.dumps(row) + "\n" for row in chats))
    notes: list[str] = []
    found = read_pairs(str(file), load_pool(str(pool)).conversations, notes.append)
    (note,) = notes
    return found, note


def answers(pairs: Pairs) -> list[tuple[str, str]]:
    return [(n.turns[-1].content, c.turns[-1].content) for n, c in zip(pairs.noisy, pairs.clean, strict=True)]


def test_rows_in_two_versions(tmp_path: Path) -> None:
    pairs, note = read(tmp_path)
    assert answers(pairs) == [
        ("It is Lyon.", "It is Paris."),
        ("It is Oslo.", "It is Bern."),
        ("It is Linz.", "It is Graz."),
    ]
    assert pairs.rows.tolist() == [0, 2, 4]
    assert note.startswith("evaluation.pairs: 3 pairs of a clean and a noisy version in 5 rows; 1 rows set aside")
    assert "pairs.jsonl:6: truth missing" in note


@pytest.mark.parametrize("answer", ["It is Lyon.", "It is Paris."])
def test_what_is_trained_in_either_version_is_left_out(tmp_path: Path, answer: str) -> None:
    pairs, note = read(tmp_path, ("A?", answer))
    assert pairs.rows.tolist() == [2, 4]
    assert "2 pairs of a clean and a noisy version in 5 rows, 1 more are among the rows trained on" in note
    other, _ = read(tmp_path, ("another question?", answer))
    assert other.rows.tolist() == [0, 2, 4]


def test_too_few_pairs(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"1 pairs .* 2 more are among the rows trained on.*needs at least 2"):
        read(tmp_path, ("A?", "It is Lyon."), ("C?", "It is Bern."))
    with pytest.raises(PoolError, match="0 pairs"):
        read(tmp_path, rows=ROWS[1:2])
    with pytest.raises(PoolError, match="no row states where its noise is"):
        read(tmp_path, rows=ROWS[5:])
