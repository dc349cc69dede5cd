from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tokenclean.pool.reading.json_rows import read_json
from tokenclean.pool.reading.json_values import (
    NO_COMMA,
    NOT_A_ROW,
    NOT_CLOSED,
    TEXT_BEHIND,
    TOO_DEEP,
    TOO_LONG_A_NUMBER,
)
from tokenclean.pool.reading.record import Record


def read(folder: Path, content: bytes | str) -> list[Record]:
    path = folder / "rows.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_json(path))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            b'{"prompt": "caf\xe9"}',
            "not UTF-8 (byte 0xe9 at character 16 of the line); if the file has another encoding",
        ),
        (b'{"prompt": "a" "b"}', "broken JSON: Expecting ',' delimiter (character 16 of the line)"),
        (b"\xef\xbb\xbf{}", "broken JSON: a byte order mark at the start of the line"),
        (b'{"a": ' * 100_000, TOO_DEEP),
        (b'{"a": ' + b"1" * 5000 + b"}", TOO_LONG_A_NUMBER),
        (b'"text"', f"{NOT_A_ROW}, found a text"),
        (b"[1]", f"{NOT_A_ROW}, found another list"),
        (b"null", f"{NOT_A_ROW}, found null"),
        (b"true", f"{NOT_A_ROW}, found true or false"),
        (b"3", f"{NOT_A_ROW}, found a number"),
    ],
)
def test_a_bad_line_is_a_fault_of_its_own(tmp_path, line, fault):
    records = read(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\r\n' + line + b"\n{}")
    assert [(record.number, record.line) for record in records] == [(1, 1), (3, 3), (4, 4)]
    assert [record.row for record in records] == [{"a": 1}, None, {}]
    assert records[1].fault.startswith(fault)
    assert records[1].excerpt() == line.decode("utf-8", "replace")[:200]


def test_a_lone_surrogate_is_left_to_the_formats(tmp_path):
    assert [record.row for record in read(tmp_path, '{"a": "\\ud800"}')] == [{"a": "\ud800"}]
    assert [record.row for record in read(tmp_path, '[{"a": "\\ud800"}]')] == [{"a": "\ud800"}]


def test_elements_of_an_array_know_their_line(tmp_path):
    rows = read(tmp_path, '\n [\n{"a": 1}, {"b":\n2},\n\n3\n]\n')
    assert [(row.number, row.line, row.row) for row in rows] == [(1, 3, {"a": 1}), (2, 3, {"b": 2}), (3, 6, None)]
    assert rows[2].fault == f"{NOT_A_ROW}, found a number"
    assert read(tmp_path, " [ ] ") == []


@pytest.mark.parametrize(
    ("array", "faults"),
    [
        ('[{"a": 1}, {"a" 2}, {"a": 3}]', {2: "broken JSON: Expecting ':' delimiter (character 6 of the element)"}),
        ('[{"a": 1}, {"a": oops}]', {2: "broken JSON: Expecting value (character 7 of the element)"}),
        ('[{"a": 1} {"a": 2}, {"a": 3}]', {2: NO_COMMA}),
        ('[{"a": 1}, ]', {2: "broken JSON: Expecting value (character 1 of the element)"}),
        ('[{"a": 1}', {2: NOT_CLOSED}),
        ("[", {1: f"broken JSON: Expecting value (character 1 of the element); {NOT_CLOSED}"}),
        (
            '[{"a": 1}, {"a": "tex',
            {2: f"broken JSON: Unterminated string starting at (character 7 of the element); {NOT_CLOSED}"},
        ),
        ('[{"a": 1}] [{"b": 2}, {"a": 3}]', {2: TEXT_BEHIND}),
        ('[{"a": 1}]]', {2: TEXT_BEHIND}),
        (f'[{{"a": 1}}, {{"b": {"[" * 9000}{"]" * 9000}}}, {{"a": 3}}]', {2: TOO_DEEP}),
        (f'[{{"a": 1}}, {"[" * 9000}, {{"a": 3}}]', {2: TOO_DEEP}),
        (f'[{{"a": 1}}, {{"b": "}}, {{", "c": {"1" * 5000}}}, {{"a": 3}}]', {2: TOO_LONG_A_NUMBER}),
        (f'[{"1" * 5000}, {{"a": 3}}]', {1: TOO_LONG_A_NUMBER}),
    ],
)
def test_a_broken_element_does_not_hide_the_next(tmp_path, array, faults):
    records = read(tmp_path, array)
    assert {record.number: record.fault for record in records if record.fault}.keys() == faults.keys()
    for number, fault in faults.items():
        assert records[number - 1].fault.startswith(fault)
    # An array of brackets that never close swallows what stands behind it, and says so.
    swallows = array.count("[") > array.count("]") + 1
    values = [int(value) for value in ("1", "3") if f'{{"a": {value}}}' in array and not (swallows and value == "3")]
    assert [record.row for record in records if record.row is not None] == [{"a": value} for value in values]


def test_a_bad_byte_spoils_its_own_element_only(tmp_path):
    records = read(tmp_path, b'[{"a": 1}, {"a": "\xe9"}, {"a" \xff}, {"a": 4}]')
    assert [record.row for record in records] == [{"a": 1}, None, None, {"a": 4}]
    assert records[1].fault.startswith("not UTF-8 (byte 0xe9 at character 8 of the element)")
    assert records[2].fault.startswith("not UTF-8 (byte 0xff at character 6 of the element)")
    assert records[1].excerpt().startswith('{"a": "\ufffd"}')


@pytest.mark.parametrize("length", [4070, 4080, 4090, 4096, 4100, 33_000, 300_000])
def test_elements_longer_than_the_window(tmp_path, length):
    rows = [{"a": "x" * length}, {"a": "\\" * length, "b": 12345.5}, {"c": [True] * length}]
    assert [record.row for record in read(tmp_path, json.dumps(rows))] == rows


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        *(
            ("[", unit)
            for unit in ("{,", "{},", "{,},\n", '{"a":[{},', '{"\\"},{"', '{"a":"\\"},{\\"', "[", "}\n,", '"')
        ),
        ("[" * 3000 + '"', '\\"'),
    ],
)
def test_hostile_arrays_take_linear_time(tmp_path, head, unit):
    content = head + unit * (300_000 // len(unit))
    start = time.process_time()
    records = read(tmp_path, content)
    assert records[-1].fault
    assert time.process_time() - start < 5  # seconds; a quadratic reader takes many times as long
