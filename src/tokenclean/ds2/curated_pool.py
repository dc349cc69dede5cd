"""DS² over a recipe's pool, as stages of its run folder: embeddings, neighbours, and each rater's corrected labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from tokenclean.ds2 import (
    CLASSES,
    Neighbours,
    Transition,
    correct_labels,
    count_consensus,
    detect_errors,
    estimate_transition,
    long_tail_scores,
    nearest_neighbours,
    select_best,
)
from tokenclean.ds2.embedding import embed, embedding_model, text_of
from tokenclean.ds2.label_correction import NEIGHBOURS
from tokenclean.ds2.neighbours import needed_neighbours
from tokenclean.ds2.ratings import load_ratings
from tokenclean.errors import PoolError, RecipeError
from tokenclean.models.device import resolve_device
from tokenclean.pool import Pool
from tokenclean.recipe import CurationSettings, RatingsSettings, Recipe
from tokenclean.store import Stage, Store, array_hash, file_hash

VERSIONS = {"embeddings": 1, "neighbours": 1, "curation": 1}

_VECTORS, _NEIGHBOURS, _LABELS, _TRANSITION = (
    "vectors.safetensors",
    "neighbours.safetensors",
    "labels.parquet",
    "transition.json",
)


@dataclass(frozen=True)
class CuratedRatings:
    """One rater's labels over N rows, classes 0 … 5.

    ``raw`` and ``labels``: before and after, int64 (N,); ``suggested``, ``is_error``, ``noisy``, ``confidence`` as of
    ``ds2.Curation``; ``is_parsed``: bool (N,), False where no answer could be read; ``transition``: of the rater.
    """

    rater: str
    raw: np.ndarray
    labels: np.ndarray
    suggested: np.ndarray
    is_error: np.ndarray
    noisy: np.ndarray
    confidence: np.ndarray
    is_parsed: np.ndarray
    transition: Transition


@dataclass(frozen=True)
class CuratedPool:
    """``pool``: all its rows; ``ratings``: of every rater, the one that selects first; ``long_tail``: float64 (N,);
    ``neighbours``: of the rows; ``stages``: those that hold it."""

    pool: Pool
    ratings: tuple[CuratedRatings, ...]
    long_tail: np.ndarray
    neighbours: Neighbours
    stages: tuple[Stage, ...]

    def selection(self, count: int, *, rater: int = 0, is_curated: bool = True) -> np.ndarray:
        """Row numbers of the ``count`` best by a rater's labels, the best first."""
        ratings = self.ratings[rater]
        return select_best(ratings.labels if is_curated else ratings.raw, self.long_tail, count)

    @property
    def by_id(self) -> Mapping[str, tuple[int, float]]:
        """Row id -> label of the selecting rater, long-tail score."""
        labels = self.ratings[0].labels.tolist()
        return dict(zip((row.id for row in self.pool), zip(labels, self.long_tail.tolist(), strict=True), strict=True))


def curate_pool(
    pool: Pool,
    recipe: Recipe,
    store: Store,
    *,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, str], Callable[[int, int], None]] = lambda label, unit: lambda done, total: None,
) -> CuratedPool:
    """The pool's rows with every rater's labels corrected, from the run folder where it was made before.

    Raises RecipeError without ``pool.curation``, PoolError for a pool too small or tokenized already, and as
    ``load_ratings`` where a row has no rating.
    """
    settings = recipe.pool.curation
    if settings is None:
        raise RecipeError("pool.curation: DS² needs the pool's ratings; name their file and column there")
    if any(row.tokens is not None for row in pool):
        raise PoolError("pool.curation: rows that are tokenized already have no text to embed")
    if len(pool) <= max(settings.neighbours, NEIGHBOURS):
        raise PoolError(f"pool.curation: {len(pool)} rows are too few for {settings.neighbours} neighbours of each")
    raw = [_labels_of(pool, rating) for rating in settings.ratings]  # faults are told before any work
    embeddings = _embeddings(pool, settings, recipe, store, note, progress)
    found = _neighbours(len(pool), settings, embeddings, store, note)
    neighbours = Neighbours(**load_file(found.path / _NEIGHBOURS))
    curated, stages = [], [embeddings, found]
    for rating, (labels, is_parsed) in zip(settings.ratings, raw, strict=True):
        ratings, stage = _curated(rating.name, labels, is_parsed, settings, recipe, found, neighbours, store, note)
        curated.append(ratings)
        stages.append(stage)
    long_tail = long_tail_scores(neighbours, settings.neighbours)
    return CuratedPool(pool, tuple(curated), long_tail, neighbours, tuple(stages))


