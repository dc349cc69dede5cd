"""Losses of a shard under a model that is loaded here, written into the folder of their stage.

What they are computed from is a ``ModelWork``; as a ``LossWork`` it is sent to another machine, which computes the same
files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.errors import ModelError
from tokenclean.executors import WriteFiles
from tokenclean.observer import Progress
from tokenclean.ragged import Ragged
from tokenclean.scoring.scorer import PACK_TOKENS, Scorer
from tokenclean.token_table import write_column
from tokenclean.tokens import TokenizedPool

if TYPE_CHECKING:
    import torch

    from tokenclean.models.loading.load import ModelSource

Using = Callable[["ModelSource"], AbstractContextManager["torch.nn.Module"]]
"""Gives a block with a source's model: ``ModelCache.using``."""


@dataclass(frozen=True)
class ScoringPolicy:
    """``precision``, ``pack_tokens`` and ``compile`` of ``Scorer``, and the further ``columns`` wanted of it."""

    precision: str = "safe"
    pack_tokens: int = PACK_TOKENS
    columns: tuple[str, ...] = ()
    compile: str = "auto"


@dataclass(frozen=True)
class ModelWork:
    """What the losses of any shard of a pass are computed from, beside its tokens.

    ``longest_row`` and ``expected_tokens``: those of the whole pool, not of the shards still missing, since a resumed
    pass must choose the kernels that it began with. ``in_pairs``: the source is an adapter, scored together with its
    base (``models.pairs``).
    """

    source: ModelSource
    policy: ScoringPolicy
    longest_row: int
    expected_tokens: int
    in_pairs: bool = False


class ModelLosses:
    """Computes the losses of one shard after another. ``using`` is entered for each shard, so two models on one base
    can take turns."""

    def __init__(self, using: Using, work: ModelWork) -> None:
        self._using, self._work = using, work
        self._scorer: Scorer | None = None

    def write(
        self, folder: Path, tokens: TokenizedPool, what: str, progress: Progress | None = None
    ) -> dict[str, object]:
        """Write a file for each column into the folder; what the manifest says of them.

        ``what``: a few words for the manifest. Raises as ``Scorer.score`` does.
        """
        in_pairs = self._work.in_pairs
        with self._using(self._work.source) as model:
            scorer = self._scorer_of(model)
            of_base, columns = scorer.score_pair(tokens, progress) if in_pairs else ({}, scorer.score(tokens, progress))
            policy = scorer.pair_policy if in_pairs else scorer.policy
        for is_base, scored in ((False, columns), (True, of_base)):
            for name, column in scored.items():
                write_column(column, name, folder / file_of(name, is_base=is_base))
        return described_losses(what, columns["loss"], policy)

    def unload(self) -> None:
        """Drop the reference to the model, so that its memory can be freed."""
        self._scorer = None

    def _scorer_of(self, model: torch.nn.Module) -> Scorer:
        """One scorer serves all shards, until the model comes as another object, which means that it was reloaded."""
        if self._scorer is None or self._scorer.model is not model:
            work = self._work
            self._scorer = Scorer(
                model, **asdict(work.policy), longest_row=work.longest_row, expected_tokens=work.expected_tokens
            )
        return self._scorer


@dataclass(frozen=True)
class LossWork:
    """The losses of a pass's shards, as a ``FileWork``.

    ``fingerprint``: of the source's weights where the pass was begun. ``device``: of the process that computes.
    """

    model: ModelWork
    fingerprint: str
    device: str

    @contextmanager
    def opened(self) -> Iterator[WriteFiles[TokenizedPool]]:
        """A block with ``ModelLosses.write`` under the model, which is loaded once.

        Raises ModelError where there is no such model, or another one."""
        from tokenclean.models.device import resolve_device
        from tokenclean.models.loading.load import source_fingerprint
        from tokenclean.models.loading.model_cache import ModelCache

        source, cache = self.model.source, ModelCache(resolve_device(self.device))
        if (found := source_fingerprint(source)) != self.fingerprint:
            raise ModelError(
                f"{source}: its files are not those that the pass was begun with (fingerprint {found[:12]}, expected "
                f"{self.fingerprint[:12]}); copy the same model to all nodes"
            )
        with cache.using(source):
            losses = ModelLosses(cache.using, self.model)
        yield losses.write
        losses.unload()
        cache.clear()


def described_losses(what: str, losses: Ragged, policy: Mapping[str, object]) -> dict[str, object]:
    """What the manifest of a shard's losses says."""
    known = losses.values[np.isfinite(losses.values)]
    mean = float(known.mean(dtype=np.float64)) if len(known) else None
    return {"what": what, "mean_loss_nats": mean, "tokens": len(known), "policy": dict(policy)}


def file_of(column: str, *, is_base: bool = False) -> str:
    """The file in a stage that holds this column."""
    file = "losses.parquet" if column == "loss" else f"{column}.parquet"
    return f"base_{file}" if is_base else file
