"""What a strategy is given: the rows, the models, and what can be computed with them.

A strategy is a function of a ``RunContext``. The same function runs dry for a plan, where passes and trainings are only
recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from tokenclean.cleaning import references
from tokenclean.cleaning.choice import Choice
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.noise_estimates import PoolNoise
from tokenclean.cleaning.passes import Passes
from tokenclean.cleaning.run_data import RunData
from tokenclean.cleaning.trainings import TrainingJob, Trainings
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.scoring import PairedDifference, paired_difference
from tokenclean.tokens import TokenizedPool
from tokenclean.training.online_mixture import OnlineMixture
from tokenclean.training.step_plan import SchedulePart


@dataclass(frozen=True)
class RunContext:
    """Rows, passes and trainings of one run. Models that several strategies need are cached properties, so each is
    computed when it is first asked for. ``note``: shows a line of text to the user. ``is_dry``: losses are made up, for
    a plan, so what is chosen by them has to be what costs most. ``choices``: what was chosen once for all."""

    data: RunData
    passes: Passes
    trainings: Trainings
    note: Callable[[str], None]
    is_dry: bool = False
    choices: dict[str, Choice] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.data.recipe

    @property
    def tokens(self) -> TokenizedPool:
        """The training rows."""
        return self.data.tokens

    @property
    def heldout(self) -> TokenizedPool:
        """The held-out rows, on which nothing is trained."""
        return self.data.heldout

    @cached_property
    def base(self) -> Model:
        """θ_0."""
        return self.passes.model("base", self.data.base_source)

    @cached_property
    def warmup(self) -> Model:
        """θ_1: the base fine-tuned on D̃_0 with full tokens."""
        return references.warm_up(self, "warm-up")

    @cached_property
    def initial_reference(self) -> Model:
        """The θ_1 that self-evolving and its control start from: the warm-up, or with ``cleaning.adapters: one`` a
        warm-up of its own, which takes the first part of the one schedule."""
        part = self.data.parts[0]
        return self.warmup if part is None else references.warm_up(self, "reference-0", part)

    @cached_property
    def given_reference(self) -> Model | None:
        """``model.reference``; None where the recipe names none."""
        return references.given_reference(self)

    @cached_property
    def noise(self) -> PoolNoise:
        """Repetition and noise mixture of the training rows. Offline the mixture is fitted to the losses of
        ``model.reference``, else of the base."""
        return PoolNoise(
            self.recipe,
            self.tokens,
            self.data.tokenizer,
            self.note,
            lambda: self.losses(self.given_reference or self.base),
        )

    def train(
        self,
        name: str,
        start: Model,
        weights: Ragged,
        rows: np.ndarray | None = None,
        *,
        part: SchedulePart | None = None,
    ) -> Model:
        """Fine-tune ``start`` on training ``rows`` (all by default). ``weights``: float, over all training rows; the
        data's own loss weights and the samples' weights are multiplied in, and people's decisions replace them.
        ``part``: see ``TrainingJob``."""
        return self.trainings.train(self.training_job(name, start, weights, rows, part=part))

    def training_job(
        self,
        name: str,
        start: Model,
        weights: Ragged,
        rows: np.ndarray | None = None,
        *,
        mixture: OnlineMixture | None = None,
        part: SchedulePart | None = None,
    ) -> TrainingJob:
        """The training that ``train`` does with the same arguments."""
        tokens, weights = self.tokens, self.data.weighted(weights)
        if mixture is not None and self.data.review is not None:
            mixture = replace(mixture, is_fixed=self.data.review.is_fixed)
        if rows is not None:
            tokens, weights = tokens.take(rows), weights.take(rows)
            mixture = mixture and mixture.take(rows)
        return TrainingJob(name, start, tokens, weights, mixture, part)

    def losses(self, model: Model) -> Ragged:
        """Losses of all training rows, scored split by split so that passes are shared among strategies."""
        whole = np.full(len(self.tokens.input_ids.values), np.nan, dtype=np.float32)
        for number, rows in enumerate(self.data.splits):
            whole[self.data.indices(rows)] = self.passes.losses(model, self.tokens.take(rows), f"D{number}").values
        return self.tokens.input_ids.with_values(whole)

    def pair_losses(self, base: Model, model: Model) -> tuple[Ragged, Ragged]:
        """Losses of all training rows under both, to be subtracted; NaN for trusted rows, which are not ranked."""
        both = np.full((2, len(self.tokens.input_ids.values)), np.nan, dtype=np.float32)
        for number, rows in enumerate(self.data.splits):
            if number > 0 or not len(self.data.trusted):
                places = self.data.indices(rows)
                for whole, part in zip(both, self.split_losses(base, model, rows, f"D{number}"), strict=True):
                    whole[places] = part.values
        of_base, of_model = map(self.tokens.input_ids.with_values, both)
        return of_base, of_model

    def split_losses(self, base: Model, model: Model, rows: np.ndarray, name: str) -> tuple[Ragged, Ragged]:
        """Losses of the given training rows, the split ``name``, under both models."""
        return self.passes.pair(base, model, self.tokens.take(rows), name)

    def heldout_losses(self, model: Model) -> Ragged:
        """Losses of the held-out rows."""
        return self.passes.losses(model, self.heldout, "held-out")

    def choosing_losses(self, model: Model) -> Ragged:
        """Losses of the rows to choose by. Raises ValueError where the run has none (``RunData.choosing``)."""
        if self.data.choosing is None:
            raise ValueError("this run has no rows to choose by; see RunData.choosing")
        return self.passes.losses(model, self.data.choosing, "choosing")

    def against(self, model: Model, baseline: Model) -> PairedDifference:
        """Held-out loss of one model against another's."""
        return paired_difference(self.heldout_losses(model), self.heldout_losses(baseline))
