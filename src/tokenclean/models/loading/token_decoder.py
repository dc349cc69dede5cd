"""A tokenizer for decoding alone: from its ``tokenizer.json`` where that is all it needs, without torch."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from tokenclean.tokens.encoding import fast_backend


def load_decoder(name: str, revision: str | None = None, trusted: tuple[str, ...] = ()) -> Tokenizer:
    """The Rust tokenizer of a model, a folder or Hub id.

    Read from a ``tokenizer.json`` in the folder or the Hub's cache; through transformers, which takes seconds to load,
    where there is none or its configuration adds tokens to it. Raises ModelError as ``load_tokenizer``.
    """
    if (file := _tokenizer_file(name, revision)) is not None:
        tokenizer = Tokenizer.from_file(str(file))
        if _further_tokens(file.with_name("tokenizer_config.json")) <= set(tokenizer.get_added_tokens_decoder()):
            return tokenizer
    from tokenclean.models.loading.load import load_tokenizer, resolve_source

    return fast_backend(load_tokenizer(resolve_source(name, revision=revision, trusted=trusted)))


def _tokenizer_file(name: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        file = Path(name) / "tokenizer.json"
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
    except HFValidationError:  # no Hub id
        return None
    return Path(found) if isinstance(found, str) else None


def _further_tokens(configuration: Path) -> set[int]:
    """Ids of the tokens that the configuration of a tokenizer adds."""
    if not configuration.is_file():
        return set()
    return set(map(int, json.loads(configuration.read_text(encoding="utf-8")).get("added_tokens_decoder", {})))