def _labels_of(pool: Pool, rating: RatingsSettings) -> tuple[np.ndarray, np.ndarray]:
    """Classes (N,) and which of them come from an answer that could be read."""
    has_number = rating.number_column is not None
    ratings = load_ratings(
        Path(rating.path).expanduser(),
        [row.id for row in pool],
        rating_column=rating.rating_column,
        scale=rating.scale,
        id_column=rating.id_column or (None if has_number else "id"),
        number_column=rating.number_column,
        numbers_from=rating.numbers_from if has_number else None,
        source_column=rating.source_column,
        rater=rating.name,
    )
    return ratings.classes, ratings.is_parsed


def _embeddings(
    pool: Pool, settings: CurationSettings, recipe: Recipe, store: Store, note: Any, progress: Any
) -> Stage:
    texts = [text_of(row) for row in pool]
    hashed = hashlib.sha256()
    for text in texts:
        hashed.update(hashlib.sha256(text.encode()).digest())
    place = embedding_model(settings.embedding_model)
    weights = Path(place) / "model.safetensors"
    inputs = {
        "texts": hashed.hexdigest(),
        "model": file_hash(weights) if weights.is_file() else place,
        "max_tokens": settings.embedding_tokens,
    }

    def make(folder: Path) -> dict[str, Any]:
        note(f"embedding {len(texts):,} conversations by {settings.embedding_model}")
        vectors = embed(
            texts,
            settings.embedding_model,
            device=resolve_device(recipe.model.device),
            max_tokens=settings.embedding_tokens,
            progress=progress("embed", "row"),
        )
        save_file({"vectors": vectors}, folder / _VECTORS)
        return {"what": f"{len(vectors)} vectors of {vectors.shape[1]} numbers"}

    return store.stage("embeddings", VERSIONS["embeddings"], inputs, make)


def _neighbours(count: int, settings: CurationSettings, embeddings: Stage, store: Store, note: Any) -> Stage:
    searched = needed_neighbours(count, max(settings.neighbours, NEIGHBOURS))

    def make(folder: Path) -> dict[str, Any]:
        note(f"searching the {searched} nearest of {count:,} conversations each")
        found = nearest_neighbours(load_file(embeddings.path / _VECTORS)["vectors"], searched)
        save_file({"indices": found.indices, "distances": found.distances}, folder / _NEIGHBOURS)
        return {"what": f"{searched} nearest of {count} rows"}

    return store.stage("neighbours", VERSIONS["neighbours"], {"embeddings": embeddings.key, "count": searched}, make)


def _curated(
    rater: str,
    raw: np.ndarray,
    is_parsed: np.ndarray,
    settings: CurationSettings,
    recipe: Recipe,
    found: Stage,
    neighbours: Neighbours,
    store: Store,
    note: Any,
) -> tuple[CuratedRatings, Stage]:
    inputs = {
        "neighbours": found.key,
        "labels": array_hash(raw),
        "count": settings.neighbours,
        "minimum_confidence": settings.minimum_confidence,
        "seed": recipe.pool_seed,
    }

    def make(folder: Path) -> dict[str, Any]:
        note(f"correcting the ratings of {rater}")
        consensus = count_consensus(raw, neighbours, CLASSES, seed=recipe.pool_seed)
        transition = estimate_transition(consensus)
        detection = detect_errors(raw, neighbours, transition, count=settings.neighbours, seed=recipe.pool_seed)
        found = correct_labels(raw, detection, minimum_confidence=settings.minimum_confidence)
        pq.write_table(pa.table(dict(vars(found))), folder / _LABELS)
        told = {"matrix": transition.matrix.tolist(), "prior": transition.prior.tolist()}
        (folder / _TRANSITION).write_text(json.dumps({**told, "residual": transition.residual}) + "\n")
        changed = int((found.labels != raw).sum())
        return {"what": f"ratings of {rater}", "changed": changed, "errors": int(found.is_error.sum())}

    stage = store.stage("curation", VERSIONS["curation"], inputs, make)
    columns = {name: column.to_numpy() for name, column in _columns(stage.path / _LABELS)}
    told = json.loads((stage.path / _TRANSITION).read_text())
    transition = Transition(np.array(told["matrix"]), np.array(told["prior"]), told["residual"])
    return CuratedRatings(rater, raw, is_parsed=is_parsed, transition=transition, **columns), stage


def _columns(file: Path) -> list[tuple[str, Any]]:
    table = pq.read_table(file)
    return list(zip(table.column_names, table.columns, strict=True))
