from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from random import Random

import pytest

from tokenclean.errors import PoolError
from tokenclean.pool.reading import Record, read_records
from tokenclean.pool.reading.json_values import NOT_CLOSED

A, B, C = ({"prompt": name, "completion": "x {\n}, {"} for name in "ABC")
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": []}]
TALK = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]


def read(folder: Path, content: str | bytes, name: str = "rows.json", **options) -> list[Record]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_records(path, **options))


def rows_of(*args, **options) -> list:
    return [record.row for record in read(*args, **options)]


def refusal(*args, **options) -> str:
    with pytest.raises(PoolError) as caught:
        read(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("indent", [0, 1, 4, "\t"])
@pytest.mark.parametrize("between", ["\n", "\r\n\r\n", "", " ", ",\n"])
def test_objects_over_several_lines(tmp_path, name, indent, between):
    rows = [A, {"messages": CHAT, "meta": [{}, {"b": []}]}, C]
    texts = [json.dumps(row, indent=indent) for row in rows]
    records = read(tmp_path, between.join(texts), name)
    assert [record.row for record in records] == rows
    lines = [1 + sum((text + between).count("\n") for text in texts[:index]) for index in range(3)]
    assert [(record.number, record.line) for record in records] == list(enumerate(lines, start=1))
    assert rows_of(tmp_path, texts[1], name) == [rows[1]]


@pytest.mark.parametrize("indent", [0, 2])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"prompt": "B"', '"prompt" "B"'),
        ('"prompt": "B"', '"prompt": "B'),
        ('"prompt": "B"', '"prompt": oops'),
        ('"B"', "NULL"),
    ],
)
def test_a_broken_object_costs_itself_only(tmp_path, indent, old, new):
    texts = [json.dumps(row, indent=indent) for row in (A, B, C)]
    assert old in texts[1]
    records = read(tmp_path, "\n".join([texts[0], texts[1].replace(old, new), texts[2]]))
    assert [record.row for record in records] == [A, None, C]
    assert records[1].fault.startswith("broken JSON: ")
    assert "of the value)" in records[1].fault
    assert [record.line for record in records] == [1, 5, 9]
    # Nor does it where it comes first or last.
    assert rows_of(tmp_path, "\n".join([texts[1].replace(old, new), texts[2], texts[0]])) == [None, C, A]
    assert rows_of(tmp_path, "\n".join([texts[2], texts[1].replace(old, new)])) == [C, None]


def test_an_object_cut_off_does_not_swallow_the_next(tmp_path):
    texts = [json.dumps(row, indent=1) for row in (A, B, C)]
    assert rows_of(tmp_path, "\n".join([texts[0], '{\n "a": ', texts[1], texts[2]])) == [A, None, B, C]
    assert rows_of(tmp_path, "\n".join([texts[0], texts[1][:-1], texts[2], texts[1]])) == [A, None, C, B]
    assert rows_of(tmp_path, texts[0] + "\noops\n" + texts[1]) == [A, None, B]
    assert rows_of(tmp_path, texts[0][1:] + "\n" + texts[1]) == [None, B]
    assert rows_of(tmp_path, texts[0].encode() + b'\n{\n "a": "\xff"\n}\n' + texts[1].encode()) == [A, None, B]


def test_broken_json_lines_stay_one_fault_a_line(tmp_path):
    for first in ('{"a": 1', '{"a":', "{", '{"a": "b', "oops", "{ oops"):
        assert rows_of(tmp_path, f'{first}\n{{"a": 2}}\n{{"a"\n{{"a": 3}}') == [None, {"a": 2}, None, {"a": 3}]
    assert [record.line for record in read(tmp_path, '{"a"\n\n{"a\n{"a": 3}\n')] == [1, 3, 4]
    assert rows_of(tmp_path, 'no JSON\nat all\n{"a": 1}') == [None, None, {"a": 1}]


