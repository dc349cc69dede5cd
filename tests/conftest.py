"""Fixtures that several rooms share: small random models, their tokenizer, the real 135M model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a model folder (converted once into the cache)."""
    from tokenclean.models.convert import smollm2_folder

    return smollm2_folder()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_folder: Path):
    from tokenclean.models.load import load_tokenizer

    return load_tokenizer(str(smollm2_folder))


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path):
    """The real model, float32; tests must leave its weights as they are."""
    from tokenclean.models.load import load_model

    return load_model(str(smollm2_folder))
