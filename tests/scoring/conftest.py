from __future__ import annotations

from pathlib import Path

import pytest
from pool_passes import ROWS, Passes, save_reference


@pytest.fixture(scope="module", autouse=True)
def _on_one_thread(one_thread: None) -> None:
    """Every test of this room."""


@pytest.fixture(scope="session")
def tiny_reference(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reference(tiny_model_folder, tmp_path_factory.mktemp("models") / "reference", init_lora_weights=False)


@pytest.fixture(scope="session")
def short_pool(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shortest rows of the small pool."""
    lines = sorted(small_pool.read_text(encoding="utf-8").splitlines(), key=len)[:ROWS]
    path = tmp_path_factory.mktemp("pools") / "short.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def passes(short_pool: Path, tmp_path: Path, tiny_model_folder: Path, tiny_reference: Path) -> Passes:
    return Passes(short_pool, tmp_path, tiny_model_folder, tiny_reference)
