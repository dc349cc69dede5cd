from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.errors import TableError
from tokenclean.exporting import read_cleaned, write_cleaned
from tokenclean.ragged import Ragged
from tokenclean.token_table import TokenTable


def table_of(rows: list[list[tuple[int, bool, float]]], **columns: Ragged) -> TokenTable:
    """A table of rows of (id, is a response token, weight), from two sources in turn."""

    def column(place: int, dtype: type) -> Ragged:
        return Ragged.from_rows([[token[place] for token in row] for row in rows], dtype)

    return TokenTable(
        tuple(f"row-{n}" for n in range(len(rows))),
        tuple("ab"[n % 2] for n in range(len(rows))),
        {"input_ids": column(0, np.int64), "is_response": column(1, np.bool_), "weight": column(2, np.float32)},
        {"strategy": "rho"},
    )


tokens = st.tuples(st.integers(0, 2**31 - 1), st.just(True), st.sampled_from([0.0, 0.25, 1.0, 3.0]))
rows_of_tokens = st.lists(st.lists(tokens, max_size=6).map(lambda row: [(7, False, 0.0), *row]), min_size=1)


@given(rows_of_tokens)
def test_labels_are_the_ids_of_positive_weights_and_rows_without_any_are_dropped(tmp_path_factory, rows):
    expected = [(f"row-{n}", row) for n, row in enumerate(rows) if any(w > 0 for _, _, w in row)]
    path = tmp_path_factory.mktemp("cleaned") / "cleaned.parquet"
    if not expected:
        with pytest.raises(TableError, match="no token"):
            write_cleaned(table_of(rows), path)
        return
    counts = write_cleaned(table_of(rows), path)
    cleaned = read_cleaned(path)
    found = cleaned.rows.to_pylist()
    assert [row["id"] for row in found] == [name for name, _ in expected]
    for stored, (_, row) in zip(found, expected, strict=True):
        assert stored["input_ids"] == [token for token, _, _ in row]
        assert stored["labels"] == [token if weight > 0 else -100 for token, _, weight in row]
        assert stored["completion_mask"] == [int(weight > 0) for _, _, weight in row]
        assert stored["token_weight"] == [weight for _, _, weight in row]
        assert stored["attention_mask"] == [1] * len(row)
    assert cleaned.counts == counts
    assert cleaned.metadata == {"strategy": "rho"}
    total = counts.total
    assert (total.rows, total.dropped_rows) == (len(expected), len(rows) - len(expected))
    assert total.tokens == sum(len(row) for _, row in expected)
    assert total.kept_tokens == sum(w > 0 for _, row in expected for _, _, w in row)
    assert total.response_tokens == sum(len(row) - 1 for row in rows)
    assert set(cleaned.dropped_ids) == {f"row-{n}" for n in range(len(rows))} - {name for name, _ in expected}


def test_column_types_are_those_that_trainers_expect(tmp_path):
    write_cleaned(table_of([[(1, False, 0), (2, True, 1)]]), tmp_path / "c.parquet")
    schema = pq.read_schema(tmp_path / "c.parquet")
    kinds = [str(schema.field(n).type.value_type) for n in schema.names[:5]]
    assert dict(zip(schema.names[:5], kinds, strict=True)) == {
        "input_ids": "int32",
        "attention_mask": "int8",
        "labels": "int64",
        "completion_mask": "int8",
        "token_weight": "float",
    }


def test_is_kept_counts_where_there_is_no_weight_and_sources_are_counted_apart(tmp_path):
    table = table_of([[(1, False, 0), (2, True, 0), (3, True, 0)], [(4, False, 0), (5, True, 0)]])
    is_kept = Ragged.from_rows([[False, False, True], [False, False]], np.bool_)
    columns = {name: table[name] for name in ("input_ids", "is_response")} | {"is_kept": is_kept}
    counts = write_cleaned(TokenTable(table.ids, table.sources, columns), tmp_path / "c.parquet")
    a, b = counts.sources
    assert (a.source, a.rows, a.dropped_rows, a.tokens, a.response_tokens, a.kept_tokens) == ("a", 1, 0, 3, 2, 1)
    assert (b.source, b.rows, b.dropped_rows, b.tokens, b.response_tokens, b.kept_tokens) == ("b", 0, 1, 0, 1, 0)


