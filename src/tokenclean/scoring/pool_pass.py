"""A pass over a pool larger than memory: shard by shard, in stages that a stopped pass finds again, among processes.

Each shard goes through three stages: its tokens, its losses under the base, its losses under the reference. One thread
reads and tokenizes while the shards before are scored. Which shards there are depends on the rows alone, and a shard's
losses on nothing but the shard, so the table is the same however often the pass was stopped and however many processes
shared it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenclean.errors import PoolError
from tokenclean.models.loading.load import ModelSource, check_two_models
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
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.recipe import SourceSettings
from tokenclean.scoring.loss_shards import LossShard, LossShards, ScoringPolicy
from tokenclean.scoring.policy_check import check_same_policy
from tokenclean.scoring.prefetch import read_ahead
from tokenclean.scoring.scored_table import TableCounts, write_scored_table
from tokenclean.scoring.scorer import Progress
from tokenclean.scoring.token_shards import PlannedShard, Tokenization, TokenShard, TokenShards
from tokenclean.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Note = Callable[[str], None]
ShowProgress = Callable[[str, str], Progress]
"""Given a label and a unit, a function of (done, total)."""


@dataclass(frozen=True)
class PoolToScore:
    """A pool and how it is taken apart.

    ``survey``: what ``survey_pool`` has counted with the same ``shard_characters``; rank 0 makes it, and the others
    have None. ``listing``: where it has listed the rows set aside; rows without any target are added there.
    """

    sources: tuple[SourceSettings, ...]
    survey: PoolSurvey | None
    listing: Path
    shard_characters: int = SHARD_CHARACTERS
    max_rejected_share: float = 0.05


@dataclass(frozen=True)
class PassOutcome:
    """A finished pass. ``made``/``found``: stages of losses that any rank computed, and that were there already.
    ``intake``: what became of the pool's rows. ``folder``: of the stages."""

    table: TableCounts
    made: int
    found: int
    intake: Intake
    folder: Path


def score_pool(
    pool: PoolToScore,
    models: Mapping[str, ModelSource],
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    *,
    tokenization: Tokenization,
    policy: ScoringPolicy,
    device: str = "cpu",
    processes: Processes = SINGLE_PROCESS,
    note: Note = logger.warning,
    progress: ShowProgress = lambda label, unit: lambda done, total: None,
) -> PassOutcome | None:
    """Write the losses of a whole pool, and its scores, as one table, in memory that does not grow with the pool.

    ``models``: ``base`` and, maybe, ``reference``. ``tokenizer``: the base's. The stages lie in ``<output>.shards``;
    what is whole there is not made again. Among several ``processes`` each scores its share of the shards; the first
    then writes the table, and the others get None.

    Raises PoolError where more than ``pool.max_rejected_share`` of the rows cannot be used, PolicyMismatchError where
    base and reference losses were not computed in the same way, RunFolderError where another run holds the folder or
    the disk refuses, RankError where another rank has ended; and as ``tokenize_pool`` and ``Scorer.score``.
    """
    store = Store(output.with_suffix(".shards"), note=note)
    with store.lock() if processes.is_first else nullcontext():
        # The sum is rank 0's survey; that the lock is held and old leftovers are cleared is known to all by then.
        survey = _shared_survey(pool.survey, processes)
        losses = LossShards(models, policy, store, device, survey.expected_tokens)
        if "reference" in models:
            check_two_models(losses.fingerprints["base"], losses.fingerprints["reference"])
        one_pass = _Pass(pool, survey, TokenShards(tokenizer, tokenization, store), losses, processes, progress)
        one_pass.score(tuple(models))
        losses.unload()
        made, found = processes.all_reduce_sum(one_pass.counts)
        if not processes.is_first:
            return None
        intake = one_pass.list_unusable()
        check_usable(intake, pool.max_rejected_share, listing=pool.listing if intake.set_aside else None)
        metadata = {
            **asdict(tokenization),
            "precision": policy.precision,
            "pack_tokens": policy.pack_tokens,
            "models": {
                name: {"name": str(source), "revision": source.revision, "fingerprint": losses.fingerprints[name]}
                for name, source in models.items()
            },
        }
        table = write_scored_table(
            one_pass.scored(tuple(models)), policy.columns, metadata, output, has_weights=survey.weighted > 0
        )
        return PassOutcome(table, made, found, intake, store.root)


def _shared_survey(survey: PoolSurvey | None, processes: Processes) -> PoolSurvey:
    """The first rank's survey, of which the others get the numbers."""
    rows, rejected, shards, characters, weighted = processes.all_reduce_sum(
        (0,) * 5 if survey is None else survey.counts
    )
    return survey or PoolSurvey(rows, rejected, shards, characters, weighted)


