"""How fast this machine runs a recipe's passes and trainings, measured on a few layers of a model of the same shape."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tokenclean.experiment.planning.dry_run import Recorded, RecordedPass, RecordedTraining
from tokenclean.experiment.planning.flop import model_size, scoring_flop, training_flop
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.device import resolve_device
from tokenclean.ragged import Ragged, offsets_of
from tokenclean.recipe import Recipe
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.optimizer import adamw
from tokenclean.training.train_step import TrainingStep

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LAYERS = 2
_VOCABULARY = 1 << 16
"""Ids at most: the head of a larger vocabulary takes gigabytes and has little to do."""
_REPEATS = 3
_MOST_FLOP = {"cpu": 1e11}
_MOST_FLOP_ELSEWHERE = 1e14
"""Of a measured pass or step: a second or two."""


@dataclass(frozen=True)
class Speed:
    """Useful FLOP/s, as ``flop`` counts them, of passes and of trainings."""

    scoring: float
    training: float


def measure_speed(config: PreTrainedConfig, recipe: Recipe, recorded: Sequence[Recorded]) -> Speed:
    """Time a pass and an optimizer step, with the product's own code, on rows as long as those of the largest recorded
    pass and training, under the recipe's precisions, on its device.

    The model has two layers of the configuration's shape, with random weights, and losses at so few tokens that the
    head has the share of the whole that it has in the full model. Loading, the start of a pass, and what
    ``torch.compile`` saves in a long one are not in it.

    Raises as the training does for a model that takes no LoRA. An error in the model's own code, where two layers of it
    cannot be built or run, is passed on.
    """
    few = _with_layers(config, _LAYERS)
    share = few.get_text_config().num_hidden_layers / config.get_text_config().num_hidden_layers
    passes = [item for item in recorded if isinstance(item, RecordedPass) and item.served is None]
    trainings = [item for item in recorded if isinstance(item, RecordedTraining)]
    scoring = _scoring_speed(few, recipe, max(passes, key=lambda item: int(item.lengths.sum())), share)
    if not trainings:
        return Speed(scoring, scoring)
    return Speed(scoring, _training_speed(few, recipe, max(trainings, key=lambda t: int(t.lengths.sum())), share))


def _scoring_speed(config: PreTrainedConfig, recipe: Recipe, largest: RecordedPass, share: float) -> float:
    size, device = model_size(config, recipe.training), resolve_device(recipe.model.device)
    model = CausalLM(_random_model(config).to(device).eval())

    def flop(lengths: np.ndarray, responses: np.ndarray) -> float:
        return scoring_flop(size, lengths, responses)

    budget = recipe.scoring.pack_tokens
    lengths, responses = _some_rows(largest.lengths, largest.responses, share, budget, device, flop)
    ids, mask = _random_rows(lengths, responses, model.vocabulary_size)
    input_ids = torch.from_numpy(ids.values).to(device)
    positions = torch.from_numpy(np.flatnonzero(mask.values)).to(device)
    with torch.no_grad(), model.precision(recipe.scoring.precision):
        model.make_copies()
        rows = lengths.tolist()
        seconds = _median_seconds(lambda: model.measures(input_ids, rows, positions, ("loss",))["loss"].sum())
    return flop(lengths, responses) / seconds


def _training_speed(config: PreTrainedConfig, recipe: Recipe, largest: RecordedTraining, share: float) -> float:
    settings = recipe.training
    size, device = model_size(config, settings), resolve_device(recipe.model.device)
    model = _random_model(config)
    if settings.method == "lora":
        model = add_fresh_lora(model, settings.lora, None)

    def flop(lengths: np.ndarray, selected: np.ndarray) -> float:
        return training_flop(size, settings, lengths, selected)

    lengths, selected = _some_rows(largest.lengths, largest.selected, share, None, device, flop)
    lengths, selected = (counts[: largest.steps.batch_size] for counts in (lengths, selected))
    ids, mask = _random_rows(lengths, selected, config.get_text_config().vocab_size)
    step = TrainingStep(model, settings, device=device)
    optimizer = adamw(model, settings)

    def train() -> torch.Tensor:
        loss = step(ids, mask.map_values(lambda values: values.astype(np.float32)), range(len(lengths)))
        optimizer.step()
        optimizer.zero_grad()
        return torch.tensor(loss)

    return flop(lengths, selected) / _median_seconds(train)


def _with_layers(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """The configuration with its first layers alone, and a vocabulary of bounded size."""
    few = copy.deepcopy(config)
    text = few.get_text_config()
    layers = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:  # such as layer_types, an entry a layer
            setattr(text, name, value[:count])
    text.num_hidden_layers = min(layers, count)
    if text.vocab_size > _VOCABULARY:
        text.vocab_size, text.pad_token_id = _VOCABULARY, None  # an embedding refuses a padding id beyond its rows
    return few


def _random_model(config: PreTrainedConfig) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _some_rows(
    lengths: np.ndarray,
    targets: np.ndarray,
    share: float,
    budget: int | None,
    device: str,
    flop: Callable[[np.ndarray, np.ndarray], float],
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets of rows drawn at random, as many as fit into ``budget`` tokens and a second or two, at least
    one; ``share`` of the targets, at least one a row."""
    order = np.random.default_rng(0).permutation(np.flatnonzero(lengths > 1))
    lengths, targets = lengths[order], np.maximum(1, np.round(targets[order] * share)).astype(np.int64)
    targets = np.minimum(targets, lengths - 1)
    most = _MOST_FLOP.get(device.partition(":")[0], _MOST_FLOP_ELSEWHERE)
    count = len(lengths)
    while count > 1 and (flop(lengths[:count], targets[:count]) > most or (budget and lengths[:count].sum() > budget)):
        count -= max(1, count // 8)
    return lengths[:count], targets[:count]


def _random_rows(lengths: np.ndarray, targets: np.ndarray, vocabulary: int) -> tuple[Ragged, Ragged]:
    """Random ids, and which of them are targets: the last of each row."""
    ids = Ragged(np.random.default_rng(0).integers(vocabulary, size=int(lengths.sum())), offsets_of(lengths))
    rows = [np.arange(length) >= length - count for length, count in zip(lengths, targets, strict=True)]
    return ids, ids.with_values(np.concatenate(rows))


def _median_seconds(work: Callable[[], torch.Tensor]) -> float:
    """Of some runs, after one that is not counted."""
    work().item()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work().item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return statistics.median(times)