@pytest.mark.parametrize("indent", [None, 0, 1])
def test_rows_that_an_object_wraps(tmp_path, indent):
    wrapper = {"version": 1.5, "about": {"data": [1]}, "tags": ["a"], "data": [A, {"messages": CHAT}], "more": []}
    records = read(tmp_path, json.dumps(wrapper, indent=indent))
    assert [record.row for record in records] == wrapper["data"]
    assert {record.wrapper_keys for record in records} == {("version", "about", "tags", "more")}
    assert [record.number for record in records] == [1, 2]
    if indent:
        lines = json.dumps(wrapper, indent=indent).split("\n")
        assert [lines[record.line - 1] for record in records] == ["  {", "  {"]
    assert rows_of(tmp_path, json.dumps({"conversations": [TALK, TALK]}, indent=indent)) == [
        {"conversations": TALK},
        {"conversations": TALK},
    ]
    assert rows_of(tmp_path, json.dumps({"rows": [A, None, [A], CHAT]})) == [A, None, None, {"messages": CHAT}]


def test_of_several_lists_one_is_chosen(tmp_path):
    text = json.dumps({"train": [A, B], "test": [C], "seed": 3}, indent=1)
    message = "(an object with lists of rows): name the split to read; it has train, test"
    assert refusal(tmp_path, text).endswith(message)
    assert rows_of(tmp_path, text, split="train") == [A, B]
    (record,) = read(tmp_path, text, "rows.jsonl", split="test")
    assert (record.row, record.wrapper_keys) == (C, ("seed",))
    assert refusal(tmp_path, text, split="tran").endswith(
        "has no split 'tran'; it has train, test; did you mean 'train'?"
    )
    one = json.dumps({"train": [A]})
    assert rows_of(tmp_path, one, "rows.jsonl", split="train") == [A]
    assert "has no split 'test'; it has train" in refusal(tmp_path, one, split="test")


@pytest.mark.parametrize("content", ["{}", json.dumps([A]), json.dumps(A, indent=1), "{}\n{}", '{"messages": []}'])
def test_a_split_needs_lists(tmp_path, content):
    assert "has no splits, so that the split 'train' cannot be read" in refusal(tmp_path, content, split="train")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"dialogue": CHAT, "documents": [{"title": "a"}]},
        {"talk": TALK},
        {"conversations": [{"who": "a", "said": "b"}]},
        {"prompt": "a", "completion": "b", "sources": [{"url": "c"}]},
        {"instruction": "a", "output": "b", "history": [["a", "b"]], "sources": [{"url": "c"}]},
        {"chosen": CHAT, "rejected": CHAT},
        {"tools": [{"name": "f"}], "chat": CHAT},
        {"data": []},
        {"data": [1, 2]},
        {"data": [[1, 2]]},
        {},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_that_is_a_row(tmp_path, row, indent):
    (record,) = read(tmp_path, json.dumps(row, indent=indent))
    assert (record.row, record.wrapper_keys) == (row, ())


def test_json_lines_of_one_line_wrap_nothing(tmp_path):
    row = {"dialogue": [{"who": "customer", "said": "a"}]}
    assert rows_of(tmp_path, json.dumps(row), "a.jsonl") == [row]
    assert rows_of(tmp_path, "\n" + json.dumps(row), "a.ndjson.gz"[:8]) == [row]


def test_a_broken_wrapper_keeps_its_intact_rows(tmp_path):
    a, b, c = ({"prompt": name, "completion": "x"} for name in "ABC")
    text = json.dumps({"version": 1, "data": [a, b, c]}, indent=1)
    broken = read(tmp_path, text.replace('"B"', "oops"))
    assert [record.row for record in broken] == [a, None, c]
    assert broken[1].fault.startswith("broken JSON: Expecting value (character")
    cut = read(tmp_path, text[: text.index('"B"')])
    assert [record.row for record in cut] == [a, None]
    assert cut[1].fault.endswith(NOT_CLOSED)
    for damaged in (text[:-1], text[:-2] + "oops", text + "}", text + "\noops"):
        assert rows_of(tmp_path, damaged) == [a, b, c, None]
    digits = text.replace('"B"', "1" * 5000)
    assert rows_of(tmp_path, digits) == [a, None, c]
    assert rows_of(tmp_path, text.encode().replace(b'"B"', b'"\xff"')) == [a, None, c]


