"""One plain gradient step on given rows, and steps of the same length that say nothing, each a LoRA on the base.

A full gradient G of a layer would take the memory of the layer once more. A LoRA ΔW = s·B·A gives its best known part:
with a random A and B = 0 the gradient of B is s·G·Aᵀ, whose column space nearly holds G's leading directions Q; with
B = Q and A = 0 the gradient of A is then s·QᵀG, so Q·QᵀG is the randomized truncated SVD of G (Halko, Martinsson and
Tropp 2011, Algorithm 4.1), from two backward passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tokenclean.errors import TrainingError
from tokenclean.models.loading.load import ModelSource
from tokenclean.observer import Progress
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.training.adapters import ROUND, save_rounds
from tokenclean.training.batch_packs import selected_lengths
from tokenclean.training.fine_tune import load_to_train
from tokenclean.training.train_step import NonFiniteLossError, TrainingStep

if TYPE_CHECKING:
    from peft import PeftModel

STEP = "step"
"""Folder of the step's adapter."""

FIRST_ORDER_SHARE = 0.8
"""A step is short enough where the loss falls by at least this share of what its gradient predicts."""

_FIRST_SHARE = 0.1
"""Of the loss: what the gradient predicts of the first rate tried."""

_MOST_HALVINGS = 30


@dataclass(frozen=True)
class OneStep:
    """``rate``: η of θ − η·∇, after ``halvings`` of the first one tried. ``loss``: mean over the rows' weighted tokens
    in nats; ``drop``: by how much the step lowers it; ``predicted``: by how much the gradient says."""

    rows: int
    tokens: int
    rate: float
    halvings: int
    loss: float
    drop: float
    predicted: float

    def as_manifest(self) -> dict[str, object]:
        """For a stage's manifest."""
        return asdict(self)

    @classmethod
    def of_manifest(cls, results: Mapping[str, Any]) -> OneStep:
        """Read from there."""
        return cls(**{field.name: results[field.name] for field in fields(cls)})

    def __str__(self) -> str:
        return (
            f"η {self.rate:.3g} on {self.tokens:,} tokens of {self.rows:,} rows lowers their loss {self.loss:.4f} by "
            f"{self.drop:.4f} nats, {self.drop / self.predicted:.0%} of what the gradient predicts"
        )


@dataclass(frozen=True)
class LoraPair:
    """The LoRA of one layer: ΔW = scale · B · A. ``a``: (rank, inputs); ``b``: (outputs, rank)."""

    a: torch.nn.Parameter
    b: torch.nn.Parameter
    scale: float

    def place(self, direction: Direction, rate: float) -> None:
        """Let ΔW be −rate times the direction."""
        with torch.no_grad():
            self.b.copy_(direction.columns)
            self.a.copy_(direction.rows * (-rate / self.scale))


@dataclass(frozen=True)
class Direction:
    """A change of one layer's weights: ``columns`` @ ``rows``. ``columns``: (outputs, rank), orthonormal or 0, so that
    the Frobenius norm is that of ``rows``, (rank, inputs)."""

    columns: torch.Tensor
    rows: torch.Tensor

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(torch.linalg.vector_norm(self.rows))

    def scaled_to(self, norm: float) -> Direction:
        """The same direction at this Frobenius norm."""
        return Direction(self.columns, self.rows * (norm / self.norm if self.norm else 0.0))