class _Pass:
    """One rank's part in a pass, and what the first rank then does with all parts."""

    def __init__(
        self,
        pool: PoolToScore,
        survey: PoolSurvey,
        tokens: TokenShards,
        losses: LossShards,
        processes: Processes,
        progress: ShowProgress,
    ) -> None:
        self._pool, self._survey, self._processes, self._progress = pool, survey, processes, progress
        self._tokens, self._losses = tokens, losses
        self._plan: list[PlannedShard] = []
        self._was_made: dict[str, bool] = {}

    @property
    def counts(self) -> tuple[int, int]:
        """Stages of losses that this rank made, and that it found."""
        made = sum(self._was_made.values())
        return made, len(self._was_made) - made

    def score(self, names: Sequence[str]) -> None:
        """Compute what is missing of this rank's shards' losses under the models of these names."""
        while names:
            names = names[len(self._sweep(names)) :]

    def scored(self, names: Sequence[str]) -> Iterator[tuple[TokenShard, dict[str, LossShard]]]:
        """Every shard of the pool with its losses, whichever rank made them; for the first rank."""
        for plan in self._plan:
            shard = self._tokens.find(plan)
            yield shard, {name: self._losses.find(name, shard) for name in names}

    def list_unusable(self) -> Intake:
        """Add all rows without any target to the listing; what became of all rows. For the first rank.

        Raises PoolError where they are too many, and where the pool has changed since it was surveyed.
        """
        if len(self._plan) != self._survey.shards:
            raise PoolError(
                f"{self._pool.sources[0].place}: the pool changed while it was scored ({self._survey.shards} shards at "
                f"first, then {len(self._plan)}); give the command again when nothing writes to it any more"
            )
        unusable = _Unusable(self._pool, self._survey)
        for plan in self._plan:
            unusable.add(self._tokens.find(plan))
        return unusable.write()

    def _sweep(self, names: Sequence[str]) -> Sequence[str]:
        """Take this rank's shards one by one through their stages; which of the models, the first ones, all met."""
        total, has_made = self._survey.characters, False
        names = self._losses.fitting_together(names)
        show = self._progress(f"score with {' and '.join(names)}", "character")
        with read_ahead(self._token_shards) as shards:
            for shard in shards:
                scored: dict[str, LossShard] = {}
                for place, name in enumerate(names):
                    start, span = shard.plan.before, shard.plan.characters // len(names)
                    what = f"shard {shard.plan.number + 1} of {self._survey.shards} under {name}"
                    report = _within(show, start + place * span, span, total)
                    scored[name] = self._losses.make(name, shard, what, report)
                    stage = scored[name].stage
                    has_made |= self._was_made.setdefault(stage.key, not stage.was_reused)
                    names = self._losses.fitting_together(names)
                    if name == names[-1]:  # the others turned out to have weights of their own
                        break
                if len(scored) > 1:
                    check_same_policy(scored["base"].policy, scored["reference"].policy)
        if has_made:
            show(total, total)
        return names

    def _token_shards(self, check: Callable[[], None]) -> Iterator[TokenShard]:
        """This rank's shards with their tokens; ``check`` may end it at any row. The first rank plans all shards.

        Raises PoolError where too many rows have no target, as soon as this rank's own are.
        """
        self._plan.clear()
        unusable, before = _Unusable(self._pool, self._survey), 0
        rows = _usable(stream_sources(self._pool.sources, is_first_reading=False), check)
        for number, shard_rows in enumerate(shard_stream(rows, self._pool.shard_characters)):
            plan = self._tokens.plan(number, before, shard_rows)
            before += plan.characters
            if self._processes.is_first:
                self._plan.append(plan)
            if self._processes.owns(number):
                shard = self._tokens.make(plan, _usable(shard_rows, check))
                unusable.add(shard)
                yield shard


class _Unusable:
    """What became of the pool's rows, with those without any target of the shards met so far."""

    def __init__(self, pool: PoolToScore, survey: PoolSurvey) -> None:
        self._pool, self._survey = pool, survey
        self._intake = survey.intake
        if survey.rows and not survey.intake.rows:  # another process has read the pool
            self._intake = Intake(readable=survey.rows - survey.rejected)
            for row in read_rejected(pool.listing) if survey.rejected else ():
                self._intake.add(row)
        self._listings = [pool.listing] if survey.rejected else []

    @property
    def intake(self) -> Intake:
        """As far as shards were met."""
        # What the shards to come will hold counts as usable.
        return replace(self._intake, rendered=self._intake.readable)

    def add(self, shard: TokenShard) -> None:
        """Count the shard's. Raises PoolError, after writing the listing, where they are too many by now."""
        self._intake = self._intake.after_rendering(shard.rendered_rows)
        if not shard.count("unusable"):
            return
        self._listings.append(shard.unusable)
        if self.intake.faulty_share > self._pool.max_rejected_share:
            self.write()
            check_usable(self.intake, self._pool.max_rejected_share, listing=self._pool.listing)

    def write(self) -> Intake:
        """Add them to the rows that the survey has listed; what became of all rows."""
        if len(self._listings) > bool(self._survey.rejected):
            join_rejected(self._listings, self._pool.listing)
        return self.intake


def _usable(rows: Iterable[Conversation | RejectedRow], check: Callable[[], None]) -> Iterator[Conversation]:
    for row in rows:
        check()
        if isinstance(row, Conversation):
            yield row


def _within(show: Progress, start: int, span: int, total: int) -> Progress:
    """Progress of a stage, in tokens, as progress of the pass in characters; its end is told once, by the pass."""
    return lambda done, of: show(min(start + span * done // max(of, 1), total - 1), total)
