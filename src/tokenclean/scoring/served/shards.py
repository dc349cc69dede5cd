"""Losses of a pool's shards under a served model, each shard a stage; answers are kept until theirs is complete."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tokenclean.observer import Progress
from tokenclean.scoring.model_losses import LossWork, described_losses, file_of
from tokenclean.scoring.served.scorer import ServedScorer
from tokenclean.scoring.stored_losses import LossShard, MakeStage, PassShard
from tokenclean.store import SERVED, SHORT_KEY, Make, fingerprint
from tokenclean.token_table import write_column


class ServedShards:
    """As ``stored_losses.ShardLosses``. ``model``: inputs of the stages that identify the served model. ``root``: the
    run folder, which holds answers of unfinished shards in ``served/``."""

    in_pairs = False
    work: LossWork | None = None  # one process asks the server, within the rate that it allows

    def __init__(self, make_stage: MakeStage, scorer: ServedScorer, model: Mapping[str, object], root: Path) -> None:
        self._make_stage, self._scorer, self._model, self._root = make_stage, scorer, model, root

    def make(self, item: PassShard, progress: Progress | None = None) -> LossShard:
        """Find the losses of a shard, or ask the server. Raises as ``ServedScorer.score`` and ``Store.stage`` do."""
        inputs = {"tokens": item.key, **self._model}
        answers = self._root / SERVED / fingerprint(inputs)[:SHORT_KEY]

        def compute(folder: Path) -> Mapping[str, object]:
            losses, policy = self._scorer.score(item.given(), answers, progress)
            write_column(losses, "loss", folder / file_of("loss"))
            return described_losses(item.what, losses, policy)

        shard = LossShard(self._make_stage(inputs, compute))
        shutil.rmtree(answers, ignore_errors=True)
        return shard

    def store(self, key: str, make: Make) -> LossShard:
        """As of ``stored_losses.ShardLosses``. Raises as ``Store.stage`` does."""
        return LossShard(self._make_stage({"tokens": key, **self._model}, make))

    def unload(self) -> None:
        """Nothing is held."""
