"""The rows of a run: training rows, held-out rows and splits, in tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tokenclean.cleaning.shared_schedule import check_base, schedule_parts
from tokenclean.cleaning.token_passages import find_passages
from tokenclean.ds2.selection import select_best
from tokenclean.errors import PoolError, RecipeError
from tokenclean.executors import LOCAL, Executor
from tokenclean.lab.pairs import Pairs, read_pairs
from tokenclean.models.loading.load import ModelSource, load_tokenizer, resolve_source
from tokenclean.pool import Intake, Mixture, Pool, RejectedRow, load_sources
from tokenclean.pool.recipe_pool import (
    LEAST_CHOOSING_ROWS,
    check_rendered,
    leave_out_trusted,
    open_mixture,
    split_choosing,
    split_heldout,
    split_rows,
    take_rows,
)
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.review.review_file import read_review
from tokenclean.review.reviewed_pool import ReviewedPool, review_pool
from tokenclean.selection import select_tokens
from tokenclean.selection.group_scores import group_scores
from tokenclean.selection.ranking import Level
from tokenclean.token_table import multiply_weights
from tokenclean.tokens import TokenizedPool, tokenize_pool
from tokenclean.training.step_plan import SchedulePart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RatedPool(Protocol):
    """A pool with ratings: what DS² has corrected, or for a plan random ones."""

    @property
    def by_id(self) -> Mapping[str, tuple[int, float]]:
        """Row id -> curated label, long-tail score."""
        ...

    def selection(self, count: int) -> np.ndarray:
        """Row numbers of the ``count`` best."""
        ...


@dataclass(frozen=True)
class RunData:
    """``tokens``: the training rows, of ``pool``; ``heldout``: rows on which models are compared and that nothing is
    trained on, of ``heldout_pool``. ``intake``: what became of all rows that were read. ``rated``: the pool's ratings;
    None where the recipe names none. ``trusted_ids``: the training rows of ``cleaning.trusted``. ``review``: what
    people decided on the training rows (``pool.review``). ``pairs``: those of ``evaluation.pairs``. ``choosing``: rows
    by which the run chooses (``Recipe.chooses``), on which nothing is reported: trusted rows, else a part of the
    held-out ones, which is then no part of ``heldout``; None where nothing is chosen, or they would be too few."""

    recipe: Recipe
    base_source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    pool: Pool
    heldout_pool: Pool
    tokens: TokenizedPool
    heldout: TokenizedPool
    intake: Intake
    rated: RatedPool | None = None
    trusted_ids: frozenset[str] = frozenset()
    review: ReviewedPool | None = None
    pairs: Pairs | None = None
    choosing: TokenizedPool | None = None

    @property
    def rejected(self) -> tuple[RejectedRow, ...]:
        """All rows set aside: those that could not be read, then those without a target."""
        return (*self.pool.rejected, *self.tokens.unusable, *self.heldout.unusable)

    @cached_property
    def splits(self) -> list[np.ndarray]:
        """Rows of D̃_0 … D̃_T (§4.3.2); D̃_0 are the trusted rows, where there are any."""
        first = self.trusted if len(self.trusted) else None
        if self.recipe.cleaning.warmup == "ds2":
            first = self.best_rated
        return split_rows(self.tokens.sources, self.recipe, first)

    @cached_property
    def parts(self) -> list[SchedulePart | None]:
        """What the training on each split takes of the one schedule over all rounds (``cleaning.adapters: one``); None
        where it has a schedule of its own."""
        return schedule_parts(self.recipe, self.tokens, self.splits)

    @cached_property
    def trusted(self) -> np.ndarray:
        """The trusted training rows, ascending; empty without ``cleaning.trusted``."""
        return np.array([row for row, id in enumerate(self.tokens.ids) if id in self.trusted_ids], dtype=np.int64)

    @cached_property
    def reference_rows(self) -> np.ndarray:
        """The trusted rows that warm up the reference of a trial, ascending: those by which nothing is chosen."""
        choosing = frozenset(() if self.choosing is None else self.choosing.ids)
        return np.array([row for row in self.trusted if self.tokens.ids[row] not in choosing], dtype=np.int64)

    def with_cleaning(self, **values: object) -> RunData:
        """The same rows under a recipe with other ``values`` in its section ``cleaning``."""
        cleaning = self.recipe.cleaning.model_copy(update=values)
        return replace(self, recipe=self.recipe.model_copy(update={"cleaning": cleaning}))

    def select(self, scores: Ragged | None, level: Level) -> Ragged:
        """The top ``cleaning.proportion`` of the response tokens, ranked as ``select_tokens`` does. Trusted rows are
        kept whole, and only the others are ranked."""
        labels = self.tokens.is_response
        is_trusted = np.repeat(np.isin(np.arange(len(self.tokens)), self.trusted), labels.lengths)
        kept = select_tokens(
            scores,
            labels.with_values(labels.values & ~is_trusted),
            proportion=self.recipe.cleaning.kept_proportion,
            level=level,
            sources=self.tokens.sources,
            seed=self.recipe.seed,
        )
        return kept.with_values(kept.values | (labels.values & is_trusted))

    def ranked_scores(self, scores: Ragged, rows: np.ndarray | None = None) -> Ragged:
        """The scores by which tokens are ranked: their own, or those of their ``cleaning.unit`` (``group_scores``).
        ``rows``: the training rows to which they belong; all by default."""
        if self.recipe.cleaning.unit == "token":
            return scores
        return group_scores(scores, self._unit if rows is None else self._unit.take(rows))

    @cached_property
    def _unit(self) -> Ragged:
        """Number of each token's sentence, below 0 outside of sentences, or of its row; int64."""
        if self.recipe.cleaning.unit == "sentence":
            return find_passages(self.tokens, self.pool).sentence
        return self.tokens.is_response.with_values(self.tokens.is_response.row_of_value())

    @cached_property
    def best_rated(self) -> np.ndarray:
        """The ``cleaning.ds2_rows`` best-rated training rows by DS², ascending. Raises RecipeError without ratings, or
        where that would be all rows."""
        count, rows = self.recipe.cleaning.ds2_rows, len(self.tokens)
        if count >= rows:
            raise RecipeError(
                f"cleaning.ds2_rows: the {count:,} best-rated of {rows:,} training rows are all of them; set it lower"
            )
        return np.sort(select_best(*self._ratings, count))

    @cached_property
    def _ratings(self) -> tuple[np.ndarray, np.ndarray]:
        """Curated label, int64, and long-tail score of each training row; RecipeError without ratings."""
        if self.rated is None:
            raise RecipeError("pool.curation: DS² needs the pool's ratings; name their file and column there")
        by_id = self.rated.by_id
        labels, long_tail = zip(*(by_id[row] for row in self.tokens.ids), strict=True)
        return np.array(labels, dtype=np.int64), np.array(long_tail)

    def weighted(self, weights: Ragged) -> Ragged:
        """Token weights of the training rows times the data's own loss weights, and with ``cleaning.sample_weights:
        rating`` times the row's curated label + 1, scaled to a mean of 1 over the rows. A token to unlearn has the
        data's weight, which no strategy changes; tokens that people decided have the weight that they gave."""
        if self.tokens.weight is not None:
            weights = multiply_weights(weights, self.tokens.weight)
        if self.recipe.cleaning.sample_weights == "rating":
            of_row = self._ratings[0] + 1.0
            factors = np.repeat(of_row / of_row.mean(), weights.lengths)
            weights = weights.map_values(lambda values: (values * factors).astype(np.float32))
        return weights if self.review is None else self.review.apply(weights)

    def fix_labels(self, kept: Ragged) -> Ragged:
        """Bool labels of the training rows, with what people dropped and kept as they decided."""
        return kept if self.review is None else self.review.fix_labels(kept)

    def indices(self, rows: np.ndarray) -> np.ndarray:
        """Indices of all tokens of training ``rows`` into the flat columns, int64."""
        offsets = self.tokens.input_ids.offsets
        return np.concatenate([np.arange(int(offsets[row]), int(offsets[row + 1])) for row in rows])


