"""Losses of rows under a model: computed and stored shard by shard, so that no pass is done twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tokenclean.cleaning.model import Model
from tokenclean.cleaning.run_stages import Compute, Stages
from tokenclean.models.loading.load import ModelSource, source_fingerprint
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.observer import Observer
from tokenclean.ragged import Ragged
from tokenclean.recipe import ScoringSettings
from tokenclean.scoring.scorer import check_same_policy
from tokenclean.scoring.stored_losses import ScoringPolicy, scores_in_pairs, sharded_columns
from tokenclean.store import Stage
from tokenclean.tokens import TokenizedPool


class Passes(Protocol):
    """What gives a run its models' losses; a plan has one that only records what would be computed."""

    def model(self, name: str, source: ModelSource) -> Model:
        """A model that was not trained in this run, with its hash."""
        ...

    def losses(self, model: Model, tokens: TokenizedPool, what: str, settings: ScoringSettings | None = None) -> Ragged:
        """Losses of the rows' response tokens, float32 nats, NaN elsewhere. ``what``: a few words on the rows, for
        progress and manifests. ``settings``: in place of the recipe's ``scoring`` section."""
        ...

    def pair(self, base: Model, model: Model, tokens: TokenizedPool, what: str) -> tuple[Ragged, Ragged]:
        """``losses`` of both, to be subtracted: in one pass where that makes the difference more
        exact (``scoring.stored_losses.scores_in_pairs``)."""
        ...


@dataclass(frozen=True)
class ModelPasses:
    """Passes of real models over rows, kept as stages.

    ``device``: a torch device. ``policies``: how the losses of each set of rows were computed so far, which must be the
    same for all models.
    """

    settings: ScoringSettings
    stages: Stages
    observer: Observer
    device: str
    models: ModelCache
    policies: dict[tuple[object, ...], Mapping[str, object]] = field(default_factory=dict)

    def model(self, name: str, source: ModelSource) -> Model:
        return Model(name, source, source_fingerprint(source))

    def losses(self, model: Model, tokens: TokenizedPool, what: str, settings: ScoringSettings | None = None) -> Ragged:
        [columns] = self._columns(model, tokens, what, settings or self.settings)
        return columns["loss"]

    def columns(self, model: Model, tokens: TokenizedPool, what: str, further: Sequence[str] = ()) -> dict[str, Ragged]:
        """As ``losses``: the column ``loss`` and those in ``further`` (of ``scoring.scorer.FURTHER_COLUMNS``)."""
        [columns] = self._columns(model, tokens, what, self.settings, further=further)
        return columns

    def pair(self, base: Model, model: Model, tokens: TokenizedPool, what: str) -> tuple[Ragged, Ragged]:
        if not scores_in_pairs(self.settings.precision, self.device, base.source, model.source):
            return self.losses(base, tokens, what), self.losses(model, tokens, what)
        of_base, of_model = self._columns(model, tokens, what, self.settings, base)
        return of_base["loss"], of_model["loss"]

    def _columns(
        self,
        model: Model,
        tokens: TokenizedPool,
        what: str,
        settings: ScoringSettings,
        base: Model | None = None,
        further: Sequence[str] = (),
    ) -> list[dict[str, Ragged]]:
        names = f"{base.name} and {model.name}" if base else model.name
        return sharded_columns(
            self._stage,
            lambda: self.models.using(model.source),
            tokens,
            self._weights(model),
            ScoringPolicy(settings.precision, settings.pack_tokens, tuple(further)),
            what=f"{what} under {names}",
            progress=self.observer.progress(f"score {what} with {names}", "token"),
            processes=self.stages.processes,
            base=self._weights(base) if base else None,
        )

    def _weights(self, model: Model) -> Mapping[str, object]:
        return {"model": model.identity, "device": self.device.partition(":")[0]}

    def _stage(self, inputs: Mapping[str, object], compute: Compute) -> Stage:
        """The stage of one shard. Raises PolicyMismatchError where its losses were computed in another way than another
        model's on the same tokens (say, in a run that moved to another machine midway)."""
        stage = self.stages.stage("losses", inputs, compute)
        key = (inputs["tokens"], inputs["precision"], inputs["pack_tokens"], "base" in inputs)
        policy = stage.manifest["results"]["policy"]
        check_same_policy(self.policies.setdefault(key, policy), policy)
        return stage
