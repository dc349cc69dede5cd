"""Losses of rows under a model: computed and stored shard by shard, so that no pass is done twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tokenclean.cleaning.model import Model
from tokenclean.cleaning.run_stages import Stages
from tokenclean.errors import ModelError
from tokenclean.executors import LOCAL, Executor
from tokenclean.models.loading.load import ModelSource, source_fingerprint
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.observer import Observer
from tokenclean.ragged import Ragged
from tokenclean.recipe import ScoringSettings, ServedModel
from tokenclean.scoring.model_losses import ScoringPolicy
from tokenclean.scoring.scorer import check_same_policy, merge_policies
from tokenclean.scoring.served.scorer import ServedScorer
from tokenclean.scoring.served.shards import ServedShards
from tokenclean.scoring.stored_losses import columns_of_shards, scores_in_pairs, sharded_columns
from tokenclean.store import Make, Stage, fingerprint
from tokenclean.tokens import TokenizedPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Passes(Protocol):
    """What gives a run its models' losses; a plan has one that only records what would be computed."""

    def model(self, name: str, source: ModelSource | ServedModel) -> Model:
        """A model that was not trained in this run, with its hash; of a served one the hash of its address and name."""
        ...

    def losses(self, model: Model, tokens: TokenizedPool, what: str, settings: ScoringSettings | None = None) -> Ragged:
        """Losses of the rows' response tokens, float32 nats, NaN elsewhere. ``what``: a few words on the rows, for
        progress and manifests. ``settings``: in place of the recipe's ``scoring`` section."""
        ...

    def pair(self, base: Model, model: Model, tokens: TokenizedPool, what: str) -> tuple[Ragged, Ragged]:
        """``losses`` of both, to be subtracted: in one pass where that makes the difference more
        exact (``scoring.stored_losses.scores_in_pairs``)."""
        ...

    def served_policy(self, model: Model) -> Mapping[str, object] | None:
        """How the losses of a served model were computed so far; None for a model that is loaded here."""
        ...


@dataclass(frozen=True)
class ModelPasses:
    """Passes of real models over rows, kept as stages.

    ``device``: the torch device of passes. ``tokenizer``: the base's. ``executor``: where shards are computed.
    ``policies``: how the losses of each set of rows were computed so far, which must be the same for all models that
    are loaded here. ``servers``: scorers of served models by their hash, shared by all that run on the same models.
    """

    settings: ScoringSettings
    stages: Stages
    observer: Observer
    device: str
    models: ModelCache
    tokenizer: PreTrainedTokenizerBase
    executor: Executor = LOCAL
    servers: dict[str, ServedScorer] = field(default_factory=dict)
    policies: dict[tuple[object, ...], Mapping[str, object]] = field(default_factory=dict)
    served_policies: dict[str, list[Mapping[str, object]]] = field(default_factory=dict)

    def model(self, name: str, source: ModelSource | ServedModel) -> Model:
        is_served = isinstance(source, ServedModel)
        return Model(name, source, fingerprint(source.identity) if is_served else source_fingerprint(source))

    def losses(self, model: Model, tokens: TokenizedPool, what: str, settings: ScoringSettings | None = None) -> Ragged:
        if isinstance(model.source, ServedModel):
            return self._served_losses(model, model.source, tokens, what)
        [columns] = self._columns(model, tokens, what, settings or self.settings)
        return columns["loss"]

    def columns(self, model: Model, tokens: TokenizedPool, what: str, further: Sequence[str] = ()) -> dict[str, Ragged]:
        """As ``losses``: the column ``loss`` and those in ``further`` (of ``scoring.scorer.FURTHER_COLUMNS``).

        Raises ModelError for further columns of a served model, whose server gives losses alone.
        """
        if isinstance(model.source, ServedModel):
            if further:
                raise ModelError(
                    f"{model.name}: a served model gives the losses of given tokens, not {', '.join(further)}; give a "
                    "model that is loaded here"
                )
            return {"loss": self._served_losses(model, model.source, tokens, what)}
        [columns] = self._columns(model, tokens, what, self.settings, further=further)
        return columns

    def pair(self, base: Model, model: Model, tokens: TokenizedPool, what: str) -> tuple[Ragged, Ragged]:
        if not scores_in_pairs(self.settings.precision, self.device, base.source, model.source):
            return self.losses(base, tokens, what), self.losses(model, tokens, what)
        of_base, of_model = self._columns(model, tokens, what, self.settings, base)
        return of_base["loss"], of_model["loss"]

    def served_policy(self, model: Model) -> Mapping[str, object] | None:
        found = self.served_policies.get(model.key)
        return None if found is None else merge_policies(found)

    def _served_losses(self, model: Model, served: ServedModel, tokens: TokenizedPool, what: str) -> Ragged:
        """Losses of a served model; their precision is the server's, so the recipe's scoring settings are no inputs."""
        if model.key not in self.servers:
            self.servers[model.key] = ServedScorer(served, self.tokenizer, self.observer.note)

        def stage(inputs: Mapping[str, object], compute: Make) -> Stage:
            stage = self.stages.stage("losses", inputs, compute)
            self.served_policies.setdefault(model.key, []).append(stage.manifest["results"]["policy"])
            return stage

        shards = ServedShards(stage, self.servers[model.key], {"model": model.identity}, self.stages.store.root)
        [columns] = columns_of_shards(
            shards,
            tokens,
            what=f"{what} under {model.name}",
            progress=self.observer.progress(f"score {what} with {model.name}", "token"),
            executor=self.executor,
        )
        return columns["loss"]

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
            self.models.using,
            model.weights_source,
            tokens,
            self._weights(model),
            ScoringPolicy(settings.precision, settings.pack_tokens, tuple(further)),
            what=f"{what} under {names}",
            progress=self.observer.progress(f"score {what} with {names}", "token"),
            executor=self.executor,
            base=self._weights(base) if base else None,
        )

    def _weights(self, model: Model) -> Mapping[str, object]:
        return {"model": model.identity, "device": self.device.partition(":")[0]}

    def _stage(self, inputs: Mapping[str, object], compute: Make) -> Stage:
        """The stage of one shard. Raises PolicyMismatchError where its losses were computed in another way than another
        model's on the same tokens (say, in a run that moved to another machine midway)."""
        stage = self.stages.stage("losses", inputs, compute)
        key = (inputs["tokens"], inputs["precision"], inputs["pack_tokens"], "base" in inputs)
        policy = stage.manifest["results"]["policy"]
        check_same_policy(self.policies.setdefault(key, policy), policy)
        return stage
