from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from tokenclean.errors import PoolError
from tokenclean.pool.reading.records import read_records

LINES = b"".join(b'{"a": %d}\n' % index for index in range(50_000))


def refusal(path: Path) -> str:
    with pytest.raises(PoolError) as caught:
        list(read_records(path))
    return str(caught.value)


def pack(content: bytes, suffix: str) -> bytes:
    return gzip.compress(content) if suffix == ".gz" else pa.compress(content, codec="zstd", asbytes=True)


def test_missing_file(tmp_path):
    (tmp_path / "train.jsonl").touch()
    assert refusal(tmp_path / "trian.jsonl").endswith(f"no such file; did you mean {tmp_path / 'train.jsonl'}?")
    assert refusal(tmp_path / "zzz.parquet").endswith(f"no such file; looked in {tmp_path}")
    assert "does not exist" in refusal(tmp_path / "none" / "train.csv")
    assert "cannot be read: Not a directory" in refusal(tmp_path / "train.jsonl" / "b.jsonl.gz")


def test_a_folder_that_is_no_dataset(tmp_path):
    assert refusal(tmp_path).endswith("is a folder; name the data files in it")
    for name in ("b.csv.gz", "a.jsonl", "notes.txt", "c.parquet"):
        (tmp_path / name).touch()
    assert refusal(tmp_path).endswith("name the data files in it (it holds a.jsonl, b.csv.gz, c.parquet)")


@pytest.mark.parametrize("name", ["a b.jsonl", "a b.csv.zst", "a b.parquet"])
def test_no_permission(tmp_path, monkeypatch, name):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(tmp_path / name).endswith(f"no permission to read it; try: chmod u+r '{tmp_path / name}'")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    assert "is empty" in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_cut_off_data_give_the_rows_before_the_cut(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    packed = pack(LINES, suffix)
    path.write_bytes(packed[: len(packed) // 2])
    numbers = []
    with pytest.raises(PoolError) as caught:
        numbers.extend(record.number for record in read_records(path))
    assert f"after line {len(numbers)} " in str(caught.value) or not numbers
    assert f"cat {path} > {tmp_path / 'a.rescued.jsonl'}" in str(caught.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_members_one_behind_the_other_are_one_file(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(LINES, suffix) * 2)
    assert sum(1 for _ in read_records(path)) == 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", LINES, "holds no gzip data, as its name says; take .gz off its name"),
        ("a.jsonl.gz", pack(LINES, ".zst"), "holds zstd data, which its name does not say"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(LINES)), "holds gzip data inside the gzip data"),
        ("a.jsonl.zst", LINES, "holds no zstd data, as its name says"),
        ("a.jsonl", gzip.compress(LINES), "holds gzip data, which its name does not say; add .gz"),
        ("a.csv", b"PAR1", "holds Parquet data, which its name does not say; let its name end in .parquet"),
        ("a.jsonl", b"PK\x03\x04", "holds a zip archive"),
        ("a.parquet", LINES, "is damaged or no Arrow table after row 0"),
    ],
)
def test_a_file_must_hold_what_its_name_says(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)
