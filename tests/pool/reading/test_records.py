from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.errors import PoolError
from tokenclean.pool.reading.records import Record, read_records

datasets.disable_progress_bars()

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
TURN = st.fixed_dictionaries({"role": TEXT, "content": TEXT})
ROWS = st.lists(st.fixed_dictionaries({"instruction": TEXT, "messages": st.lists(TURN)}), min_size=1, max_size=8)
ROW = {"prompt": "Grüße 🌍", "completion": 'a, "b"\n}, {\u2028'}


def pack(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = bytes(pa.compress(content, codec="zstd", asbytes=True))
    path.write_bytes(content)
    return path


def write(path: Path, rows: list[dict]) -> Path:
    """The rows in the format that the name asks for."""
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".csv" in name or ".tsv" in name:
        sheet = path.with_name("sheet")
        with sheet.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if ".tsv" in name else ",", quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
        pack(path, sheet.read_bytes())
    elif ".jsonl" in name:
        pack(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    else:
        pack(path, json.dumps(rows, ensure_ascii=False, indent=2).encode())
    return path


def read_or_refuse(path: Path) -> list[Record] | None:
    try:
        records = list(read_records(path))
    except PoolError:
        return None
    for record in records:
        assert (record.row is None) == bool(record.fault)
        assert len(record.excerpt()) <= 200
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.JSONL.zst", "a.json", "a.json.gz", "a.parquet", "rows"])
@given(rows=ROWS)
@settings(max_examples=25, deadline=None)
def test_rows_are_read_back_as_they_were_written(folder, name, rows):
    path = write(folder / name, rows)
    records = list(read_records(path))
    assert [record.row for record in records] == rows
    assert [record.number for record in records] == list(range(1, len(rows) + 1))


def write_array(rows: list[dict], indent: int | None) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=indent)


def write_lines(rows: list[dict], _indent: int | None) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def write_objects(rows: list[dict], indent: int | None) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False, indent=indent or 0) for row in rows)


def write_wrapper(rows: list[dict], indent: int | None) -> str:
    return json.dumps({"version": [1], "rows": rows, "more": {}}, ensure_ascii=False, indent=indent)


SHAPES = {"array": write_array, "lines": write_lines, "objects": write_objects, "wrapper": write_wrapper}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030"])
@pytest.mark.parametrize("shape", SHAPES)
@given(rows=ROWS, indent=st.sampled_from([None, 0, 1, 4]), ending=st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=25, deadline=None)
def test_rows_are_the_same_in_every_shape_and_encoding(folder, shape, encoding, rows, indent, ending):
    path = folder / "shaped.json"
    path.write_bytes(SHAPES[shape](rows, indent).replace("\n", ending).encode(encoding))
    records = list(read_records(path, encoding="gb18030" if encoding == "gb18030" else None))
    assert [record.row for record in records] == rows
    assert {record.wrapper_keys for record in records} == {("version", "more") if shape == "wrapper" else ()}


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_rows_before_damage_are_kept(folder, shape, data):
    rows = [{"prompt": "Grüße 🌍", "completion": f"Nr. {index}"} for index in range(6)]
    content = SHAPES[shape](rows, data.draw(st.sampled_from([None, 1]))).encode()
    starts = [content.index(b"Nr. %d" % index) for index in range(6)]
    at = data.draw(st.integers(starts[1], len(content) - 1))
    damage = data.draw(st.sampled_from(["cut", "byte", "insert"]))
    byte = data.draw(st.binary(min_size=1, max_size=4))
    path = folder / "damaged.json"
    path.write_bytes(
        content[:at] + {"cut": b"", "byte": byte + content[at + 1 :], "insert": byte + content[at:]}[damage]
    )
    records = read_or_refuse(path)
    assert records is not None
    found = [record.row for record in records]
    intact = sum(start + 12 < at for start in starts) if shape == "lines" else sum(start < at for start in starts) - 1
    assert found[:intact] == rows[:intact]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.tsv.zst"])
@given(rows=st.lists(st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_texts_are_read_back_from_sheets(folder, name, rows):
    assert [record.row for record in read_records(write(folder / name, rows))] == rows


@given(rows=ROWS)
@settings(max_examples=10, deadline=None)
def test_rows_are_read_back_from_a_saved_dataset(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("saved")
    table = datasets.Dataset(pa.Table.from_pylist(rows))
    table.save_to_disk(path, num_shards=min(2, len(rows)))
    assert [record.row for record in read_records(path)] == rows


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.csv.gz"]
)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_give_records_or_a_pool_error(folder, name, data):
    path = write(folder / name, [ROW | {"id": str(index)} for index in range(4)])
    content = bytearray(path.read_bytes())
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[at] = byte
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, len(content) - 1]))])
    read_or_refuse(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
@given(content=st.binary() | st.text(alphabet='[]{},:"\\a1 \n\r\t;\ufeff').map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_records_or_a_pool_error(folder, name, content):
    (folder / name).write_bytes(content)
    read_or_refuse(folder / name)


@given(content=st.lists(st.binary(max_size=8) | st.just(b'{"a": 1}') | st.just(b" "), max_size=8).map(b"\n".join))
@settings(deadline=None)
def test_every_line_that_is_not_blank_is_a_record(folder, content):
    path = folder / "lines.jsonl"
    path.write_bytes(content)
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    records = read_or_refuse(path)
    # A first line that only begins an object may go on in the next one.
    is_begun = bool(lines) and lines[0].strip().startswith(b"{") and lines[0].strip() != b'{"a": 1}'
    if records is not None and not is_begun and not content.strip().startswith((b"[", b"\xef\xbb\xbf")):
        assert len(records) == len(lines)
        assert [record.number for record in records] == [record.line for record in records]


def test_a_split_is_for_datasets_only(tmp_path):
    path = write(tmp_path / "a.jsonl", [ROW])
    with pytest.raises(PoolError, match="has no splits, so that the split 'train' cannot be read"):
        list(read_records(path, split="train"))


def test_packed_parquet_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(PoolError, match="unpack it first: zcat"):
        read_records(tmp_path / "a.parquet.gz")


def test_excerpt_of_a_text_row_is_its_first_characters():
    assert Record(1, 1, None, "fault", b"caf\xe9 " + "🌍".encode() * 300).excerpt() == "caf\ufffd " + "🌍" * 195
    assert Record(1, 1, None, "fault", "caf\udce9").excerpt() == "caf\ufffd"


def test_excerpt_of_cells_is_json_and_cheap():
    cells = {"a": ["é", None, 1.5, True, b"\0"], "b": {}}
    assert Record(1, 1, cells, origin=cells).excerpt() == json.dumps(cells, ensure_ascii=False, default=str)
    huge: list = []
    for _ in range(100_000):
        huge = [huge]
    assert Record(1, 1, None, "fault", {"x": "é" * 10**7}).excerpt().startswith('{"x": "éé')
    assert Record(1, 1, None, "fault", {"x": huge}).excerpt() == '{"x": ' + "[" * 194
