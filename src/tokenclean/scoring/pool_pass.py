"""Losses of a pool larger than memory: shard by shard, in stages that a stopped pass finds again, shared by processes.

Each shard goes through three stages: its tokens, its losses under the base, its losses under the reference. The pool is
read once for each model, and later shards are tokenized while earlier ones are scored. Where the pool is cut depends
on the rows alone, and a shard's losses on nothing but the shard, so the table is the same however often the pass was
stopped and however many processes shared it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tokenclean.errors import PoolError
from tokenclean.executors import LOCAL, Executor, Item
from tokenclean.models.loading.load import ModelSource, check_two_models, source_fingerprint
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.observer import Observer
from tokenclean.pool import (
    SHARD_CHARACTERS,
    Conversation,
    Intake,
    PoolSurvey,
    RejectedRow,
    check_usable,
    join_rejected,
    read_rejected,
    shard_stream,
    stream_sources,
)
from tokenclean.recipe import ServedModel, SourceSettings, TokensSettings
from tokenclean.scoring.model_losses import ScoringPolicy
from tokenclean.scoring.prefetch import read_ahead
from tokenclean.scoring.scored_table import TableCounts, write_scored_table
from tokenclean.scoring.scorer import check_same_policy
from tokenclean.scoring.served.scorer import ServedScorer
from tokenclean.scoring.served.shards import ServedShards
from tokenclean.scoring.stored_losses import (
    LossShard,
    LossShards,
    PassShard,
    ShardLosses,
    require_losses,
    scores_in_pairs,
)
from tokenclean.scoring.stored_tokens import PlannedShard, RowsShard, TokenShard, TokenShards
from tokenclean.store import STAGE_VERSIONS, Store, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PoolToScore:
    """A pool and how it is cut into shards.

    ``survey``: what ``survey_pool`` counted with the same ``shard_characters``; rank 0 has it, the others have None.
    ``listing``: the file in which the survey listed the rejected rows; rows without any target are added to it.
    """

    sources: tuple[SourceSettings, ...]
    survey: PoolSurvey | None
    listing: Path
    shard_characters: int = SHARD_CHARACTERS
    max_rejected_share: float = 0.05


@dataclass(frozen=True)
class PassOutcome:
    """A finished pass. ``made``/``found``: stages of losses that any process computed, and that existed before.
    ``intake``: what became of the pool's rows. ``folder``: where the stages are."""

    table: TableCounts
    made: int
    found: int
    intake: Intake
    folder: Path


