from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tokenizers import byte_level

from tokenclean.errors import RunFolderError, TableError
from tokenclean.pool import Conversation, Pool, Turn
from tokenclean.ragged import Ragged
from tokenclean.tokens import TokenTable, read_table, tokenize_pool, write_table

COLUMNS = {
    "id": pa.array(["s:1:é", "s:2:x"]),
    "source": pa.array(["s", "s"]),
    "input_ids": pa.array([[1, 2], [3]], pa.list_(pa.int32())),
    "is_response": pa.array([[False, True], [False]]),
}


def ragged(rows, dtype) -> Ragged:
    return Ragged.from_rows(rows, dtype)


@pytest.fixture
def table() -> TokenTable:
    rows = [[0.0, np.nan, -1.5], [], [np.inf, 1e-45]]
    return TokenTable(
        ("s:1:é", "s:2:x", "t:1:y"),
        ("s", "s", "t"),
        {
            "input_ids": ragged([[1, 2, 3], [], [4, 262_143]], np.int64),
            "is_response": ragged([[False, True, True], [], [False, True]], bool),
            "base_loss": ragged(rows, np.float32),
            "is_kept": ragged([[False, True, False], [], [False, False]], bool),
        },
        {"template": "tulu", "max_length": 2048, "model": {"name": "é", "revision": None}},
    )


def write_parquet(path: Path, metadata: dict | None = None, **changes) -> Path:
    columns = {name: column for name, column in {**COLUMNS, **changes}.items() if column is not None}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def read_error(path: Path) -> str:
    with pytest.raises(TableError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def assert_equal(a: TokenTable, b: TokenTable) -> None:
    assert (a.ids, a.sources, a.metadata) == (b.ids, b.sources, b.metadata)
    assert list(a.columns) == list(b.columns)
    for name, column in a.columns.items():
        assert column.values.dtype == b[name].values.dtype
        np.testing.assert_array_equal(column.values, b[name].values)
        np.testing.assert_array_equal(column.offsets, b[name].offsets)


def test_round_trip(table, tmp_path):
    path = tmp_path / "new" / "k=2024" / "scores.parquet"
    write_table(table, path)
    assert_equal(read_table(path), table)
    assert_equal(read_table(str(path)), table)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_on_disk(table, tmp_path):
    write_table(table, tmp_path / "a.parquet")
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.schema_arrow.field("input_ids").type.value_type == pa.int32()
    assert file.schema_arrow.field("base_loss").type.value_type == pa.float32()
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert json.loads(file.schema_arrow.metadata[b"tokenclean"]) == table.metadata


def test_round_trip_of_no_rows(tmp_path):
    table = TokenTable((), (), {"input_ids": ragged([], np.int64), "is_response": ragged([], bool)})
    write_table(table, tmp_path / "a.parquet")
    assert_equal(read_table(tmp_path / "a.parquet"), table)


def test_of_tokens_and_with_columns(tmp_path):
    conversation = Conversation("i", "s", (Turn("user", "a"), Turn("assistant", "b")))
    tokens = tokenize_pool(Pool((conversation,)), byte_level())
    loss = tokens.input_ids.map_values(lambda v: v.astype(np.float32))
    table = TokenTable.of_tokens(tokens, {"a": 1}, base_loss=loss)
    assert len(table) == 1
    assert list(table.columns) == ["input_ids", "is_response", "base_loss"]
    more = table.with_columns({"b": 2}, score=loss, base_loss=loss - loss)
    assert more.metadata == {"a": 1, "b": 2}
    assert list(more.columns) == ["input_ids", "is_response", "base_loss", "score"]
    assert not more["base_loss"].values.any()
    write_table(more, tmp_path / "a.parquet")
    assert_equal(read_table(tmp_path / "a.parquet"), more)


def test_columns_that_do_not_fit(table):
    short = ragged([[1.0]], np.float32)
    conversation = Conversation("i", "s", (Turn("user", "a"), Turn("assistant", "b")))
    tokens = tokenize_pool(Pool((conversation,)), byte_level())
    with pytest.raises(TableError, match=r"column 'score': .* differ in row 0"):
        TokenTable.of_tokens(tokens, {}, score=short)
    with pytest.raises(TableError, match=r"column 'score': .* 3 and 1 rows"):
        table.with_columns({}, score=short)
    with pytest.raises(TableError, match="no column 'score'; it has input_ids, is_response, base_loss, is_kept"):
        table["score"]
    with pytest.raises(TableError, match="2 ids, 3 sources and 3 rows of input_ids"):
        TokenTable(table.ids[:2], table.sources, table.columns)
    with pytest.raises(TableError, match="no column 'is_response'"):
        TokenTable(table.ids, table.sources, {"input_ids": table["input_ids"]})


def test_a_table_that_cannot_be_written(table, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        write_table(table, tmp_path / "file" / "a.parquet")


def test_tables_by_other_hands(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", None, weight=pa.array([[0.0, 1.0], [0.5]]))
    table = read_table(path)
    assert table.metadata == {}
    assert table["input_ids"].values.dtype == np.int64
    assert table["weight"].values.tolist() == [0, 1, 0.5]
    reversed_order = dict(reversed({**COLUMNS, "is_response": pa.array([[0, 1], [0]])}.items()))
    pq.write_table(pa.table(reversed_order), path)
    table = read_table(path)
    assert table["is_response"].values.tolist() == [False, True, False]
    assert table["is_response"].values.dtype == bool


def test_several_row_groups(tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "a.parquet", row_group_size=1)
    assert [row.tolist() for row in read_table(tmp_path / "a.parquet")["input_ids"]] == [[1, 2], [3]]


def test_files_that_are_no_table(tmp_path):
    assert "no such file" in read_error(tmp_path / "none.parquet")
    assert "no such file" in read_error(tmp_path)
    (tmp_path / "a.parquet").write_text('{"prompt": "a"}')
    assert "not a readable Parquet file" in read_error(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(b"")
    assert "not a readable Parquet file" in read_error(tmp_path / "a.parquet")


def test_a_damaged_file(table, tmp_path):
    path = tmp_path / "a.parquet"
    write_table(table, path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet file" in read_error(path)


@pytest.mark.parametrize("name", list(COLUMNS))
def test_a_missing_column(tmp_path, name):
    assert f"no column {name}; `tokenclean score`" in read_error(write_parquet(tmp_path / "a.parquet", **{name: None}))


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("score", pa.array([[1.0, 2.0], []]), "differ in row 1: 1 and 0 tokens"),
        ("is_response", pa.array([[True], [True]]), "differ in row 0: 2 and 1 tokens"),
        ("score", pa.array([1.0, 2.0]), "expected a list column, found double"),
        ("score", pa.array([[1.0, None], [1.0]]), "no null"),
        ("score", pa.array([["a", "b"], ["c"]]), "expected object values, found list"),
        ("input_ids", pa.array([["a", "b"], ["c"]]), "expected int64 values, found list"),
        ("input_ids", pa.array([[1.5, 2.0], [3.0]]), "expected int64 values, found list"),
        ("is_kept", pa.array([[0.5, 1.0], [0.0]]), "expected bool values, found list"),
    ],
)
def test_a_column_that_does_not_fit(tmp_path, name, column, message):
    error = read_error(write_parquet(tmp_path / "a.parquet", **{name: column}))
    assert f"column {name!r}: " in error
    assert message in error


def test_metadata_that_is_no_json(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {b"tokenclean": b"{"})
    assert "metadata is not JSON" in read_error(path)
