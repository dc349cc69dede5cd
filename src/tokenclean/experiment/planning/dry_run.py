"""A run without models: the strategies themselves, with passes and trainings that only record what they would compute.

A strategy does what it does in a real run; only the numbers differ: losses are seeded random ones, drawn so that every
training lowers the mean (so that no strategy stops early), and weak references are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tokenclean.cleaning import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.run_data import RunData, read_run_data
from tokenclean.cleaning.trainings import StepModels, TrainingJob
from tokenclean.cleaning.trial_budget import PASS_COST
from tokenclean.experiment.run import Further, take_strategies
from tokenclean.models.loading.load import ModelSource
from tokenclean.models.packing import trimmed_lengths
from tokenclean.pool import Pool
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe, ScoringSettings, ServedModel
from tokenclean.scoring.stored_losses import scores_in_pairs
from tokenclean.store import array_hash, fingerprint
from tokenclean.tokens import TokenizedPool
from tokenclean.training.one_step import null_name
from tokenclean.training.step_plan import SchedulePart, StepPlan, plan_steps

_MEAN_LOSS, _GAIN = 10.0, 0.01
_RATINGS = 6
_UNLIKELY_EVERY, _UNLIKELY_NATS = 5, 1000.0
"""A step on trusted rows makes every fifth row less likely, by so many nats a token, so that a plan counts the training
on what is left, which a run that finds nothing shares with full tokens."""


@dataclass(frozen=True)
class RecordedPass:
    """Rows to be scored: ``what`` they are, under which model, and the tokens and response tokens of each (N,). Where
    ``model`` names a pair, each row stands there twice. ``served``: the model behind a server that is asked for them;
    its rows are those with a response token, up to their last one."""

    what: str
    model: str
    lengths: np.ndarray
    responses: np.ndarray
    settings: ScoringSettings
    served: ServedModel | None = None


@dataclass(frozen=True)
class RecordedTraining:
    """Rows to be trained on. ``lengths``, ``selected``: tokens, and tokens trained on, of each row (N,). ``steps``: the
    training's optimizer steps. ``adapters``: LoRAs that the trained model has below its own. ``is_one_step``: two
    passes for one gradient step, each counted as a step, and no training."""

    name: str
    lengths: np.ndarray
    selected: np.ndarray
    steps: StepPlan
    adapters: int
    is_one_step: bool = False


Recorded = RecordedPass | RecordedTraining


@dataclass(frozen=True)
class DryModels:
    """Passes and trainings that compute nothing; ``recorded``: each different one, in the order of the run."""

    recipe: Recipe
    device_type: str
    recorded: list[Recorded] = field(default_factory=list)
    _trained: dict[str, Model] = field(default_factory=dict)
    _passes: set[str] = field(default_factory=set)
    _adapters: dict[str, int] = field(default_factory=dict)
    _steps: dict[str, bool] = field(default_factory=dict)  # of models after one step: whether on the rows' own signs

    def model(self, name: str, source: ModelSource | ServedModel) -> Model:
        """As of ``cleaning.passes.Passes``; the weights are not read."""
        return Model(name, source, fingerprint([name, str(source)]))

    def losses(self, model: Model, tokens: TokenizedPool, what: str, settings: ScoringSettings | None = None) -> Ragged:
        """As of ``cleaning.passes.Passes``: random losses."""
        labels = tokens.is_response
        rows = array_hash(tokens.input_ids.values, labels.offsets, labels.values)
        settings = settings or self.recipe.scoring
        if self._is_new([model.key, rows, settings.model_dump(mode="json")]):
            lengths, responses, served = tokens.input_ids.lengths, labels.row_sums(), None
            if isinstance(model.source, ServedModel):
                sent = trimmed_lengths(labels.values, labels.offsets)
                lengths, responses, served = sent[sent > 0], responses[sent > 0], model.source
            self.recorded.append(RecordedPass(what, model.name, lengths, responses, settings, served))
        return self._draw(model, tokens, rows)

    def pair(self, base: Model, model: Model, tokens: TokenizedPool, what: str) -> tuple[Ragged, Ragged]:
        """As of ``cleaning.passes.Passes``: random losses."""
        settings, labels = self.recipe.scoring, tokens.is_response
        is_lora = self.recipe.training.method == "lora"
        is_adapter = model.key in self._steps or (model.key in self._trained and is_lora)
        sources = base.source, model.source
        if not scores_in_pairs(settings.precision, self.device_type, *sources, is_adapter=is_adapter):
            return self.losses(base, tokens, what), self.losses(model, tokens, what)
        rows = array_hash(tokens.input_ids.values, labels.offsets, labels.values)
        if self._is_new([model.key, "beside", base.key, rows]):
            lengths, responses = (np.tile(counts, 2) for counts in (tokens.input_ids.lengths, labels.row_sums()))
            self.recorded.append(RecordedPass(what, f"{base.name} and {model.name}", lengths, responses, settings))
        return self._draw(base, tokens, rows), self._draw(model, tokens, rows)

    def served_policy(self, model: Model) -> None:
        """As of ``cleaning.passes.Passes``: nothing is asked."""

    def _is_new(self, parts: list[object]) -> bool:
        key = fingerprint(parts)
        is_new = key not in self._passes
        self._passes.add(key)
        return is_new

    def _draw(self, model: Model, tokens: TokenizedPool, rows: str) -> Ragged:
        """Random losses of the rows with this hash."""
        labels = tokens.is_response
        seed = int(fingerprint([model.key, rows])[:16], 16)
        losses = np.full(len(labels.values), np.nan, dtype=np.float32)
        drawn = np.random.default_rng(seed).standard_exponential(int(labels.values.sum()), dtype=np.float32)
        age = list(self._trained).index(model.key) + 1 if model.key in self._trained else 0
        losses[labels.values] = drawn - drawn.mean(dtype=np.float64) + _MEAN_LOSS - _GAIN * age
        if self._steps.get(model.key):
            losses[labels.row_of_value() % _UNLIKELY_EVERY == 0] += _UNLIKELY_NATS
        return labels.with_values(losses)

    def train(self, job: TrainingJob) -> Model:
        """As of ``cleaning.trainings.Trainings``."""
        key = fingerprint(job.inputs(self.recipe, self.device_type))
        if key in self._trained:
            return self._trained[key]
        selected = job.weights.map_values(lambda weights: weights != 0).row_sums()
        settings = self.recipe.training
        below = self._adapters.get(job.start.key, 0)
        steps = plan_steps(max(int((selected > 0).sum()) - settings.eval_rows, 1), settings, job.part)
        lengths = job.tokens.input_ids.lengths
        self.recorded.append(RecordedTraining(job.name, lengths, selected, steps, below if job.part is None else 0))
        model = Model(job.name, job.start.source, key, training={"effective_steps": steps.effective_steps})
        self._trained[key] = model
        self._adapters[key] = below + 1
        return model

    def noise_rates(self, job: TrainingJob, model: Model) -> np.ndarray:
        """As of ``cleaning.trainings.Trainings``: no noise."""
        return np.zeros(len(job.tokens))

    def one_step(self, job: TrainingJob, nulls: int) -> StepModels:
        """As of ``cleaning.trainings.Trainings``: a training of two passes over the rows. The few passes that find
        the step's length are not counted, since their number is not known."""
        key = fingerprint([job.inputs(self.recipe, self.device_type), "one step", nulls])
        names = [job.name, *(f"{job.name}, {null_name(number)}" for number in range(nulls))]
        models = [Model(name, job.start.source, fingerprint([key, name])) for name in names]
        if models[0].key not in self._steps:
            passes = 2
            counts = (job.tokens.input_ids.lengths, job.weights.map_values(lambda weights: weights != 0).row_sums())
            lengths, selected = (np.tile(count, passes) for count in counts)
            steps = StepPlan(len(job.tokens), passes, 0, SchedulePart(0, passes, passes))
            self.recorded.append(RecordedTraining(job.name, lengths, selected, steps, 0, is_one_step=True))
            self._steps.update((model.key, model is models[0]) for model in models)
        return StepModels(models[0], tuple(models[1:]))