def score_pool(
    pool: PoolToScore,
    models: Mapping[str, ModelSource | ServedModel],
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    *,
    tokenization: TokensSettings,
    policy: ScoringPolicy,
    device: str = "cpu",
    executor: Executor = LOCAL,
    observer: Observer,
) -> PassOutcome | None:
    """Write the losses of a whole pool, and its scores, as one table, in memory that does not grow with the pool.

    ``models``: ``base`` and optionally ``reference``, which may be served. ``tokenizer``: the base's. The stages are in
    ``<output>.shards``; finished ones are not computed again. ``executor``: where shards are computed, on the kind of
    ``device`` that it gave. Of several processes each scores its share; the first then writes the table, and the others
    get None.

    Raises PoolError where more than ``pool.max_rejected_share`` of the rows cannot be used, PolicyMismatchError where
    base and reference losses were not computed in the same way, RunFolderError where another run holds the folder or
    the disk cannot be written, RankError where another process has ended; and as ``tokenize_pool`` and ``Scorer.score``
    do.
    """
    processes = executor.processes
    store = Store(output.with_suffix(".shards"), note=observer.note)
    with store.lock() if processes.is_first else nullcontext():
        # This is a meeting too: once past it, every process knows that rank 0 holds the lock and has cleared leftovers.
        rows, rejected, shards, characters, weighted = processes.all_reduce_sum(
            (0,) * 5 if pool.survey is None else pool.survey.counts
        )
        survey = pool.survey or PoolSurvey(rows, rejected, shards, characters, weighted)
        fingerprints = {
            name: fingerprint(source.identity) if isinstance(source, ServedModel) else source_fingerprint(source)
            for name, source in models.items()
        }
        if "reference" in models:
            check_two_models(fingerprints["base"], fingerprints["reference"])
        cache = ModelCache(device)
        in_pairs = "reference" in models and scores_in_pairs(policy.precision, device, *models.values())
        make_stage = partial(store.stage, "losses", STAGE_VERSIONS["losses"])

        def losses_under(name: str, source: ModelSource | ServedModel) -> ShardLosses:
            identity = {"model": [fingerprints[name], ""]}
            if isinstance(source, ServedModel):
                return ServedShards(make_stage, ServedScorer(source, tokenizer, observer.note), identity, store.root)
            of_device = {"device": device.partition(":")[0]}
            return LossShards(
                make_stage,
                cache.using,
                source,
                {**identity, **of_device},
                policy,
                longest_row=tokenization.max_length,
                expected_tokens=survey.expected_tokens,
                base={"model": [fingerprints["base"], ""], **of_device} if in_pairs else None,
            )

        losses = {
            name: losses_under(name, source) for name, source in models.items() if not in_pairs or name == "reference"
        }
        base = models["base"]
        tokens = TokenShards(tokenizer, tokenization, store, None if isinstance(base, ServedModel) else base)
        one_pass = _Pass(pool, survey, tokens, losses, executor, observer)
        one_pass.score()
        cache.clear()
        made, found = processes.all_reduce_sum([one_pass.made, one_pass.found])
        if not processes.is_first:
            return None
        intake = one_pass.list_unusable()
        check_usable(intake, pool.max_rejected_share, listing=pool.listing if intake.set_aside else None)
        described = {name: {**_name_of(source), "fingerprint": fingerprints[name]} for name, source in models.items()}
        passed = {"precision": policy.precision, "pack_tokens": policy.pack_tokens}
        metadata = {**tokenization.model_dump(), **passed, "models": described}
        table = write_scored_table(one_pass.scored(), policy.columns, metadata, output, has_weights=survey.weighted > 0)
        return PassOutcome(table, made, found, intake, store.root)


def _name_of(source: ModelSource | ServedModel) -> dict[str, object]:
    if isinstance(source, ServedModel):
        return {"name": source.model, "revision": None}
    return {"name": str(source), "revision": source.revision}


