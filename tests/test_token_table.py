from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenclean.errors import RunFolderError, TableError
from tokenclean.models.loading.load import load_tokenizer
from tokenclean.pool import Conversation, Pool, Turn
from tokenclean.ragged import Ragged
from tokenclean.token_table import TokenTable, iter_table, open_table, read_metadata, read_table, write_table
from tokenclean.tokens import tokenize_pool

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


def test_losses_have_no_dictionary_of_their_values_and_ids_have(table, tmp_path):
    write_table(table, tmp_path / "t.parquet")
    group = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0)
    with_dictionary = {
        column.path_in_schema.partition(".")[0]: column.has_dictionary_page
        for column in map(group.column, range(group.num_columns))
    }
    assert not with_dictionary["base_loss"]
    assert with_dictionary["input_ids"]
    assert with_dictionary["source"]


def test_round_trip_of_no_rows(tmp_path):
    table = TokenTable((), (), {"input_ids": ragged([], np.int64), "is_response": ragged([], bool)})
    write_table(table, tmp_path / "a.parquet")
    assert_equal(read_table(tmp_path / "a.parquet"), table)


def test_of_tokens_and_with_columns(tmp_path, tiny_model_folder):
    conversation = Conversation("i", "s", (Turn("user", "a"), Turn("assistant", "b")))
    tokens = tokenize_pool(Pool((conversation,)), load_tokenizer(str(tiny_model_folder)))
    loss = tokens.input_ids.map_values(lambda v: v.astype(np.float32))
    table = tokens.table({"a": 1}, base_loss=loss)
    assert len(table) == 1
    assert list(table.columns) == ["input_ids", "is_response", "base_loss"]
    more = table.with_columns({"b": 2}, score=loss, base_loss=loss - loss)
    assert more.metadata == {"a": 1, "b": 2}
    assert list(more.columns) == ["input_ids", "is_response", "base_loss", "score"]
    assert not more["base_loss"].values.any()
    write_table(more, tmp_path / "a.parquet")
    assert_equal(read_table(tmp_path / "a.parquet"), more)


def test_columns_that_do_not_fit(table, tiny_model_folder):
    short = ragged([[1.0]], np.float32)
    conversation = Conversation("i", "s", (Turn("user", "a"), Turn("assistant", "b")))
    tokens = tokenize_pool(Pool((conversation,)), load_tokenizer(str(tiny_model_folder)))
    with pytest.raises(TableError, match=r"column 'score': .* differ in row 0"):
        tokens.table({}, score=short)
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


def rows_of(table: TokenTable, first: int, last: int) -> TokenTable:
    columns = {name: column.take(range(first, last)) for name, column in table.columns.items()}
    return TokenTable(table.ids[first:last], table.sources[first:last], columns, {"of": "a part"})


@pytest.mark.parametrize("ends", [(3,), (1, 2, 3), (0, 2, 2, 3, 3)])
def test_parts_are_row_groups_of_one_table(table, tmp_path, ends):
    path = tmp_path / "new" / "a.parquet"
    starts = (0, *ends[:-1])
    with open_table(path, table.metadata) as writer:
        for first, last in zip(starts, ends, strict=True):
            writer.write(rows_of(table, first, last))
        assert not path.exists()
    assert list(path.parent.iterdir()) == [path]
    assert_equal(read_table(path), table)
    parts = list(iter_table(path))
    assert [part.ids for part in parts] == [table.ids[first:last] for first, last in zip(starts, ends, strict=True)]
    for part, first, last in zip(parts, starts, ends, strict=True):
        assert part.metadata == table.metadata
        assert list(part.columns) == list(table.columns)
        assert_equal(part, TokenTable(part.ids, part.sources, rows_of(table, first, last).columns, table.metadata))


def test_metadata_of_the_end_are_those_of_the_table(table, tmp_path):
    path = tmp_path / "a.parquet"
    with open_table(path, {"begun": True}) as writer:
        writer.write(table)
        writer.metadata = {"ended": "é", "rows": 3}
    for found in (read_table(path).metadata, read_metadata(path), next(iter_table(path)).metadata):
        assert found == {"ended": "é", "rows": 3}


def write_parts(path: Path, parts: list[TokenTable], metadata_at_end: dict | None = None) -> None:
    with open_table(path, {}) as writer:
        for part in parts:
            writer.write(part)
        writer.metadata = metadata_at_end or {}


