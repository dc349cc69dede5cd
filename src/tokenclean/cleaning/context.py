"""What a strategy is given: the rows, the models, and what can be computed with them.

A strategy is a function of a ``RunContext``. The same function runs dry for a plan, where passes and trainings are only
recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenclean.cleaning.model import Model
from tokenclean.cleaning.noise_estimates import PoolNoise
from tokenclean.cleaning.passes import Passes
from tokenclean.cleaning.run_data import RunData
from tokenclean.cleaning.trainings import TrainingJob, Trainings
from tokenclean.models.loading.load import check_two_models, load_tokenizer, resolve_source
from tokenclean.models.loading.tokenizer_identity import check_same_tokenizer, sample_texts
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe, ScoringSettings
from tokenclean.scoring import PairedDifference, paired_difference
from tokenclean.tokens import TokenizedPool
from tokenclean.training.online_mixture import OnlineMixture
from tokenclean.training.step_plan import SchedulePart

_ERROR_SAMPLE_TOKENS = 1024


@dataclass(frozen=True)
class RunContext:
    """Rows, passes and trainings of one run. Models that several strategies need are cached properties, so each is
    computed when it is first asked for. ``note``: shows a line of text to the user."""

    data: RunData
    passes: Passes
    trainings: Trainings
    note: Callable[[str], None]

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
        return self._warm_up("warm-up")

    @cached_property
    def initial_reference(self) -> Model:
        """The θ_1 that self-evolving and its control start from: the warm-up, or with ``cleaning.adapters: one`` a
        warm-up of its own, which takes the first part of the one schedule."""
        part = self.data.parts[0]
        return self.warmup if part is None else self._warm_up("reference-0", part)

    def _warm_up(self, name: str, part: SchedulePart | None = None) -> Model:
        full = self.tokens.is_response.map_values(lambda labels: labels.astype(np.float32))
        return self.train(name, self.base, full, self.data.splits[0], part=part)

    @cached_property
    def given_reference(self) -> Model | None:
        """``model.reference``, checked to share the base's tokenizer; None where the recipe names none."""
        name = self.recipe.model.reference
        if name is None:
            return None
        source = resolve_source(name, trusted=self.recipe.model.trust_remote_code)
        texts = sample_texts(self.data.pool, self.data.tokenizer, self.recipe.tokens.template)
        for note in check_same_tokenizer(self.data.tokenizer, load_tokenizer(source), texts):
            self.note(f"reference {source}: {note} (allowed: text is rendered with the base's)")
        model = self.passes.model("reference", source)
        check_two_models(self.base.key, model.key)
        return model

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
        data's own loss weights and the samples' weights are multiplied in. ``part``: see ``TrainingJob``."""
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
        if rows is not None:
            tokens, weights = tokens.take(rows), weights.take(rows)
        return TrainingJob(name, start, tokens, weights, mixture, part)

    def losses(self, model: Model) -> Ragged:
        """Losses of all training rows, scored split by split so that every model sees the same packs."""
        whole = np.full(len(self.tokens.input_ids.values), np.nan, dtype=np.float32)
        for number, rows in enumerate(self.data.splits):
            whole[self.data.indices(rows)] = self.split_losses(model, rows, f"D{number}").values
        return self.tokens.input_ids.with_values(whole)

    def split_losses(self, model: Model, rows: np.ndarray, name: str) -> Ragged:
        """Losses of the given training rows, the split ``name``."""
        return self.passes.losses(model, self.tokens.take(rows), name)

    def heldout_losses(self, model: Model) -> Ragged:
        """Losses of the held-out rows."""
        return self.passes.losses(model, self.heldout, "held-out")

    def against(self, model: Model, baseline: Model) -> PairedDifference:
        """Held-out loss of one model against another's."""
        return paired_difference(self.heldout_losses(model), self.heldout_losses(baseline))

    def score_error(self, reference: Model, rows: np.ndarray) -> float:
        """Mean |score error| of the scoring policy in nats, against float32 with one conversation a pass, on the first
        of ``rows`` that hold about 1,000 tokens; at least float32's own rounding of a loss."""
        lengths = self.tokens.input_ids.lengths[rows]
        count = max(1, int(np.searchsorted(np.cumsum(lengths), _ERROR_SAMPLE_TOKENS)))
        sample = self.tokens.take(rows[:count])
        losses = [
            [self.passes.losses(model, sample, "sample", settings) for model in (self.base, reference)]
            for settings in (self.recipe.scoring, ScoringSettings(precision="exact", pack_tokens=1))
        ]
        ours, plain = (base - of_reference for base, of_reference in losses)
        rounding = float(np.finfo(np.float32).eps * np.nanmean(losses[0][0].values))
        return max(float(np.nanmean(np.abs((ours - plain).values))), rounding)
