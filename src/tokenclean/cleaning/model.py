"""A model of a run: where it is stored, and the hashes that identify it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenclean.errors import ModelError
from tokenclean.models.loading.load import ModelSource
from tokenclean.recipe import ServedModel


@dataclass(frozen=True)
class Model:
    """``name``: as shown in tables. ``key``: hash of everything it was made from. ``weights``: hash of the weights
    themselves, since training on a GPU need not give the same weights twice; empty for a model that was not trained
    here. ``training``: what its training reported (steps, losses, tokens); None for a model that was not trained here.
    A served model has losses and nothing else.
    """

    name: str
    source: ModelSource | ServedModel
    key: str
    weights: str = ""
    training: Mapping[str, object] | None = None

    @property
    def folder(self) -> Path:
        """The folder of the adapter, or of the whole model."""
        source = self.weights_source
        return Path(source.adapter or source.base)

    @property
    def weights_source(self) -> ModelSource:
        """The source of weights that can be loaded here. Raises ModelError for a served model."""
        if isinstance(self.source, ServedModel):
            raise ModelError(
                f"the model {self.name} is behind a server ({self.source}), which gives losses only; name a model that "
                "can be loaded here"
            )
        return self.source

    @property
    def identity(self) -> list[str]:
        """For the inputs of the stages that use the model."""
        return [self.key, self.weights]