def test_tokens_to_unlearn_have_a_negative_weight_and_no_label(tmp_path):
    table = table_of([[(1, False, 0.0), (2, True, 1.0), (3, False, -0.5)], [(4, False, 0.0), (5, False, -1.0)]])
    counts = write_cleaned(table, tmp_path / "c.parquet").total
    assert (counts.rows, counts.dropped_rows, counts.kept_tokens) == (2, 0, 1)
    cleaned = read_cleaned(tmp_path / "c.parquet")
    assert cleaned.rows.column("labels").to_pylist() == [[-100, 2, -100], [-100, -100]]
    assert cleaned.rows.column("token_weight").to_pylist() == [[0, 1, -0.5], [0, -1]]


def test_many_rows_are_written_in_several_groups_in_order(tmp_path):
    rows = [[(n, False, 0.0), (n + 1, True, 1.0)] for n in range(2500)]
    write_cleaned(table_of(rows), tmp_path / "c.parquet")
    assert pq.ParquetFile(tmp_path / "c.parquet").num_row_groups == 3
    assert read_cleaned(tmp_path / "c.parquet").rows.column("id").to_pylist() == [f"row-{n}" for n in range(2500)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([(1, True, 1.0), (2, True, 1.0)], "'row-0', token 0: .* first token"),
        ([(1, False, 0.0), (2, False, 1.0)], "'row-0', token 1: .* outside the response"),
        ([(1, True, -1.0), (2, True, 1.0)], "'row-0', token 0: weight -1, .* first token"),
        ([(1, False, 0.0), (2, True, float("nan"))], "'row-0', token 1: weight nan"),
    ],
)
def test_a_weight_that_no_trainer_can_follow_is_refused(tmp_path, row, message):
    with pytest.raises(TableError, match=message):
        write_cleaned(table_of([row]), tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()


def test_a_table_that_was_never_cleaned_is_refused(tmp_path):
    table = table_of([[(1, False, 0.0), (2, True, 1.0)]])
    raw = TokenTable(table.ids, table.sources, {name: table[name] for name in ("input_ids", "is_response")})
    with pytest.raises(TableError, match="neither is_kept nor weight"):
        write_cleaned(raw, tmp_path / "c.parquet")


def spoil(path: Path, name: str, column: pa.Array | None) -> None:
    stored = pq.read_table(path)
    place = stored.column_names.index(name)
    pq.write_table(stored.remove_column(place) if column is None else stored.set_column(place, name, column), path)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("labels", None, "no column 'labels'"),
        ("input_ids", pa.array([[1, 2]], pa.list_(pa.int64())), "holds list<.*int64>, expected list<int32>"),
        ("labels", pa.array([[-100]], pa.list_(pa.int64())), "'row-0': labels has 1 values for 2 input_ids"),
        ("labels", pa.array([[1, 2]], pa.list_(pa.int64())), "'row-0': labels does not follow"),
        ("token_weight", pa.array([[0, None]], pa.list_(pa.float32())), "'token_weight' holds nulls"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, name, column, message):
    path = tmp_path / "c.parquet"
    write_cleaned(table_of([[(1, False, 0.0), (2, True, 1.0)]]), path)
    spoil(path, name, column)
    with pytest.raises(TableError, match=message):
        read_cleaned(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "c.parquet"
    write_cleaned(table_of([[(1, False, 0.0), (2, True, 1.0)]]), path)
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(TableError, match="metadata"):
        read_cleaned(path)
    path.write_text("no Parquet")
    with pytest.raises(TableError, match="not a readable Parquet"):
        read_cleaned(path)
    with pytest.raises(TableError, match="no such file"):
        read_cleaned(tmp_path / "absent.parquet")
