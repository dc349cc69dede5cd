"""Fixtures that several rooms share: small random models, their tokenizer, the real 135M model."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("side by side", deadline=None)  # other workers take their share of the machine
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)  # of `make test`; 100 in `make test-all`
hypothesis.settings.load_profile("side by side")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHROMIUM = os.environ.get("TOKENCLEAN_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SHORT_LINE = 700  # characters of a row's JSON


def pytest_collection_finish() -> None:
    """Objects of imported libraries stay: without them a collection takes a hundredth, and runs collect often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; the test is skipped where there is none.

    Only as long as a module needs it: while it is open its event loop runs, and other tests want one of their own.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or TOKENCLEAN_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        # The sandbox of Chromium asks for rights that containers do not give.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def serious_faults() -> Callable[[Any], list[str]]:
    """A function that gives what axe-core finds wrong on a page, serious and critical."""
    pytest.importorskip("axe_playwright_python", reason="needs the package axe-playwright-python, which has axe-core")
    script = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")

    def found(page: Any) -> list[str]:
        if not page.evaluate("typeof axe === 'object'"):
            page.evaluate(script)
        violations = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            f"{fault['id']}: {node['html'][:200]} {node['failureSummary']}"
            for fault in violations
            for node in fault["nodes"]
            if fault["impact"] in ("serious", "critical")
        ]

    return found


@pytest.fixture(scope="module")
def one_thread():
    """On a shared machine, threads that spin for each other cost small models many times what they gain."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a model folder (converted once into the cache)."""
    from tokenclean.models.loading.convert import smollm2_folder

    return smollm2_folder()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_folder: Path):
    from tokenclean.models.loading.load import load_tokenizer

    return load_tokenizer(str(smollm2_folder))


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path):
    """The real model, float32; tests must leave its weights as they are."""
    from tokenclean.models.loading.load import load_model

    return load_model(str(smollm2_folder))


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level BPE tokenizer of 600 tokens, as a model folder."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tokenclean.experiment.demo import pool_path

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(pool_path().read_text(encoding="utf-8").splitlines()[:100], trainer)
    backend.add_special_tokens([AddedToken("</s>", normalized=False)])
    folder = tmp_path_factory.mktemp("models") / "tiny"
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_model_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with other weights and the same tokenizer: a reference that is given."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def coarse_model_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with as many tokens of another tokenizer, trained on other texts: a reference that is not of the
    base's family."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from tokenclean.experiment.demo import pool_path

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=590, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(pool_path().read_text(encoding="utf-8").splitlines()[300:], trainer)
    backend.add_special_tokens([AddedToken("</s>", normalized=False)])
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path_factory.mktemp("models") / "coarse"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short rows of the shipped pool, as a file of its own."""
    from tokenclean.experiment.demo import pool_path

    path = tmp_path_factory.mktemp("pools") / "small.jsonl"
    lines = pool_path().read_text(encoding="utf-8").splitlines()
    short = [line for line in lines if len(line) < SHORT_LINE and line.isascii()]
    path.write_text("\n".join(short[:60]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up questions of every benchmark, in the layout of ``evaluation.data_dir``."""
    from benchmark_data import write_benchmarks

    return write_benchmarks(tmp_path_factory.mktemp("eval"))
