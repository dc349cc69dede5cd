"""The processes that share a pass: who they are, and which shards are whose. See test_score_command for real ones."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.errors import RankError
from tokenclean.models.device import resolve_device
from tokenclean.processes import SINGLE_PROCESS, Processes


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Processes(0, 1, 0)),
        ({"RANK": "3", "LOCAL_RANK": "3"}, Processes(0, 1, 0)),
        ({"WORLD_SIZE": "1"}, Processes(0, 1, 0)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, Processes(3, 4, 1)),
    ],
)
def test_ranks_come_from_the_launchers_environment(environment, expected):
    assert Processes.from_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "no RANK, no LOCAL_RANK in the environment"),
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE=two in the environment, expected a number"),
        ({"WORLD_SIZE": "2", "RANK": "-1", "LOCAL_RANK": "0"}, "RANK=-1"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "expected numbers from 0 to 1"),
        ({"WORLD_SIZE": "0", "RANK": "0", "LOCAL_RANK": "0"}, "of 0 processes"),
    ],
)
def test_what_no_launcher_sets_is_refused(environment, words):
    with pytest.raises(RankError, match=words) as raised:
        Processes.from_environment(environment)
    assert "torchrun" in str(raised.value)


@given(count=st.integers(1, 9), number=st.integers(0, 10_000))
def test_every_shard_is_one_processes(count, number):
    owners = [rank for rank in range(count) if Processes(rank, count, 0).owns(number)]
    assert owners == [number % count]


def test_one_process_meets_nobody_and_loads_nothing():
    code = "import sys\nfrom tokenclean.processes import SINGLE_PROCESS\nwith SINGLE_PROCESS.together():\n"
    code += "    SINGLE_PROCESS.barrier()\n    assert SINGLE_PROCESS.all_reduce_sum([3, 4]) == [3, 4]\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert SINGLE_PROCESS.is_first


def test_a_rank_that_nobody_launched_is_told_so(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RankError, match=r"cannot meet the other processes \(.*MASTER_ADDR.*torchrun") as raised:
        Processes(0, 2, 0).barrier()
    assert isinstance(raised.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("name", "local_rank", "gpus", "expected"),
    [
        ("auto", None, 0, "cpu"),
        ("auto", 1, 0, "cpu"),
        ("cpu", 1, 2, "cpu"),
        ("auto", None, 2, "cuda"),
        ("auto", 1, 2, "cuda:1"),
        ("cuda", 1, 2, "cuda:1"),
        ("cuda", None, 2, "cuda"),
        ("cuda:0", 1, 2, "cuda:0"),
    ],
)
def test_each_rank_of_a_machine_has_a_gpu_of_its_own(name, local_rank, gpus, expected, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    assert resolve_device(name, local_rank=local_rank) == expected
