"""What replaces the names on the how-to pages, in one place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_blocks import ROOT, blocks

sys.path.insert(0, str(ROOT / "tests" / "ds2"))
from rating_server import RatingServer, Reply

SMALL = (
    *("pool.max_rows=40", "pool.heldout.rows=8", "model.device=cpu", "cleaning.splits=2"),
    *("cleaning.allow_weak_reference=true", "training.batch_size=8", "training.minimum_steps=2"),
    "training.lora.rank=2",
)
"""What is added to the commands that take a recipe, so that they take seconds."""


@pytest.fixture
def rater(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server that rates each conversation by its length."""

    def reply(request) -> Reply:
        overall = 1 + len(request.text) % 10
        return Reply(f'{{"rarity": 3, "complexity": 4, "informativeness": 5, "overall": {overall}}}')

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789-abcdef")
    with RatingServer(reply).serving() as server:
        yield server.url


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder ``runs`` of all pages: what one has computed, the next one finds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def embedding_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a token for padding, which sentence-transformers asks for."""
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(tiny_model_folder, tmp_path_factory.mktemp("models") / "embedding"))
    AutoTokenizer.from_pretrained(folder, pad_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def run_page(
    small_pool: Path, tiny_model_folder: Path, embedding_folder: Path, rater: str, shared_runs: Path, tmp_path: Path
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A function that writes a page's files and runs its ``bash`` blocks, one after another, in the test's folder."""
    names = {
        "HuggingFaceTB/SmolLM2-135M": str(tiny_model_folder),
        "BAAI/bge-large-en-v1.5": str(embedding_folder),
        "https://api.openai.com/v1": rater,
    }

    def filled(text: str) -> str:
        for name, place in names.items():
            text = text.replace(name, place)
        return text

    def run(page: str) -> subprocess.CompletedProcess[str]:
        shutil.copy(small_pool, tmp_path / "my.jsonl")
        (tmp_path / "trusted.jsonl").write_text(
            "".join(small_pool.read_text(encoding="utf-8").splitlines(keepends=True)[-12:]), encoding="utf-8"
        )
        shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
        (tmp_path / "runs").symlink_to(shared_runs)
        script = ["set -euo pipefail"]
        for block in blocks(page):
            if block.language == "bash":
                script.append(filled(block.text))
            elif block.language in ("yaml", "python") and block.title:
                (tmp_path / block.title).write_text(filled(block.text), encoding="utf-8")
        return subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
        )

    return run


def environment(folder: Path) -> dict[str, str]:
    """The environment of a page's commands: this Python, this source tree, no Hub, caches in the test's folder."""
    programs = folder / "bin"
    programs.mkdir()
    source = ROOT / "src"
    small = " ".join(f"--set {override}" for override in SMALL)
    for name, call, taking in (
        ("tokenclean", "-m tokenclean", "run|plan|curate"),
        ("torchrun", "-m torch.distributed.run", "*"),
        ("python", "", "-"),
    ):
        lines = (
            "#!/bin/sh",
            f'case "$1" in {taking}) set -- "$@" {small} ;; esac',
            # A page may set PYTHONPATH to a folder of its own.
            f'PYTHONPATH="${{PYTHONPATH:-}}:{source}" exec {sys.executable} {call} "$@"',
        )
        (programs / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
