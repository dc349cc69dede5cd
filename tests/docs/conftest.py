"""What replaces the names on the how-to pages, in one place."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_blocks import ROOT, blocks
from page_shell import PageShell, environment

from model_server import NAME, ModelServer
from rating_server import RatingServer, Reply

sys.path.insert(0, str(ROOT / "tests" / "downstream"))


@pytest.fixture
def rater(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server that rates each conversation by its length, and as a critic names its longest sentence."""

    def reply(request) -> Reply:
        _, *listed = request.text.split("The sentences of its answers:")
        if listed:
            sentences = re.findall(r"^(\d+)\. (.*)$", listed[0], re.MULTILINE)
            number, _ = max(sentences, key=lambda sentence: (len(sentence[1]), sentence[1]))
            return Reply(f'{{"wrong": [{{"number": {number}, "reason": "long"}}]}}')
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
def model_server(other_model_folder: Path) -> Iterator[str]:
    """Address of a server of a model with the tokenizer of the tiny one."""
    with ModelServer(other_model_folder, "vllm").serving() as server:
        yield server.url


@pytest.fixture
def page_shell(
    small_pool: Path, tiny_model_folder: Path, embedding_folder: Path, rater: str, model_server: str, tmp_path: Path
) -> PageShell:
    """The shell in a folder with ``my.jsonl``, ``trusted.jsonl`` and the recipes."""
    shutil.copy(small_pool, tmp_path / "my.jsonl")
    (tmp_path / "trusted.jsonl").write_text(
        "".join(small_pool.read_text(encoding="utf-8").splitlines(keepends=True)[-12:]), encoding="utf-8"
    )
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    names = {
        "HuggingFaceTB/SmolLM2-135M": str(tiny_model_folder),
        "BAAI/bge-large-en-v1.5": str(embedding_folder),
        "https://api.openai.com/v1": rater,
        "http://localhost:8000/v1": model_server,
        "meta-llama/Llama-3.1-70B-Instruct": NAME,
    }
    return PageShell(tmp_path, names, environment(tmp_path))


@pytest.fixture
def run_page(page_shell: PageShell, shared_runs: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A function that writes a page's files and runs its ``bash`` blocks, one after another, in the test's folder."""
    (page_shell.folder / "runs").symlink_to(shared_runs)

    def run(page: str) -> subprocess.CompletedProcess[str]:
        page_shell.write_files(page)
        return page_shell.run(*(block.text for block in blocks(page) if block.language == "bash"))

    return run
