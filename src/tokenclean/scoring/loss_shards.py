"""The losses of one shard under one model, as a stage; and the models of a pass, each loaded where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenclean.models.loading.load import ModelSource, source_fingerprint
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.ragged import Ragged
from tokenclean.scoring.scorer import PACK_TOKENS, Progress, Scorer
from tokenclean.scoring.shards import LOSSES_VERSION
from tokenclean.scoring.token_shards import TokenShard, gone
from tokenclean.store import Stage, Store
from tokenclean.token_table import read_column, write_column

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScoringPolicy:
    """``precision``, ``pack_tokens`` and ``compile`` of ``Scorer``, and the further ``columns`` wanted of it."""

    precision: str = "safe"
    pack_tokens: int = PACK_TOKENS
    columns: tuple[str, ...] = ()
    compile: str = "auto"


@dataclass(frozen=True)
class LossShard:
    """The stage of a shard's losses under one model."""

    stage: Stage

    @property
    def policy(self) -> Mapping[str, Any]:
        """How the losses were computed."""
        return self.stage.manifest["results"]["policy"]

    def column(self, name: str) -> Ragged:
        """``loss``, or one of the further columns. Raises TableError where the file cannot be read."""
        return read_column(name, self.stage.path / _file_of(name))


class LossShards:
    """Losses of shards under the models of one pass.

    ``sources``: by the names under which the table will have them. Models are loaded when their first missing shard
    comes, on ``device``, and stay with their scorers until ``unload``. ``expected_tokens``: of the whole pool, about,
    whatever is missing of it and whoever shares it: a stopped pass must go on with the kernels that it began with.
    """

    def __init__(
        self,
        sources: Mapping[str, ModelSource],
        policy: ScoringPolicy,
        store: Store,
        device: str,
        expected_tokens: int,
    ) -> None:
        self.fingerprints = {name: source_fingerprint(source) for name, source in sources.items()}
        self.policy, self._expected_tokens = policy, expected_tokens
        self._sources, self._store, self._device = sources, store, device
        self._models = ModelCache(device)
        self._scorers: dict[str, Scorer] = {}
        self._stay_loaded = len({(source.base, source.revision) for source in sources.values()}) == 1

    def fitting_together(self, names: Sequence[str]) -> Sequence[str]:
        """The first of the models, as many as stay in memory together: all that share one load, else one."""
        return names if self._stay_loaded else names[:1]

    def make(self, name: str, shard: TokenShard, what: str, progress: Progress | None = None) -> LossShard:
        """Find the shard's losses under a model, or compute them. Raises as ``Scorer.score`` and ``Store.stage``."""

        def make(folder: Path) -> Mapping[str, Any]:
            with self._models.using(self._sources[name]) as model:
                scorer = self._scorer(name, model, shard.tokenization.max_length)
                computed = scorer.score(shard.tokens(), progress)
                policy = dict(scorer.policy)
            for column, values in computed.items():
                write_column(values, column, folder / _file_of(column))
            known = computed["loss"].values[np.isfinite(computed["loss"].values)]
            mean = float(known.mean(dtype=np.float64)) if len(known) else None
            return {"what": what, "mean_loss_nats": mean, "tokens": len(known), "policy": policy}

        return LossShard(self._stage(name, shard, make))

    def find(self, name: str, shard: TokenShard) -> LossShard:
        """The shard's losses under a model, made before. Raises RunFolderError where they are gone or damaged."""
        return LossShard(self._stage(name, shard, gone(f"shard {shard.plan.number + 1} under {name}")))

    def unload(self) -> None:
        """Free the memory of all models and scorers."""
        self._scorers.clear()
        self._models.clear()

    def _stage(self, name: str, shard: TokenShard, make: Callable[[Path], Mapping[str, Any]]) -> Stage:
        policy = self.policy
        inputs: dict[str, Any] = {
            "tokens": shard.tokens_hash,
            "model": [self.fingerprints[name], ""],
            "device": self._device.partition(":")[0],
            "precision": policy.precision,
            "pack_tokens": policy.pack_tokens,
        }
        if policy.columns:
            inputs["columns"] = sorted(policy.columns)
        return self._store.stage("losses", LOSSES_VERSION, inputs, make)

    def _scorer(self, name: str, model: torch.nn.Module, longest_row: int) -> Scorer:
        """One scorer a model. That a model comes as another object says that it was loaded again meanwhile."""
        scorer = self._scorers.get(name)
        if scorer is None or scorer.model is not model:
            self._stay_loaded &= scorer is None
            policy = self.policy
            # The longest row that may come, not the longest of this shard: the choice of a kernel must not depend on
            # which shard of a stopped pass comes first.
            self._scorers[name] = scorer = Scorer(
                model,
                precision=policy.precision,
                pack_tokens=policy.pack_tokens,
                columns=policy.columns,
                compile=policy.compile,
                longest_row=longest_row,
                expected_tokens=self._expected_tokens,
            )
        return scorer


def _file_of(column: str) -> str:
    return "losses.parquet" if column == "loss" else f"{column}.parquet"