def test_metadata_that_are_no_json_leave_no_file(table, tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_parts(tmp_path / "a.parquet", [table], {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_no_part_is_a_table_of_no_rows(tmp_path):
    with open_table(tmp_path / "a.parquet", {"a": 1}):
        pass
    table = read_table(tmp_path / "a.parquet")
    assert (len(table), table.metadata, list(table.columns)) == (0, {"a": 1}, ["input_ids", "is_response"])


def test_a_table_without_row_groups_gives_one_part(tmp_path):
    schema = pa.table({**COLUMNS, "score": pa.array([[1.0, 2.0], [3.0]])}).schema
    pq.ParquetWriter(tmp_path / "a.parquet", schema).close()
    (part,) = iter_table(tmp_path / "a.parquet", ["score"])
    assert (len(part), part["score"].values.dtype) == (0, np.float64)
    assert_equal(read_table(tmp_path / "a.parquet"), part)


def test_an_error_in_the_block_leaves_what_was_there(table, tmp_path):
    path = tmp_path / "a.parquet"
    write_table(table, path)

    def fail_after(parts: int) -> None:
        with open_table(path, {}) as writer:
            for _ in range(parts):
                writer.write(table)
            raise ArithmeticError("stop")

    for parts in (0, 2):
        with pytest.raises(ArithmeticError, match="stop"):
            fail_after(parts)
        assert list(tmp_path.iterdir()) == [path]
        assert_equal(read_table(path), table)


def test_a_disk_that_takes_no_more(table, tmp_path):
    noise = np.random.default_rng(0).standard_normal(100_000)
    ids = ragged([np.arange(100_000)], np.int64)
    long = TokenTable(("a",), ("s",), {"input_ids": ids, "is_response": ids.with_values(noise > 0)})
    long = long.with_columns({}, score=ids.with_values(noise))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with (
            pytest.raises(RunFolderError, match=r"cannot write .*a\.parquet: .*ulimit -f"),
            open_table(tmp_path / "a.parquet", {}) as writer,
        ):
            writer.write(long)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_parts_must_be_alike(table, tmp_path):
    path = tmp_path / "a.parquet"

    def refused(columns: dict[str, Ragged]) -> str:
        with pytest.raises(TableError) as caught:
            write_parts(path, [table, table, TokenTable(table.ids, table.sources, columns)])
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    loss = table["base_loss"]
    error = refused({**table.columns, "base_loss": loss.map_values(lambda v: v.astype(np.float64))})
    assert re.search(
        rf"{path}: column 'base_loss': expected .*float> as in the first part, found .*double> in part 3", error
    )
    error = refused({**table.columns, "weight": loss})
    assert re.search("column 'weight': expected no such column as in the first part, found .*float> in part 3", error)
    error = refused({name: column for name, column in table.columns.items() if name != "is_kept"})
    assert re.search("column 'is_kept': expected .*bool> as in the first part, found no such column", error)


def test_parts_may_have_their_columns_in_another_order(table, tmp_path):
    with open_table(tmp_path / "a.parquet", table.metadata) as writer:
        writer.write(rows_of(table, 0, 1))
        rest = rows_of(table, 1, 3)
        writer.write(TokenTable(rest.ids, rest.sources, dict(reversed(rest.columns.items()))))
    assert_equal(read_table(tmp_path / "a.parquet"), table)


def test_only_wanted_columns_are_read(table, tmp_path):
    path = tmp_path / "a.parquet"
    write_table(table, path)
    for wanted, names in (
        ([], ["input_ids", "is_response"]),
        (["is_kept", "input_ids", "is_kept"], ["input_ids", "is_response", "is_kept"]),
    ):
        (part,) = iter_table(path, wanted)
        assert list(part.columns) == names
        assert_equal(part, TokenTable(table.ids, table.sources, {name: table[name] for name in names}, table.metadata))
    with pytest.raises(
        TableError, match=r"a\.parquet: this table has no column 'score'; it has input_ids, is_response, base_loss, "
    ):
        next(iter_table(path, ["base_loss", "score"]))


def test_a_fault_in_a_row_group_is_told_with_its_number(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", score=pa.array([[1.0, 2.0], []]))
    pq.write_table(pq.read_table(path), path, row_group_size=1)
    parts = iter_table(path)
    assert len(next(parts)) == 1
    with pytest.raises(TableError, match=r"a\.parquet, row group 1: column 'score': .* differ in row 0"):
        next(parts)


def test_a_row_group_that_is_damaged(table, tmp_path):
    path = tmp_path / "a.parquet"
    with open_table(path, {}) as writer:
        for _ in range(2):
            writer.write(table)
    column = pq.ParquetFile(path).metadata.row_group(1).column(2)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    parts = iter_table(path)
    assert len(next(parts)) == 3
    with pytest.raises(TableError, match=r"a\.parquet: not a readable Parquet file"):
        next(parts)


def test_columns_of_one_name(tmp_path):
    score = pa.array([[1.0, 2.0], [3.0]])
    names = [*COLUMNS, "score", "score"]
    pq.write_table(pa.table([*COLUMNS.values(), score, score], names), tmp_path / "a.parquet")
    assert "more than one column 'score'" in read_error(tmp_path / "a.parquet")


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
        ("score", pa.array([[1.0, None], [1.0]]), "may not hold nulls"),
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
    with pytest.raises(TableError, match=r"a\.parquet: its metadata is not JSON"):
        read_metadata(path)


def test_parts_of_files_that_are_no_table(tmp_path):
    with pytest.raises(TableError, match="no such file; `tokenclean score` writes one"):
        next(iter_table(tmp_path / "none.parquet"))
    with pytest.raises(TableError, match="no such file"):
        read_metadata(tmp_path / "none.parquet")
    (tmp_path / "a.parquet").write_text("{}")
    with pytest.raises(TableError, match="not a readable Parquet file"):
        read_metadata(tmp_path / "a.parquet")
