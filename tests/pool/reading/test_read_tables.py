from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenclean.errors import PoolError
from tokenclean.pool.reading.records import read_records

datasets.disable_progress_bars()

ROWS = [{"text": "a", "turns": [{"role": "user"}]}, {"text": None, "turns": []}]


def refusal(path: Path, split: str | None = None) -> str:
    with pytest.raises(PoolError) as caught:
        list(read_records(path, split=split))
    return str(caught.value)


def save(folder: Path, *splits: str) -> Path:
    dataset = datasets.Dataset.from_list(ROWS)
    whole = datasets.DatasetDict(dict.fromkeys(splits, dataset)) if splits else dataset
    whole.save_to_disk(folder)
    return folder


def texts(content: bytes, lengths: list[int]) -> pa.Array:
    """A column of texts that nobody has checked to be UTF-8."""
    offsets = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    buffers = pa.array(offsets, pa.int32()).buffers()[1], pa.py_buffer(content)
    return pa.StringArray.from_buffers(len(lengths), *buffers)


def test_a_bad_text_spoils_its_own_row_only(tmp_path):
    nested = pa.StructArray.from_arrays([texts(b"ab\xffd", [1, 1, 1, 1]), pa.array([1, 2, 3, 4])], ["x", "y"])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"cell": nested, "text": texts(b"\xffbcd", [1, 1, 1, 1])}), path)
    records = list(read_records(path))
    assert [record.fault for record in records] == ["column 'text': not UTF-8", "", "column 'cell': not UTF-8", ""]
    assert records[1].row == {"cell": {"x": "b", "y": 2}, "text": "b"}
    assert records[2].excerpt() == '{"text": "c"}'