def test_a_wrapper_may_hold_a_row_a_line(tmp_path):
    a, b, c = (json.dumps(row) for row in (A, B, C))
    text = f'{{"version": 1, "data": [\n{a},\n{b},\n{c}\n]}}\n'
    assert rows_of(tmp_path, text) == [A, B, C]
    assert rows_of(tmp_path, f'{{"data": [\n{a}\n]}}') == [A]
    assert rows_of(tmp_path, text[:-4]) == [A, B, C, None]
    # Without the comma between two rows what is left of the object around them is a fault, and every row is found.
    assert [row for row in rows_of(tmp_path, text.replace(f"{b},", b)) if row] == [A, B, C]
    # JSON lines the first of which is cut off.
    assert rows_of(tmp_path, f'{{"data": [\n{a}\n{b}\n') == [None, A, B]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_lines_that_are_lists_of_messages(tmp_path, name):
    chat, talk = json.dumps(CHAT), json.dumps(TALK)
    wanted = [{"messages": CHAT}, {"conversations": TALK}, A]
    assert rows_of(tmp_path, f"\n{chat}\n\n{talk}\r\n{json.dumps(A)}\n", name) == wanted
    assert rows_of(tmp_path, f"{json.dumps(A)}\n{chat}", name) == [A, wanted[0]]
    # A broken line costs itself, be it the first.
    assert rows_of(tmp_path, f"{chat[:-5]}\n{talk}\n{chat}", name) == [None, wanted[1], wanted[0]]
    assert rows_of(tmp_path, f"{chat}\n{talk[:-5]}\n{chat}", name) == [wanted[0], None, wanted[0]]
    assert rows_of(tmp_path, f"{chat}\n[1, 2]\n{json.dumps(CHAT + TALK)}", name) == [wanted[0], None, None]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_arrays_of_lists_of_messages(tmp_path, indent):
    rows = [{"messages": CHAT}, {"conversations": TALK}]
    assert rows_of(tmp_path, json.dumps([CHAT, TALK], indent=indent)) == rows
    assert rows_of(tmp_path, json.dumps([CHAT, TALK, A, 3], indent=indent)) == [*rows, A, None]
    lines = ",\n".join(json.dumps(value) for value in (CHAT, TALK, CHAT))
    for head in ("[", "[\n"):
        for tail in ("]", "\n]\n"):
            assert rows_of(tmp_path, head + lines + tail) == [*rows, rows[0]]
    broken = json.dumps([CHAT, TALK, CHAT], indent=indent).replace('"human"', "human")
    assert rows_of(tmp_path, broken) == [rows[0], None, rows[0]]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_messages_alone_is_one_conversation(tmp_path, indent):
    (record,) = read(tmp_path, "\n" + json.dumps(CHAT, indent=indent))
    assert (record.row, record.number, record.line, record.fault) == ({"messages": CHAT}, 1, 2, "")
    assert rows_of(tmp_path, json.dumps(TALK)) == [{"conversations": TALK}]
    assert rows_of(tmp_path, json.dumps([*CHAT, A])) == [*CHAT, A]
    assert rows_of(tmp_path, json.dumps(CHAT + TALK)) == CHAT + TALK
    assert rows_of(tmp_path, json.dumps(CHAT)[:-1]) == [*CHAT, None]


def test_numbers_that_are_none(tmp_path):
    text = '{"a": NaN, "b": [Infinity, {"c": -Infinity}], "d": "NaN"}'
    row = {"a": None, "b": [None, {"c": None}], "d": "NaN"}
    for content in (text, f"{text}\n{text}", f"[{text}]", text.replace("{", "{\n").replace("}", "\n}")):
        assert {json.dumps(row) for row in rows_of(tmp_path, content)} == {json.dumps(row)}
    assert rows_of(tmp_path, '{"a": NaNs}\n{"a": 1}\nNaN') == [None, {"a": 1}, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    ['{"a":\n', "{\n", '{\n"a": ,\n', '{\n "a": "\n', '{\n "a": [\n', "{\n}\n", '{\n "a"\n}\n', "{\n[", '{\n"\\"'],
)
@pytest.mark.parametrize("head", ['{\n "a": 1\n}\n', '{\n "data": [\n', '{"data": [{"a": '])
def test_hostile_objects_take_linear_time(tmp_path, head, unit):
    content = head + unit * (300_000 // len(unit))
    start = time.process_time()
    read(tmp_path, content)
    assert time.process_time() - start < 5  # seconds; a quadratic reader takes many times as long


def test_damage_in_packed_data_comes_behind_the_rows_before_it(tmp_path):
    row = {"a": Random(0).randbytes(200_000).hex()}
    packed = gzip.compress(json.dumps(row).encode() + b"\n" + json.dumps(row).encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed[:-1000])
    records = read_records(path)
    assert next(records).row == row
    with pytest.raises(PoolError, match="damaged or cut off after line 1"):
        next(records)
