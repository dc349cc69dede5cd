"""Runs of the command line in processes of their own that can be killed at any moment."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import command_process
import pytest


@pytest.fixture(scope="session")
def start_command() -> Callable[[list[str], Path], BaseProcess]:
    """A function (arguments, log file) that starts the command line in a process and returns it."""
    return command_process.start


@pytest.fixture(scope="session")
def demo_rows() -> Callable[[Path, int], Path]:
    """A function (path, count) that writes the first rows of the shipped pool."""
    from tokenclean.experiment.demo import pool_path

    def write(path: Path, count: int) -> Path:
        lines = pool_path().read_text(encoding="utf-8").splitlines()[:count]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def small_recipe(tiny_model_folder: Path) -> Callable[[Path, Path], Path]:
    """A function (pool, folder) that writes a recipe of a small run into ``folder/small.yaml``; the run folder is
    ``folder/runs/small``."""
    import yaml

    def write(pool: Path, folder: Path) -> Path:
        values = {
            "name": "small",
            "output": str(folder / "runs"),
            "pool": {"sources": [{"path": str(pool)}], "heldout": {"rows": 10}},
            "model": {"base": str(tiny_model_folder), "device": "cpu"},
            "cleaning": {"strategy": "self_evolving", "splits": 3, "allow_weak_reference": True},
            "scoring": {"precision": "exact", "pack_tokens": 1024},
            "training": {"learning_rate": 1e-2, "batch_size": 8, "precision": "exact", "lora": {"rank": 4}},
            "evaluation": {"controls": ["full_tokens"]},
        }
        path = folder / "small.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