def read_run_data(
    recipe: Recipe,
    rate: Callable[[Pool], RatedPool],
    *,
    listing: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
    executor: Executor = LOCAL,
) -> RunData:
    """Read the recipe's pool, filter and draw rows as it says, hold some out, and tokenize.

    ``rate``: gives the pool's ratings, called where the recipe has a ``pool.curation`` section. ``listing``: where rows
    that cannot be used are listed if there are too many. ``executor``: who computes signatures for near-duplicates. No
    model is loaded. Raises PoolError where more than ``pool.max_rejected_share`` of the rows cannot be used.
    """
    mixture = open_mixture(recipe, listing=listing, note=note, executor=executor)
    pool, rated = mixture.pool, None
    if (settings := recipe.pool.curation) is not None:
        rated = rate(pool)
        if settings.rows is not None and settings.rows < len(pool):
            pool = pool.take(np.sort(rated.selection(settings.rows)))
    trusted = None
    if recipe.cleaning.trusted is not None:
        trusted = load_sources([recipe.cleaning.trusted])
        for row in (*trusted, *trusted.rejected):
            mixture.intake.add(row)
        pool = leave_out_trusted(pool, trusted, note)
    training, heldout = split_heldout(take_rows(pool, recipe), recipe)
    data = tokenize_run_data(recipe, training, heldout, trusted, mixture=mixture, rated=rated, listing=listing)
    if recipe.evaluation.pairs is not None:
        reported = frozenset(data.heldout.ids)  # by the others something is chosen
        used = (*data.pool, *(row for row in heldout if row.id not in reported))
        data = replace(data, pairs=read_pairs(recipe.evaluation.pairs, used, note))
    return data


