"""DS² over a recipe's pool, as stages of its run folder: embeddings, neighbours, and each rater's corrected labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from tokenclean.ds2.embedding import embed, embedding_weights, text_of
from tokenclean.ds2.label_correction import NEIGHBOURS, Curation, correct_labels, detect_errors
from tokenclean.ds2.neighbours import Neighbours, nearest_neighbours, needed_neighbours
from tokenclean.ds2.ratings import CLASSES, Ratings, load_ratings
from tokenclean.ds2.selection import long_tail_scores, select_best
from tokenclean.ds2.transition_matrix import Transition, count_consensus, estimate_transition
from tokenclean.errors import PoolError, RecipeError
from tokenclean.executors import LOCAL, Executor
from tokenclean.models.device import device_for
from tokenclean.observer import Observer
from tokenclean.pool import Pool
from tokenclean.recipe import CurationSettings, Recipe
from tokenclean.store import STAGE_VERSIONS, Stage, Store, array_hash

_VECTORS, _NEIGHBOURS = "vectors.safetensors", "neighbours.safetensors"
_LABELS, _TRANSITION = "labels.parquet", "transition.json"


@dataclass(frozen=True)
class CuratedRatings(Curation):
    """One rater's labels over N rows, classes 0 … 5: a ``Curation`` and what it was made from.

    ``raw``: labels before it, int64 (N,); ``is_parsed``: bool (N,), False where no answer could be read;
    ``transition``: the rater's score transition matrix.
    """

    rater: str
    raw: np.ndarray
    is_parsed: np.ndarray
    transition: Transition


@dataclass(frozen=True)
class CuratedPool:
    """``pool``: all its rows; ``ratings``: every rater's, the one that selects first; ``long_tail``: float64 (N,);
    ``neighbours`` of the rows."""

    pool: Pool
    ratings: tuple[CuratedRatings, ...]
    long_tail: np.ndarray
    neighbours: Neighbours

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
    pool: Pool, recipe: Recipe, store: Store, observer: Observer, executor: Executor = LOCAL
) -> CuratedPool:
    """The pool's rows with every rater's labels corrected; stages that the run folder holds are reused.

    ``executor``: who embeds the rows; what follows takes this process little time.

    Raises RecipeError without ``pool.curation``, PoolError for a pool that is too small or tokenized already, and the
    errors of ``load_ratings``.
    """
    settings = recipe.pool.curation
    if settings is None:
        raise RecipeError("pool.curation: DS² needs the pool's ratings; name their file and column there")
    if any(row.tokens is not None for row in pool):
        raise PoolError("pool.curation: rows that are tokenized already have no text to embed")
    if len(pool) <= max(settings.neighbours, NEIGHBOURS):
        raise PoolError(f"pool.curation: {len(pool)} rows are too few for {settings.neighbours} neighbours of each")
    ids = [row.id for row in pool]
    raw = [load_ratings(rating, ids) for rating in settings.ratings]  # all faults are reported before any work
    work = _Curating(settings, recipe, store, observer, executor)
    found = work.find_neighbours(len(pool), work.embed(pool))
    neighbours = Neighbours(**load_file(found.path / _NEIGHBOURS))
    curated = tuple(work.correct(ratings, neighbours, found) for ratings in raw)
    return CuratedPool(pool, curated, long_tail_scores(neighbours, settings.neighbours), neighbours)


@dataclass(frozen=True)
class _Curating:
    """The three kinds of stages that curate one pool."""

    settings: CurationSettings
    recipe: Recipe
    store: Store
    observer: Observer
    executor: Executor

    def embed(self, pool: Pool) -> Stage:
        settings = self.settings
        texts = [text_of(row) for row in pool]
        hashed = hashlib.sha256()
        for text in texts:
            hashed.update(hashlib.sha256(text.encode()).digest())
        inputs = {
            "texts": hashed.hexdigest(),
            "model": embedding_weights(settings.embedding_model),
            "max_tokens": settings.embedding_tokens,
        }

        def make(folder: Path) -> dict[str, object]:
            self.observer.note(f"embedding {len(texts):,} conversations by {settings.embedding_model}")
            vectors = embed(
                texts,
                settings.embedding_model,
                device=device_for(self.executor, self.recipe.model.device),
                max_tokens=settings.embedding_tokens,
                progress=self.observer.progress("embed", "row"),
                executor=self.executor,
            )
            save_file({"vectors": vectors}, folder / _VECTORS)
            return {"what": f"{len(vectors)} vectors of {vectors.shape[1]} numbers"}

        return self.store.stage("embeddings", STAGE_VERSIONS["embeddings"], inputs, make)

    def find_neighbours(self, count: int, embeddings: Stage) -> Stage:
        searched = needed_neighbours(count, max(self.settings.neighbours, NEIGHBOURS))

        def make(folder: Path) -> dict[str, object]:
            self.observer.note(f"searching the {searched} nearest of {count:,} conversations each")
            found = nearest_neighbours(load_file(embeddings.path / _VECTORS)["vectors"], searched)
            save_file({"indices": found.indices, "distances": found.distances}, folder / _NEIGHBOURS)
            return {"what": f"{searched} nearest of {count} rows"}

        inputs = {"embeddings": embeddings.key, "count": searched}
        return self.store.stage("neighbours", STAGE_VERSIONS["neighbours"], inputs, make)

    def correct(self, ratings: Ratings, neighbours: Neighbours, found: Stage) -> CuratedRatings:
        settings, seed, raw = self.settings, self.recipe.pool_seed, ratings.classes
        inputs = {
            "neighbours": found.key,
            "labels": array_hash(raw),
            "count": settings.neighbours,
            "minimum_confidence": settings.minimum_confidence,
            "seed": seed,
        }

        def make(folder: Path) -> dict[str, object]:
            self.observer.note(f"correcting the ratings of {ratings.rater}")
            transition = estimate_transition(count_consensus(raw, neighbours, CLASSES, seed=seed))
            detection = detect_errors(raw, neighbours, transition, count=settings.neighbours, seed=seed)
            curation = correct_labels(raw, detection, minimum_confidence=settings.minimum_confidence)
            pq.write_table(pa.table(dict(vars(curation))), folder / _LABELS)
            matrices = {"matrix": transition.matrix.tolist(), "prior": transition.prior.tolist()}
            (folder / _TRANSITION).write_text(json.dumps({**matrices, "residual": transition.residual}) + "\n")
            changed = int((curation.labels != raw).sum())
            return {"what": f"ratings of {ratings.rater}", "changed": changed, "errors": int(curation.is_error.sum())}

        stage = self.store.stage("curation", STAGE_VERSIONS["curation"], inputs, make)
        table = pq.read_table(stage.path / _LABELS)
        columns = {name: table[name].to_numpy() for name in table.column_names}
        stored = json.loads((stage.path / _TRANSITION).read_text())
        transition = Transition(np.array(stored["matrix"]), np.array(stored["prior"]), stored["residual"])
        return CuratedRatings(
            **columns, rater=ratings.rater, raw=raw, is_parsed=ratings.is_parsed, transition=transition
        )
