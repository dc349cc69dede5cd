"""A dataset is data: no path or URL in it is opened, looked up or followed, whatever key it stands in."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_process import finish

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches files with inotify")

IN_OPEN, IN_NONBLOCK = 0x20, os.O_NONBLOCK


class Trap:
    """A file that must not be opened and an address that must not be asked, and what happened to both."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "private.txt"
        self.path.write_text("the secret of another folder")
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(IN_NONBLOCK)
        assert self._inotify >= 0, os.strerror(ctypes.get_errno())
        assert libc.inotify_add_watch(self._inotify, os.fsencode(self.path), IN_OPEN) >= 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}/image.png"

    def was_opened(self) -> bool:
        try:
            return bool(os.read(self._inotify, 4096))
        except BlockingIOError:
            return False

    def was_asked(self) -> bool:
        try:
            self._server.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._inotify)
        self._server.close()


@pytest.fixture
def trap(tmp_path):
    (tmp_path / "outside").mkdir()
    trap = Trap(tmp_path / "outside")
    yield trap
    trap.close()


def hostile_rows(place: str) -> list[dict]:
    """The place in every key that some tool or other takes for a file, an address or code."""
    plain = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
    parts = [
        {"type": "image", "path": place, "image": place, "url": place},
        {"type": "image_url", "image_url": {"url": place}},
        {"type": "input_audio", "audio": {"path": place, "bytes": None}},
        {"type": "text", "text": "see this"},
    ]
    keys = ("file", "path", "image", "images", "audio", "video", "url", "adapter", "adapters", "model", "template")
    keys += ("chat_template", "base_model", "tokenizer", "trust_remote_code", "auto_map", "_target_", "__class__")
    return [
        {"messages": plain, **dict.fromkeys(keys, place), "source": place, "id": place},
        {"messages": [{"role": "user", "content": parts}, plain[1]]},
        {"messages": [{"role": "user", "content": place, "images": [place]}, {**plain[1], "content": place}]},
        {"messages": [{"role": "system", "content": "{% include '" + place + "' %}"}, *plain]},
        {"messages": plain, "tools": [{"type": "function", "function": {"name": "a", "parameters": {"$ref": place}}}]},
        {"instruction": place, "input": place, "output": place},
        {"prompt": place, "completion": place, "file": place},
    ]


def place_of(kind: str, trap: Trap) -> str:
    return {"path": str(trap.path), "file url": trap.path.as_uri(), "address": trap.url}[kind]


def read_by_every_command(pool: Path, model: Path, folder: Path) -> str:
    """Inspect and score the pool; what they said, and where they connected to."""
    log, connections = folder / "log.txt", folder / "connections.txt"
    connections.touch()
    text_alone = [
        f"--ignore={key}" for key in ("image", "images", "image_url", "input_audio", "audio", "sound", "video")
    ]
    for arguments in (
        ["inspect", pool, "--model", model, "--rows", "100", *text_alone],
        ["score", pool, "--base", model, "-o", folder / "s.parquet", *text_alone],
    ):
        code, said = finish(arguments, log, connections=connections)
        assert code == 0, said
    assert connections.read_text() == ""
    return log.read_text()


def write_jsonl(rows: list[dict], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_trap_sees_what_it_is_for(trap, tmp_path):
    assert not trap.was_opened()
    assert not trap.was_asked()
    code = "import sys, urllib.request; from pathlib import Path; from command_process import record_connections\n"
    code += "record_connections(Path(sys.argv[1])); open(sys.argv[2]); urllib.request.urlopen(sys.argv[3], timeout=0.1)"
    arguments = [sys.executable, "-c", code, tmp_path / "connections.txt", trap.path, trap.url]
    subprocess.run(arguments, cwd=Path(__file__).parent, capture_output=True, check=False)
    assert trap.was_opened()
    assert trap.was_asked()
    assert "socket.connect ('127.0.0.1', " in (tmp_path / "connections.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["path", "file url", "address"])
def test_no_path_or_address_in_a_row_is_followed(kind, trap, tiny_model_folder, tmp_path):
    pool = write_jsonl(hostile_rows(place_of(kind, trap)), tmp_path / "pool.jsonl")
    said = read_by_every_command(pool, tiny_model_folder, tmp_path)
    assert not trap.was_opened()
    assert not trap.was_asked()
    assert "the secret of another folder" not in said


@pytest.mark.slow
def test_no_path_in_an_image_cell_of_parquet_or_in_csv_is_followed(trap, tiny_model_folder, tmp_path):
    place = str(trap.path)
    cell = pa.array([{"path": place, "bytes": None}], pa.struct([("path", pa.string()), ("bytes", pa.binary())]))
    features = {"image": {"_type": "Image"}, "sound": {"_type": "Audio"}, "text": {"_type": "Value", "dtype": "string"}}
    table = pa.table({"image": cell, "sound": cell, "prompt": [place], "completion": ["an answer"]})
    huggingface = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(huggingface), tmp_path / "pool.parquet")
    with (tmp_path / "pool.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["image", "path", "instruction", "output"], [place, trap.path.as_uri(), place, place]]
        )
    for name in ("pool.parquet", "pool.csv"):
        read_by_every_command(tmp_path / name, tiny_model_folder, tmp_path)
    assert not trap.was_opened()


def save_dataset(folder: Path) -> Path:
    """A folder as ``save_to_disk`` writes it."""
    folder.mkdir()
    table = pa.table({"prompt": ["a question"], "completion": ["an answer"]})
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as stream:
        stream.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}], "_split": "train"}))
    return folder


def name_outside(folder: Path, trap: Trap) -> None:
    state = {"_data_files": [{"filename": "../outside/private.txt"}]}
    (folder / "state.json").write_text(json.dumps(state))


def name_absolute(folder: Path, trap: Trap) -> None:
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": str(trap.path)}]}))


def link_data(folder: Path, trap: Trap) -> None:
    (folder / "data.arrow").unlink()
    (folder / "data.arrow").symlink_to(trap.path)


def link_state(folder: Path, trap: Trap) -> None:
    (folder / "state.json").unlink()
    (folder / "state.json").symlink_to(trap.path)


def name_split_outside(folder: Path, trap: Trap) -> None:
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../outside"]}))
    (trap.path.parent / "state.json").write_text(json.dumps({"_data_files": [{"filename": trap.path.name}]}))


@pytest.mark.parametrize("lead_out", [name_outside, name_absolute, link_data, link_state, name_split_outside])
def test_a_saved_dataset_that_leads_out_of_its_folder_is_refused_unopened(lead_out, trap, tiny_model_folder, tmp_path):
    folder = save_dataset(tmp_path / "saved")
    lead_out(folder, trap)
    arguments = ["score", folder, "--base", tiny_model_folder, "-o", tmp_path / "s.parquet"]
    code, said = finish(arguments, tmp_path / "log.txt")
    assert code == 2, said
    assert said.startswith(f"error: {folder}/")
    assert "expected the plain name" in said or "is a link that leads out of the dataset" in said
    assert not trap.was_opened()


@pytest.mark.slow
def test_a_saved_dataset_that_stays_in_its_folder_is_read(trap, tiny_model_folder, tmp_path):
    said = read_by_every_command(save_dataset(tmp_path / "saved"), tiny_model_folder, tmp_path)
    assert "1 conversations" in said
