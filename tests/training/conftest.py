from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from small_llama import VOCABULARY, small_llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A small random model with a tokenizer, as a folder; tests must leave its files as they are."""
    folder = tmp_path_factory.mktemp("base")
    small_llama().save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hashes_of() -> Callable[[Path], dict[str, str]]:
    """Names and hashes of all files below a folder."""
    return lambda folder: {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