def test_maps_are_dicts_and_a_key_given_twice_is_a_fault(tmp_path):
    column = pa.array([[("a", 1)], [("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"m": column}), tmp_path / "a.parquet")
    records = list(read_records(tmp_path / "a.parquet"))
    assert records[0].row == {"m": {"a": 1}}
    assert records[1].fault.startswith("column 'm': cannot be read")


def test_numbers_go_on_over_batches_and_row_groups(tmp_path):
    pq.write_table(pa.table({"a": list(range(3000))}), tmp_path / "a.parquet", row_group_size=1100)
    records = list(read_records(tmp_path / "a.parquet"))
    assert [(r.number, r.line, r.row) for r in records] == [(n + 1, n + 1, {"a": n}) for n in range(3000)]


def test_a_column_named_twice_is_refused(tmp_path):
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "a.parquet")
    assert "has the column 'a' twice" in refusal(tmp_path / "a.parquet")


def test_fields_of_mixed_types_are_what_their_json_stands_for(tmp_path):
    rows = [{"calls": [{"arguments": {"a": 1}}]}, {"calls": [{"arguments": {"b": "x"}}, {"arguments": None}]}]
    dataset = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    for name in ("saved", "a.parquet"):
        assert [record.row for record in read_records(tmp_path / name)] == rows


def test_splits_of_a_saved_dataset(tmp_path):
    both, one, bare = save(tmp_path / "both", "train", "test"), save(tmp_path / "one", "only"), save(tmp_path / "bare")
    assert "name the split to read; it has train, test" in refusal(both)
    assert "has no split 'tset'; it has train, test; did you mean 'test'?" in refusal(both, "tset")
    assert "holds one split (without a name), not 'train'; leave it out" in refusal(bare, "train")
    for path, split in ((both, "test"), (one, "only"), (one, None), (bare, None)):
        assert [record.row for record in read_records(path, split=split)] == ROWS


def test_shards_are_read_in_order_and_numbered_through(tmp_path):
    datasets.Dataset.from_dict({"a": list(range(5))}).save_to_disk(tmp_path / "d", num_shards=3)
    assert [(r.number, r.row) for r in read_records(tmp_path / "d")] == [(n + 1, {"a": n}) for n in range(5)]


@pytest.mark.parametrize("name", ["../secret.arrow", "/secret.arrow", "..", "a\\b", "C:a", "", None, 3, ["a"], "a\0"])
def test_a_dataset_cannot_name_a_file_outside_its_folder(tmp_path, name):
    secret = save(tmp_path / "d") / "data-00000-of-00001.arrow"
    secret.rename(tmp_path / "secret.arrow")
    (tmp_path / "d" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    assert "expected the plain name of a file in the folder" in refusal(tmp_path / "d")
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", name]}))
    assert "expected the plain name of a file in the folder" in refusal(tmp_path / "d", "train")


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json"])
def test_a_link_cannot_lead_out_of_a_dataset(tmp_path, name):
    inside = save(tmp_path / "d", "train") / "train" / name
    inside.rename(tmp_path / name)
    inside.symlink_to(tmp_path / name)
    assert "is a link that leads out of the dataset" in refusal(tmp_path / "d")


def test_a_split_cannot_be_a_link_that_leads_out(tmp_path):
    folder = save(tmp_path / "d", "train")
    (folder / "train").rename(tmp_path / "elsewhere")
    (folder / "train").symlink_to(tmp_path / "elsewhere")
    assert "is a link that leads out of the dataset" in refusal(folder)


def test_paths_in_cells_are_never_opened(tmp_path):
    cells = [{"image": {"bytes": None, "path": "/secret.png"}}]
    features = datasets.Features({"image": datasets.Image()})
    # Saved with its feature the dataset would look at the path already.
    datasets.Dataset(pa.Table.from_pylist(cells, features.arrow_schema.remove_metadata())).save_to_disk(tmp_path / "d")
    datasets.DatasetInfo(features=features).write_to_directory(str(tmp_path / "d"))
    assert [record.row for record in read_records(tmp_path / "d")] == cells


def test_damaged_datasets(tmp_path):
    folder = save(tmp_path / "d")
    shard, state = folder / "data-00000-of-00001.arrow", folder / "state.json"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert f"{shard}: is damaged or no Arrow table after row 0" in refusal(folder)
    shard.unlink()
    assert f"{shard}: no such file" in refusal(folder)
    for content, message in (("{", "is not JSON"), ("[]", "expected a JSON object"), ("{}", "_data_files: expected")):
        state.write_text(content)
        assert message in refusal(folder)


def test_offsets_that_lead_out_of_a_shard_are_refused(tmp_path):
    folder = save(tmp_path / "d")
    offsets = pa.array([0, 2**30, 3], pa.int32()).buffers()[1]
    wild = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"abc"))
    shard = folder / "data-00000-of-00001.arrow"
    with pa.OSFile(str(shard), "wb") as file, pa.ipc.new_stream(file, pa.schema({"a": pa.string()})) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays([wild], ["a"]))
    assert "is damaged or no Arrow table after row 0" in refusal(folder)


@pytest.mark.parametrize(
    ("cell", "is_padded"),
    [
        ({"a": 1}, True),
        ([{"a": 1}], True),
        ("text", False),
        ([1.5], False),
    ],
)
def test_rows_with_struct_columns_are_padded(tmp_path, cell, is_padded):
    table = pa.table({"cell": [cell], "id": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for name in ("a.parquet", "saved"):
        assert [record.is_padded for record in read_records(tmp_path / name)] == [is_padded]


def test_structs_in_maps_pad_too(tmp_path):
    cells = pa.array([[("k", {"a": 1})]], pa.map_(pa.string(), pa.struct({"a": pa.int64()})))
    pq.write_table(pa.table({"cell": cells}), tmp_path / "a.parquet")
    assert [record.is_padded for record in read_records(tmp_path / "a.parquet")] == [True]


def test_keys_that_an_object_lacks_are_null_in_a_padded_row(tmp_path):
    pq.write_table(pa.table({"turns": [[{"role": "user"}, {"role": "tool", "name": "f"}]]}), tmp_path / "a.parquet")
    (record,) = read_records(tmp_path / "a.parquet")
    assert record.row == {"turns": [{"role": "user", "name": None}, {"role": "tool", "name": "f"}]}
    assert record.is_padded


def test_cells_of_json_are_not_padded(tmp_path):
    cells = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": NaN}', None]))
    pq.write_table(pa.table({"cell": cells}), tmp_path / "a.parquet")
    records = list(read_records(tmp_path / "a.parquet"))
    assert [(record.row, record.is_padded) for record in records] == [
        ({"cell": {"a": None}}, False),
        ({"cell": None}, False),
    ]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_numbers_that_are_none(tmp_path, kind):
    cells = pa.array([float("nan"), 1.5, float("inf"), None, float("-inf")]).cast(kind)
    pq.write_table(pa.table({"score": cells}), tmp_path / "a.parquet")
    assert [record.row["score"] for record in read_records(tmp_path / "a.parquet") if record.row] == [
        None,
        1.5,
        *[None] * 3,
    ]
