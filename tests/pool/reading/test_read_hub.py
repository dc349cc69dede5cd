from __future__ import annotations

import subprocess
import sys

import datasets
import pyarrow as pa
import pytest

from tokenclean.errors import MissingExtraError, PoolError
from tokenclean.pool.reading.hub_datasets import read_hub
from tokenclean.pool.reading.record import Record
from tokenclean.recipe import source_from

ROWS = [{"prompt": str(index), "turns": [{"role": "user"}]} for index in range(1100)]


def read(name: str = "owner/name", **options) -> list[Record]:
    return list(read_hub(source_from({"hub": name, **options})))


def refusal(name: str = "owner/name", **options) -> str:
    with pytest.raises(PoolError) as caught:
        read(name, **options)
    return str(caught.value)


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one dataset: ``hub["dataset"]`` and its ``hub["splits"]``; ``hub["calls"]`` are the loads."""
    state = {"dataset": datasets.Dataset.from_list(ROWS), "splits": ["train"], "calls": []}

    def load_dataset(path, **options):
        state["calls"].append((path, options))
        return state["dataset"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, **options: state["splits"])
    return state


def test_the_only_split_is_read(hub):
    records = read(config="main", revision="abc")
    assert [record.row for record in records] == ROWS
    assert all(record.is_padded for record in records)
    assert [record.number for record in records] == list(range(1, 1101))
    assert hub["calls"] == [
        ("owner/name", {"name": "main", "split": "train", "revision": "abc", "streaming": False}),
    ]


@pytest.mark.parametrize("is_arrow", [False, True])
def test_a_streamed_dataset(hub, is_arrow):
    hub["dataset"] = (
        hub["dataset"].to_iterable_dataset()
        if is_arrow
        else datasets.IterableDataset.from_generator(lambda: iter(ROWS))
    )
    assert [record.row for record in read(streaming=True)] == ROWS


@pytest.mark.parametrize("kind", ["stored", "streamed", "decoding streamed"])
def test_paths_in_cells_are_never_opened(hub, kind):
    cells = [{"image": {"bytes": None, "path": "/secret.png"}}]
    features = datasets.Features({"image": datasets.Image()})
    stored = datasets.Dataset(pa.Table.from_pylist(cells, features.arrow_schema))
    streamed = stored.to_iterable_dataset()
    # load_dataset streams from the Hub with threads that open the files.
    decoding = streamed.decode(num_threads=2)
    hub["dataset"] = {"stored": stored, "streamed": streamed, "decoding streamed": decoding}[kind]
    assert [record.row for record in read(streaming=kind != "stored")] == cells


def test_one_of_several_splits_must_be_named(hub):
    hub["splits"] = ["train_sft", "test_sft"]
    assert refusal() == "owner/name on the Hub: name the split to read; it has train_sft, test_sft"
    assert len(read(split="test_sft")) == 1100


@pytest.mark.parametrize("name", ["json", "../data", "/data/a", "a/b/c", "hf://datasets/a/b", "", "a/b "])
def test_a_name_must_be_one_of_the_hub(hub, name):
    assert "expected owner/name" in refusal(name)
    assert hub["calls"] == []


def test_a_local_folder_is_not_read_in_place_of_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert "is also a local path" in refusal()


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_that_cannot_be_reached_is_one_error(split, streaming):
    error = refusal("tatsu-lab/alpaca", split=split, streaming=streaming)
    assert error.startswith("tatsu-lab/alpaca on the Hub: cannot be read: HF_HUB_OFFLINE is set; Couldn't reach")
    assert "\n" not in error


def test_a_stream_that_breaks_off_says_after_which_row(hub):
    def break_off():
        yield from ROWS[:1024]
        raise RuntimeError("broken\noff")

    hub["dataset"] = datasets.IterableDataset.from_generator(break_off)
    assert "owner/name on the Hub: cannot be read after row 1024: broken off. Check" in refusal(streaming=True)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="reading owner/name from the Hub needs the package 'datasets'"):
        read()


def test_the_readers_load_neither_torch_nor_datasets():
    code = (
        "import sys, tokenclean.pool.reading; print(sorted({'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_hub_that_gives_no_sign_of_life_is_asked_for_nothing_else(hub, monkeypatch):
    from datasets import config
    from huggingface_hub import constants

    def look_into_the_cache(*args, **options):
        assert config.HF_HUB_OFFLINE
        assert constants.HF_HUB_OFFLINE
        raise ConnectionError("not in the cache")

    for module in (config, constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("tokenclean.pool.reading.hub_datasets.why_unreachable", lambda: "cannot reach the Hub")
    monkeypatch.setattr(datasets, "load_dataset", look_into_the_cache)
    assert "cannot be read: cannot reach the Hub; not in the cache. Check" in refusal()
    assert not config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
