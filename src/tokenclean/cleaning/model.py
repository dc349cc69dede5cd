"""A model of a run: where it is stored, and the hashes that identify it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenclean.models.loading.load import ModelSource


@dataclass(frozen=True)
class Model:
    """``name``: as shown in tables. ``key``: hash of everything it was made from. ``weights``: hash of the weights
    themselves, since training on a GPU need not give the same weights twice; empty for a model that was not trained
    here. ``training``: what its training reported (steps, losses, tokens); None for a model that was not trained here.
    """

    name: str
    source: ModelSource
    key: str
    weights: str = ""
    training: Mapping[str, object] | None = None

    @property
    def folder(self) -> Path:
        """The folder of the adapter, or of the whole model."""
        return Path(self.source.adapter or self.source.base)

    @property
    def identity(self) -> list[str]:
        """For the inputs of the stages that use the model."""
        return [self.key, self.weights]