class RandomRatings:
    """Ratings drawn at random in place of DS²'s, for which a plan would have to embed the pool."""

    def __init__(self, pool: Pool) -> None:
        self._ids = [row.id for row in pool]
        self._random = np.random.default_rng(0)
        labels = self._random.integers(_RATINGS, size=len(pool)).tolist()
        rated = zip(labels, self._random.random(len(pool)).tolist(), strict=True)
        self._by_id = dict(zip(self._ids, rated, strict=True))

    @property
    def by_id(self) -> Mapping[str, tuple[int, float]]:
        """Row id -> label, long-tail score."""
        return self._by_id

    def selection(self, count: int) -> np.ndarray:
        """Row numbers in place of the ``count`` best."""
        return self._random.choice(len(self._ids), count, replace=False)


def dry_run(recipe: Recipe, device_type: str) -> tuple[RunData, list[Recorded]]:
    """The rows of a run of the recipe, and every pass and training that it takes on a device of this type."""
    data = read_run_data(recipe, RandomRatings)
    return data, record(data, device_type)


def record(data: RunData, device_type: str, further: Further | None = None) -> list[Recorded]:
    """Every pass and training that a run on these rows takes. ``further``: strategies beside the recipe's."""
    data = data.with_cleaning(allow_weak_reference=True)
    models = DryModels(data.recipe, device_type)
    take_strategies(RunContext(data, models, models, note=lambda text: None, is_dry=True), further or {})
    return models.recorded


def record_alone(data: RunData, strategy: str, device_type: str) -> list[Recorded]:
    """Every pass and training that a run on these rows takes with one strategy and no control."""
    evaluation = data.recipe.evaluation.model_copy(update={"controls": ()})
    alone = data.with_cleaning(strategy=strategy)
    return record(replace(alone, recipe=alone.recipe.model_copy(update={"evaluation": evaluation})), device_type)


def training_cost(recorded: Sequence[Recorded], recipe: Recipe) -> float:
    """Cost in tokens trained for one epoch, those of a pass counting a third (``cleaning.trial_budget``)."""
    return sum(
        float(item.lengths.sum()) * (PASS_COST if isinstance(item, RecordedPass) else recipe.training.epochs)
        for item in recorded
    )
