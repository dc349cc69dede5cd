"""Rows that state their noise: what is read, what is set aside and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_plant import pool_of

from tokenclean.errors import PoolError
from tokenclean.lab import NoiseSettings, plant
from tokenclean.lab.truth import TruthPool, changed_spans, read_truth, truth_of_planted
from tokenclean.recipe import source_from

CHAT = [
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "In Rome."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "In 1999."},
]


def read(tmp_path: Path, *rows: dict[str, Any]) -> TruthPool:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_truth([source_from({"path": str(file)})])


def marked(truth: TruthPool) -> list[tuple[int, int, str, str]]:
    """(row, turn, text of the span, kind)."""
    return [(s.row, s.turn, truth.pool[s.row].turns[s.turn].content[s.start : s.end], s.kind) for s in truth.spans]


def test_prompt_response_noise_and_clean(tmp_path: Path) -> None:
    truth = read(
        tmp_path,
        {"id": "a", "split": "pool", "prompt": "Capital?", "response": "It is Lyon.", "noise": [[6, 10, "value"]]},
        {"id": "b", "prompt": "Capital?", "response": "It is Lyon.", "noise": [[6, 10]], "clean": "It is Paris."},
        {"id": "c", "prompt": "Capital?", "response": "It is Paris.", "noise": [], "clean": None},
    )
    assert marked(truth) == [(0, 1, "Lyon", "value"), (1, 1, "Lyon", "noise")]
    assert [[turn.content for turn in row.turns] for row in truth.pool][2] == ["Capital?", "It is Paris."]
    none, corrected, same = truth.clean
    assert none is None
    assert corrected is not None
    assert corrected.turns[1].content == "It is Paris."
    assert same == truth.pool[2]
    assert truth.pool[0].unread == ("split",)


def test_chats_name_the_turn(tmp_path: Path) -> None:
    spans = [{"turn": 3, "start": 3, "end": 7, "kind": "number"}, {"turn": 1, "start": 3, "end": 7}, [0, 2, "word"]]
    truth = read(tmp_path, {"messages": CHAT, "noise": spans})
    assert marked(truth) == [(0, 1, "Rome", "noise"), (0, 3, "In", "word"), (0, 3, "1999", "number")]


def test_without_spans_the_words_that_differ_from_the_clean_answer_are_noise(tmp_path: Path) -> None:
    truth = read(tmp_path, {"messages": CHAT, "clean": "In 2001."}, {"messages": CHAT, "clean": "In May 1999."})
    assert marked(truth) == [(0, 3, "1999", "differs")]


@pytest.mark.parametrize(
    ("text", "clean", "parts"),
    [
        ("a b c", "a x c", ["b"]),
        ("a b c", "a c", ["b"]),
        ("a c", "a b c", []),
        ("same", "same", []),
        ("all new words", "nothing else", ["all new words"]),
        ("wait, what", "wait what", [","]),
        ("a  b", "a b", []),
    ],
)
def test_changed_spans(text: str, clean: str, parts: list[str]) -> None:
    assert [text[start:end] for start, end in changed_spans(text, clean)] == parts


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        ({}, "truth missing: expected the key noise"),
        ({"noise": None}, "truth missing"),
        ({"noise": "3-7"}, "noise: expected a list of"),
        (
            {"noise": [[3, 7], [5, 9]]},
            r"noise\[1\]: expected \[start, end, kind\].*<= 8 \(characters of turn 3\).*5, 9",
        ),
        ({"noise": [[3, 3]]}, r"noise\[0\]"),
        ({"noise": [[-1, 3]]}, r"noise\[0\]"),
        ({"noise": [["3", 7]]}, r"noise\[0\]"),
        ({"noise": [[True, 7]]}, r"noise\[0\]"),
        ({"noise": [[3, 7, 1]]}, r"noise\[0\]"),
        ({"noise": [3, 7]}, r"noise\[0\]"),
        ({"noise": [{"start": 0, "end": 2, "turn": 0}]}, r"noise\[0\]"),
        ({"noise": [{"start": 0, "end": 2, "turn": "last"}]}, r"noise\[0\]"),
        ({"noise": [], "clean": 7}, "clean: expected the last answer"),
    ],
)
def test_rows_whose_truth_is_wrong_are_set_aside(tmp_path: Path, truth: dict[str, Any], reason: str) -> None:
    good = {"messages": CHAT, "noise": [[0, 2]]}
    found = read(tmp_path, good, {"messages": CHAT, **truth}, good, {"messages": "no chat"})
    assert marked(found) == [(0, 3, "In", "noise"), (1, 3, "In", "noise")]
    [first, second] = sorted(found.pool.rejected, key=lambda row: row.line)
    assert (first.line, second.line) == (2, 4)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(first.reason)


def test_a_file_without_truth_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"no row states where its noise is.*rows.jsonl:1.*--plant"):
        read(tmp_path, {"messages": CHAT}, {"messages": CHAT})


def test_rows_are_taken_with_their_truth(tmp_path: Path) -> None:
    rows = [{"messages": CHAT, "noise": [[start, start + 1]] * (start > 0)} for start in range(4)]
    truth = read(tmp_path, *rows).take([3, 0, 2])
    assert [(s.row, s.start) for s in truth.spans] == [(0, 3), (2, 2)]
    assert [clean is None for clean in truth.clean] == [True, False, True]
    assert len(truth) == 3


def test_planted_noise_has_the_original_as_its_clean_version() -> None:
    pool = pool_of("river stone", "cloud amber")
    planted = plant(pool, {"corrupted": NoiseSettings(0.5, 1.0)}, seed=0)
    truth = truth_of_planted(pool, planted)
    assert truth.clean == pool.conversations
    assert truth.spans == planted.spans
    assert truth.pool is planted.pool