def write_one_step(
    source: ModelSource,
    input_ids: Ragged,
    weights: Ragged,
    settings: TrainingSettings,
    folder: Path,
    *,
    nulls: int,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
    row_names: Sequence[str] | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> OneStep:
    """Step once down the gradient of the mean loss over the rows' weighted tokens, and write the change to ``folder``.

    ``input_ids``: int64; ``weights``: float, aligned, 0 for a token that does not count; of ``settings`` the LoRA's
    rank and modules, the precision, the packs and the loss's normalisation are used. The rate η begins where the
    gradient predicts to lower the loss by a tenth, and is halved until the loss falls by ``FIRST_ORDER_SHARE`` of the
    prediction. Writes the adapter ``STEP``, and ``nulls`` adapters ``null_name``: the gradient at the same rows with a
    random sign for each of them, in every layer as long (Frobenius norm) as the step. Adapters of ``source`` are summed
    in. Among several ``processes`` all call this alike, and the first writes. ``row_names``: for errors.

    Raises TrainingError where no row has a weighted token, where a loss is not finite, or where no rate is found; else
    as ``fine_tune.train``.
    """
    input_ids.check_aligned(weights)
    rows = np.flatnonzero(selected_lengths(weights) > 0).tolist()
    if not rows:
        raise TrainingError(f"none of {len(input_ids)} rows has a token to take a step on")
    torch.manual_seed(seed)
    settings = step_settings(settings)
    _, model = load_to_train(source, settings, None, device)
    assert model is not None
    longest = int(input_ids.lengths.max(initial=0))
    step = TrainingStep(model, settings, device=device, longest_row=longest, processes=processes)
    names = [str(row) for row in range(len(input_ids))] if row_names is None else row_names
    gradient = _Gradient(step, lora_pairs(model), input_ids, rows, names)
    directions = gradient.of(weights)
    found = _place_first_order_step(gradient, weights, directions)
    save_rounds(model, folder / STEP, base=source.base, processes=processes)
    for number in range(nulls):
        if progress is not None:
            progress(1 + number, 1 + nulls)
        random = gradient.of(_with_random_signs(weights, [seed, number]))
        gradient.place([null.scaled_to(own.norm) for null, own in zip(random, directions, strict=True)], found.rate)
        save_rounds(model, folder / null_name(number), base=source.base, processes=processes)
    if progress is not None:
        progress(1 + nulls, 1 + nulls)
    return found


def null_name(number: int) -> str:
    """Folder of the adapter of a step that says nothing, numbered from 0."""
    return f"null-{number + 1}"


def step_settings(settings: TrainingSettings) -> TrainingSettings:
    """The settings under which a step is taken: LoRA without dropout, whatever the trainings are; not sharded, since
    scoring, which follows, needs the whole model in each process too."""
    lora = settings.lora.model_copy(update={"dropout": 0.0})
    return settings.model_copy(update={"method": "lora", "lora": lora, "sharding": "none"})


def lora_pairs(model: PeftModel) -> list[LoraPair]:
    """The trained LoRA of every layer, in the model's order."""
    from peft import LoraConfig

    config, parameters = model.peft_config[ROUND], dict(model.named_parameters())
    assert isinstance(config, LoraConfig)
    scale = config.lora_alpha / config.r
    return [
        LoraPair(parameter, parameters[name.replace("_A", "_B")], scale)
        for name, parameter in parameters.items()
        if ROUND in (parts := name.split(".")) and not {"lora_A", "lora_embedding_A"}.isdisjoint(parts)
    ]


@dataclass(frozen=True)
class _Gradient:
    """Gradients of the mean loss over ``rows`` of ``input_ids`` at the model of ``step``, as low-rank directions.
    ``names``: of all rows."""

    step: TrainingStep
    pairs: list[LoraPair]
    input_ids: Ragged
    rows: list[int]
    names: Sequence[str]

    def of(self, weights: Ragged) -> list[Direction]:
        """The leading directions of each layer's gradient, from two passes over the rows."""
        for pair in self.pairs:
            _fill(pair.a, torch.randn(pair.a.shape))
            _fill(pair.b, None)
        self._backward(weights)
        for pair in self.pairs:
            _fill(pair.b, orthonormal(_gradient_of(pair.b)))
            _fill(pair.a, None)
        self._backward(weights)
        return [Direction(pair.b.detach().clone(), _gradient_of(pair.a) / pair.scale) for pair in self.pairs]

    def place(self, directions: list[Direction], rate: float) -> None:
        """Let every layer be changed by −rate times its direction."""
        for pair, direction in zip(self.pairs, directions, strict=True):
            pair.place(direction, rate)

    def loss(self, weights: Ragged) -> float:
        """Mean loss of the rows under the LoRAs as they are, nats; infinite where one is not finite."""
        try:
            return self.step.loss_of(self.input_ids, weights, self.rows)
        except NonFiniteLossError:
            return math.inf

    def _backward(self, weights: Ragged) -> None:
        self.step.model.zero_grad(set_to_none=True)
        try:
            self.step(self.input_ids, weights, self.rows)
        except NonFiniteLossError as error:
            raise TrainingError(f"the loss of row {self.names[error.row]} is {error.loss}; look at that row") from error


def orthonormal(matrix: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span those of ``matrix``, (outputs, rank); where rank > outputs the last ones are 0."""
    columns = torch.linalg.qr(matrix)[0]
    return torch.nn.functional.pad(columns, (0, matrix.shape[1] - columns.shape[1]))


def _place_first_order_step(gradient: _Gradient, weights: Ragged, directions: list[Direction]) -> OneStep:
    """Let the model take the step, at the first rate that is small enough."""
    slope = sum(direction.norm**2 for direction in directions)
    gradient.place(directions, 0.0)
    loss = gradient.loss(weights)
    rate = _FIRST_SHARE * loss / slope if slope else 0.0
    for halvings in range(_MOST_HALVINGS if 0 < rate < math.inf else 0):
        gradient.place(directions, rate)
        drop = loss - gradient.loss(weights)
        if drop >= FIRST_ORDER_SHARE * rate * slope:
            tokens = int(np.count_nonzero(weights.values))
            return OneStep(len(gradient.rows), tokens, rate, halvings, loss, drop, rate * slope)
        rate /= 2
    raise TrainingError(
        f"no step lowers the loss of the {len(gradient.rows)} rows, {loss:.4f} nats, as their gradient (squared norm "
        f"{slope:.3g}) predicts; they may be learnt already, or training.precision is too coarse for them: use exact"
    )


def _with_random_signs(weights: Ragged, seed: list[int]) -> Ragged:
    """Each row's weights times +1 or −1."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], len(weights))
    return weights.with_values((weights.values * np.repeat(signs, weights.lengths)).astype(np.float32))


def _fill(parameter: torch.nn.Parameter, values: torch.Tensor | None) -> None:
    """Set a parameter; None for 0."""
    with torch.no_grad():
        parameter.zero_() if values is None else parameter.copy_(values)


def _gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Its gradient; 0 where nothing depends on it, as of an expert that no token was sent to."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
