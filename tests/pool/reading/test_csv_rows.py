from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tokenclean.errors import PoolError, RecipeError
from tokenclean.pool.reading.csv_rows import read_csv
from tokenclean.pool.reading.record import Record
from tokenclean.pool.reading.records import read_records
from tokenclean.recipe import source_from


def read(folder: Path, content: bytes, delimiter: str = ",") -> list[Record]:
    path = folder / "rows.csv"
    path.write_bytes(content)
    return list(read_csv(path, delimiter))


def test_rows_know_their_number_and_line(tmp_path):
    records = read(tmp_path, b'\xef\xbb\xbf\r\na,b\r\n\r\n1,"x\r\n\r\ny ""z"""\r\n2,\r\n')
    assert [record.row for record in records] == [{"a": "1", "b": 'x\r\n\r\ny "z"'}, {"a": "2", "b": ""}]
    assert [(record.number, record.line) for record in records] == [(1, 4), (2, 7)]
    assert records[0].excerpt() == '1,"x\r\n\r\ny ""z"""'


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (b"1", "another number of fields than the header has (expected 2, found 1)"),
        (b"1,2,3", "another number of fields than the header has (expected 2, found 3)"),
        (b"1,caf\xe9", "not UTF-8 (byte 0xe9 at character 6 of the row)"),
        (b"1,\0", "a NUL in the row (character 3)"),
        (b'1,"a"b', "broken CSV: ',' expected after '\"'"),
        (b"1,a\rb", "broken CSV: new-line character seen in unquoted field"),
    ],
)
def test_a_bad_row_is_a_fault_of_its_own(tmp_path, row, fault):
    records = read(tmp_path, b"a,b\n1,2\n" + row + b"\n3,4\n")
    assert [record.row for record in records] == [{"a": "1", "b": "2"}, None, {"a": "3", "b": "4"}]
    assert records[1].fault.startswith(fault)
    assert (records[1].number, records[1].line) == (2, 3)


def test_cells_longer_than_the_limit_of_csv_are_read(tmp_path):
    assert read(tmp_path, b"a,b\n1," + b"x" * 200_000)[0].row == {"a": "1", "b": "x" * 200_000}


def test_a_quote_that_never_closes_names_its_line(tmp_path):
    with pytest.raises(PoolError, match="the quote that opens on line 5 never closes"):
        read(tmp_path, b'a,b,c\n1,2,3\n1,"x\n\n""y","z\n' + b"1,2,3\n" * 1000)
    with pytest.raises(PoolError, match="the quote that opens on line 1 never closes"):
        read(tmp_path, b'a,"b\n1,2')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\na,b,a\n1,2,3", "line 2: the header names the column 'a' twice"),
        (b"a,\xff\n", "line 1: the header cannot be read: not UTF-8"),
        (b"a\rb\r", "line 1: the header cannot be read: broken CSV"),
        (b"a;b\n1;2", "line 1: the header is one column with ';' in its name; .* say so: --delimiter ';'"),
        (b"a|b;c|d\n", r"one column with '\|' in its name; .*: --delimiter '\|'"),
        (b"a\tb\n", r"one column with '\\t' in its name; .*: --delimiter tab"),
    ],
)
def test_a_header_must_name_the_columns(tmp_path, content, message):
    with pytest.raises(PoolError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize(
    ("option", "mark"), [(";", ";"), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), ("|", "|"), (" ", " "), ("、", "、")]
)
def test_a_named_delimiter_separates_the_columns(tmp_path, name, option, mark):
    content = f'\ufeffa{mark}b\r\n1{mark}"x{mark} ""y"",\n"\r\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert [record.row for record in read_records(tmp_path / name, delimiter=option)] == [
        {"a": "1", "b": f'x{mark} "y",\n'}
    ]


@pytest.mark.parametrize("option", ["", ";;", '"', "\n", "\r", "\0", "semicolon"])
def test_a_delimiter_is_one_character(option):
    with pytest.raises(RecipeError, match=r"delimiter: expected one character \(no quote or line end\) or tab"):
        source_from({"path": "a.csv", "delimiter": option})


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt", "."])
def test_a_delimiter_is_for_sheets_only(tmp_path, name):
    with pytest.raises(PoolError, match=r"is no .csv or .tsv file, .* leave --delimiter out"):
        read_records(tmp_path / name, delimiter=";")


def test_an_open_quote_is_found_with_another_delimiter(tmp_path):
    with pytest.raises(PoolError, match="the quote that opens on line 3 never closes"):
        read(tmp_path, b'a;b\n1;2\n1;"2\n3;4\n', ";")


def test_what_spreadsheets_leave_behind(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"sep=;\n; instruction ;output;\n0;a;b;\n1;c;d;x\n")
    rows = [record.row for record in read_csv(path, ",")]
    assert rows == [
        {"column 1": "0", "instruction": "a", "output": "b", "column 4": ""},
        {"column 1": "1", "instruction": "c", "output": "d", "column 4": "x"},
    ]
    assert [record.line for record in read_csv(path, ",")] == [3, 4]