def tokenize_run_data(
    recipe: Recipe,
    pool: Pool,
    heldout_pool: Pool,
    trusted: Pool | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    mixture: Mixture | None = None,
    rated: RatedPool | None = None,
    listing: Path | None = None,
) -> RunData:
    """The given training and held-out rows in tokens; ``trusted`` rows are further training rows.

    ``heldout_pool``: may be empty where nothing is compared on held-out rows.

    ``mixture``: what the other rows were taken from; by default they are all there is. Raises ModelError for a base
    that the recipe cannot use, PoolError where nothing can be trained.
    """
    source = resolve_source(recipe.model.base, revision=recipe.model.revision, trusted=recipe.model.trust_remote_code)
    check_base(recipe, source)
    tokenizer = tokenizer or load_tokenizer(source)
    if trusted is not None:
        pool = replace(pool, conversations=(*pool, *trusted), rejected=(*pool.rejected, *trusted.rejected))
    tokens, heldout = (tokenize_pool(p, tokenizer, **recipe.tokens.model_dump()) for p in (pool, heldout_pool))
    mixture = mixture or Mixture(pool, (), Intake.of((*pool, *heldout_pool, *pool.rejected)))
    intake = check_rendered(mixture, recipe, tokens.rendered_rows, heldout.rendered_rows, listing=listing)
    review = _read_review(recipe, tokens, pool, heldout)
    choosing = None
    if recipe.chooses and trusted is None:
        heldout_pool, heldout, choosing = _split_heldout(heldout_pool, heldout, recipe.pool_seed)
    for name, part in (("training", tokens), ("held-out", heldout)):
        if (len(part) or name == "training") and not part.is_response.values.any():
            reasons = "; ".join(str(row) for row in part.unusable[:3])
            raise PoolError(f"no {name} row has a response token to train on. {reasons}")
    trusted_ids = frozenset(row.id for row in trusted or ())
    data = RunData(recipe, source, tokenizer, pool, heldout_pool, tokens, heldout, intake, rated, trusted_ids, review)
    data = replace(data, choosing=_choosing_trusted(data) if recipe.chooses and trusted is not None else choosing)
    if trusted is not None and not tokens.is_response.take(data.trusted).values.any():
        raise PoolError("no trusted row has a response token to train on; give other rows in cleaning.trusted")
    return data


def _split_heldout(pool: Pool, tokens: TokenizedPool, seed: int) -> tuple[Pool, TokenizedPool, TokenizedPool | None]:
    """Held-out rows to report on, and the rows to choose by; None where they are too few to be split."""
    usable = np.flatnonzero(tokens.is_response.row_sums())
    choosing, _ = split_choosing(usable, tokens.sources, seed)
    if not len(choosing):
        return pool, tokens, None
    rest = np.setdiff1d(np.arange(len(tokens)), choosing)
    return pool.take(rest), tokens.take(rest), tokens.take(choosing)


def _choosing_trusted(data: RunData) -> TokenizedPool | None:
    """Half of the trusted rows, so that the other half can warm up a reference that has not seen them; all where they
    are too few for that, None where even all are too few."""
    usable = data.trusted[data.tokens.is_response.row_sums()[data.trusted] > 0]
    choosing, rest = split_choosing(usable, data.tokens.sources, data.recipe.pool_seed)
    rows = choosing if len(choosing) else rest
    return data.tokens.take(rows) if len(rows) >= LEAST_CHOOSING_ROWS else None


def _read_review(recipe: Recipe, tokens: TokenizedPool, pool: Pool, heldout: TokenizedPool) -> ReviewedPool | None:
    """The decisions that the recipe names, on the training rows. Raises PoolError for a file that cannot be read."""
    if recipe.pool.review is None:
        return None
    file = read_review(Path(recipe.pool.review).expanduser())
    return review_pool(file, tokens, pool.conversations, heldout=frozenset(heldout.ids))