@dataclass
class _Pass:
    """One process's part in a pass, and what the first process then does with all parts.

    ``made``, ``found``: stages of losses that this process computed, and that it found.
    """

    pool: PoolToScore
    survey: PoolSurvey
    tokens: TokenShards
    losses: Mapping[str, ShardLosses]
    executor: Executor
    observer: Observer
    plan: list[PlannedShard] = field(default_factory=list)
    made: int = 0
    found: int = 0

    def score(self) -> None:
        """Compute the missing losses of this process's shards, under one model after another."""
        for name, losses in self.losses.items():
            self._score_with(name, losses)
            losses.unload()  # else its weights would stay in memory beside the next model's

    def scored(self) -> Iterator[tuple[TokenShard, dict[str, LossShard]]]:
        """Every shard of the pool with its losses, whichever process computed them; for the first process."""
        for plan in self.plan:
            shard = self.tokens.find(plan)
            found = {name: self._find(shard.tokens_hash, plan.number, name) for name in self.losses}
            if "base" not in found:  # scored in pairs
                found = {"base": found["reference"].of_base, **found}
            yield shard, found

    def list_unusable(self) -> Intake:
        """Add all rows without any target to the listing; what became of all rows. For the first process.

        Raises PoolError where they are too many, and where the pool has changed since it was surveyed.
        """
        if len(self.plan) != self.survey.shards:
            raise PoolError(
                f"{self.pool.sources[0].place}: the pool changed while it was scored ({self.survey.shards} shards at "
                f"first, then {len(self.plan)}); give the command again when nothing writes to it any more"
            )
        unusable = _Unusable(self.pool, self.survey)
        for plan in self.plan:
            unusable.add(self.tokens.find(plan))
        return unusable.write()

    def _score_with(self, name: str, losses: ShardLosses) -> None:
        total, made_before = self.survey.characters, self.made
        show = self.observer.progress(f"score with {name}", "character")

        def described(shard: TokenShard) -> PassShard:
            plan = shard.plan
            what = f"shard {plan.number + 1} of {self.survey.shards} under {name}"
            ids = lambda: shard.table().ids  # noqa: E731
            return Item(shard.tokens_hash, plan.number, shard.tokens, what, ids, plan.before, plan.characters)

        with self._tokenizing() as shards:
            for shard, scored in self.executor.compute(losses, map(described, shards), show, total):
                self.made += not scored.stage.was_reused
                self.found += scored.stage.was_reused
                if name != "base" and "base" in self.losses:  # now and not in the end, when all of the time is spent
                    check_same_policy(self._find(shard.key, shard.number, "base").policy, scored.policy)
        if self.made > made_before:
            show(total, total)

    def _find(self, tokens_hash: str, number: int, name: str) -> LossShard:
        return require_losses(self.losses[name], tokens_hash, f"shard {number + 1} under {name}")

    @contextmanager
    def _tokenizing(self) -> Iterator[Iterator[TokenShard]]:
        """This process's shards, tokenized: while earlier ones are scored, by a thread here, or by the actors that
        score, which this process only keeps supplied."""
        if self.executor.actors_device is None:
            with read_ahead(self._token_shards) as shards:
                yield shards
        else:
            with closing(self._token_shards(lambda: None)) as shards:
                yield shards

    def _token_shards(self, check: Callable[[], None]) -> Generator[TokenShard]:
        """This process's shards, tokenized; ``check`` may end it at any row.

        Raises PoolError as soon as too many of this process's own rows have no target.
        """
        unusable, total = _Unusable(self.pool, self.survey), self.survey.characters
        for _, shard in self.executor.compute(self.tokens, self._planned(check), lambda done, of: check(), total):
            unusable.add(shard)
            yield shard

    def _planned(self, check: Callable[[], None]) -> Iterator[RowsShard]:
        """The shards that this process tokenizes. The first process plans all shards."""
        self.plan.clear()
        before, processes = 0, self.executor.processes
        rows = _usable(stream_sources(self.pool.sources, is_first_reading=False), check)
        for number, shard_rows in enumerate(shard_stream(rows, self.pool.shard_characters)):
            plan = self.tokens.plan(number, before, shard_rows)
            before += plan.characters
            if processes.is_first:
                self.plan.append(plan)
            if processes.owns(number):
                yield _rows_shard(plan, shard_rows)


class _Unusable:
    """What became of the pool's rows, including those without any target in the shards added so far."""

    def __init__(self, pool: PoolToScore, survey: PoolSurvey) -> None:
        self._pool, self._survey = pool, survey
        self._intake = survey.intake
        if survey.rows and not survey.intake.rows:  # another process has read the pool
            self._intake = Intake(readable=survey.rows - survey.rejected)
            for row in read_rejected(pool.listing) if survey.rejected else ():
                self._intake.add(row)
        self._listings = [pool.listing] if survey.rejected else []

    def add(self, shard: TokenShard) -> None:
        """Count the rows of a shard. Raises PoolError, after writing the listing, where too many are unusable."""
        rendered = shard.rendered_rows
        self._intake = self._intake.after_rendering(rendered)
        if not rendered.unusable:
            return
        self._listings.append(shard.unusable)
        if self._counted.faulty_share > self._pool.max_rejected_share:
            check_usable(self.write(), self._pool.max_rejected_share, listing=self._pool.listing)

    def write(self) -> Intake:
        """Add them to the rows that the survey has listed; what became of all rows."""
        if len(self._listings) > bool(self._survey.rejected):
            join_rejected(self._listings, self._pool.listing)
        return self._counted

    @property
    def _counted(self) -> Intake:
        """The counts so far, with the rows of all shards to come counted as usable."""
        return replace(self._intake, rendered=self._intake.readable)


def _rows_shard(plan: PlannedShard, rows: list[Conversation]) -> RowsShard:
    ids = lambda: [row.id for row in rows]  # noqa: E731
    return Item(plan, plan.number, lambda: rows, plan.what, ids, plan.before, plan.characters)


def _usable(rows: Iterable[Conversation | RejectedRow], check: Callable[[], None]) -> Iterator[Conversation]:
    for row in rows:
        check()
        if isinstance(row, Conversation):
            yield row
