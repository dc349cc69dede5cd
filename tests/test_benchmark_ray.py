"""The comparison of a Ray cluster with one process: what it takes of a file, and what it says of tables that differ."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
ray_cluster = importlib.import_module("benchmarks.ray_cluster")

WAITS = "import sys; held = bytearray(30 << 20); print('ready', flush=True); sys.stdin.read()"
MEASURED = ray_cluster.Measured("one process", 2.0, 3 << 20, 0, "a")


def test_the_first_rows_of_a_file_are_taken_as_they_are(tmp_path):
    data, pool = tmp_path / "data.jsonl", tmp_path / "pool.jsonl"
    data.write_bytes('{"a": "é"}\r\n{"b": 2}\n{"c": 3}'.encode())
    assert ray_cluster.take_rows(data, 2, pool) == 2
    assert pool.read_bytes() == '{"a": "é"}\r\n{"b": 2}\n'.encode()
    assert ray_cluster.take_rows(data, None, pool) == 3
    assert pool.read_bytes() == data.read_bytes()
    with pytest.raises(SystemExit, match="has 3 rows, --rows asks for 4"):
        ray_cluster.take_rows(data, 4, pool)


def test_the_table_says_which_way_kept_other_tokens():
    other = replace(MEASURED, way="Ray, 3 nodes", cluster_bytes=5 << 20, kept_hash="b")
    shown = ray_cluster.table([MEASURED, other], markdown=True).splitlines()
    assert shown[2] == "| one process | 2.0 | 3 | – | the same bytes |"
    assert shown[3] == "| Ray, 3 nodes | 2.0 | 3 | 5 | DIFFERENT |"


def test_memory_is_counted_for_the_command_and_apart_for_other_children():
    waits = [sys.executable, "-c", WAITS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(waits, **pipes) as command, subprocess.Popen(waits, **pipes) as other:
        for process in (command, other):
            assert process.stdout is not None
            assert process.stdout.readline().strip() == b"ready"
        own, others = ray_cluster.resident_bytes(command.pid)
        assert 30 << 20 < own < 100 << 20
        assert others > 30 << 20
        for process in (command, other):
            process.communicate()


def test_a_model_that_is_not_tiny_needs_a_reference():
    command = [sys.executable, "-m", "benchmarks.ray_cluster", "--model", "somewhere"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.returncode == 2
    assert "--reference: give it with a --model" in said.stderr
