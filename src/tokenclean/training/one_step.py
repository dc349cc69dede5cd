"""One plain gradient step on given rows, and steps as long with random signs of the rows, each a LoRA on the base.

A full gradient G of a layer would take the memory of the layer once more. A LoRA ΔW = s·B·A gives its best known part:
with a random A and B = 0 the gradient of B is s·G·Aᵀ, whose column space nearly holds G's leading directions Q; with
B = Q and A = 0 the gradient of A is then s·QᵀG, so Q·QᵀG is the randomized truncated SVD of G (Halko, Martinsson and
Tropp 2011, Algorithm 4.1), from two backward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tokenclean.errors import TrainingError
from tokenclean.models.loading.load import ModelSource
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

_GROUPS = 16


@dataclass(frozen=True)
class OneStep:
    """``rate``: η of θ − η·∇, after ``halvings`` of the first one tried. ``loss``: mean over the rows' weighted tokens
    in nats; ``drop``: by how much the step lowers it; ``predicted``: by how much the gradient says. ``null_length``:
    mean Frobenius norm of the gradients with random signs over the gradient's, 1 where the rows have nothing in
    common; NaN without any."""

    rows: int
    tokens: int
    rate: float
    halvings: int
    loss: float
    drop: float
    predicted: float
    null_length: float

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
            f"{self.drop:.4f} nats, {self.drop / self.predicted:.0%} of what the gradient predicts; with "
            f"random signs of the rows the gradient is {self.null_length:.2f} times as long"
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
        """The same direction at this Frobenius norm; 0 stays 0."""
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
    row_names: Sequence[str] | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> OneStep:
    """Step once down the gradient of the mean loss over the rows' weighted tokens, and write the change to ``folder``.

    ``input_ids``: int64; ``weights``: float, aligned, 0 for a token that does not count; of ``settings`` the LoRA's
    rank and modules, the precision, the packs and the loss's normalisation are used. The rate η begins where the
    gradient predicts to lower the loss by a tenth, and is halved until the loss falls by ``FIRST_ORDER_SHARE`` of the
    prediction. Writes the adapter ``STEP``, and ``nulls`` adapters ``null_name``: the gradient with random signs of
    the rows (``sign_patterns``), which leave nothing of what the rows agree on, in every layer as long (Frobenius norm)
    as the step. So these are made of what gradients are made of; an isotropic step of this length would hardly change
    a loss. Adapters of ``source`` are summed in. Among several ``processes`` all call this alike, and the first writes.
    ``row_names``: for errors.

    Raises TrainingError where no row has a weighted token, where a loss is not finite, or where no rate is found; else
    as ``fine_tune.train``.
    """
    input_ids.check_aligned(weights)
    rows = np.flatnonzero(selected_lengths(weights) > 0).tolist()
    if len(rows) < 2:
        raise TrainingError(
            f"{len(rows)} of {len(input_ids)} rows have a token to take a step on; expected at least 2, and "
            "better 50 to 200"
        )
    torch.manual_seed(seed)
    settings = step_settings(settings)
    _, model = load_to_train(source, settings, None, device)
    assert model is not None
    longest = int(input_ids.lengths.max(initial=0))
    step = TrainingStep(model, settings, device=device, longest_row=longest, processes=processes)
    names = [str(row) for row in range(len(input_ids))] if row_names is None else row_names
    gradient = _Gradient(step, lora_pairs(model), input_ids, weights, rows, names)
    own, *random = gradient.directions(sign_patterns(nulls, len(rows), seed))
    found = _place_first_order_step(gradient, own, random)
    save_rounds(model, folder / STEP, base=source.base, processes=processes)
    for number, null in enumerate(random):
        gradient.place([d.scaled_to(o.norm) for d, o in zip(null, own, strict=True)], found.rate)
        save_rounds(model, folder / null_name(number), base=source.base, processes=processes)
    return found


def null_name(number: int) -> str:
    """Folder of the adapter of a step that says nothing, numbered from 0."""
    return f"null-{number + 1}"


def step_settings(settings: TrainingSettings) -> TrainingSettings:
    """The settings under which a step is taken: LoRA without dropout, even if trainings are full or use it; not
    sharded, since scoring, which follows, needs the whole model in each process too."""
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


def sign_patterns(count: int, rows: int, seed: int) -> np.ndarray:
    """(1 + count, rows), ±1: a row of ones, then random patterns. In each of these half of the groups has either sign,
    so that what the rows agree on cancels; ``_GROUPS`` groups of rows, drawn at random, so that rows of one group can
    go through the model together."""
    generator = np.random.default_rng(seed)
    groups = min(_GROUPS, rows)
    group_of_row = generator.permutation(np.arange(rows) % groups)
    balanced = np.where(np.arange(groups) % 2 == 0, 1, -1)
    return np.stack([np.ones(rows, np.int64), *(generator.permutation(balanced)[group_of_row] for _ in range(count))])


@dataclass(frozen=True)
class _Gradient:
    """Gradients of the mean loss over ``rows``, the weighted rows of ``input_ids``, as low-rank directions. ``names``:
    of all rows."""

    step: TrainingStep
    pairs: list[LoraPair]
    input_ids: Ragged
    weights: Ragged
    rows: list[int]
    names: Sequence[str]

    def directions(self, signs: np.ndarray) -> list[list[Direction]]:
        """For each row of ``signs``, (directions, rows), the gradient of the loss with these signs of the rows, in
        every layer, in the leading output directions of the gradient itself. From two passes over the rows."""
        for pair in self.pairs:
            _fill(pair.a, torch.randn(pair.a.shape))
            _fill(pair.b, None)
        self._backward(self.rows)
        for pair in self.pairs:
            _fill(pair.b, orthonormal(_gradient_of(pair.b)))
            _fill(pair.a, None)
        sums = [[torch.zeros_like(pair.a) for pair in self.pairs] for _ in signs]
        for members, share in self._groups(signs):
            self._backward([self.rows[member] for member in members])
            for row_signs, of_layers in zip(signs, sums, strict=True):
                for pair, total in zip(self.pairs, of_layers, strict=True):
                    total.add_(_gradient_of(pair.a), alpha=share * float(row_signs[members[0]]) / pair.scale)
        columns = [pair.b.detach().clone() for pair in self.pairs]
        return [[Direction(*parts) for parts in zip(columns, of_layers, strict=True)] for of_layers in sums]

    def place(self, directions: list[Direction], rate: float) -> None:
        """Let every layer be changed by −rate times its direction."""
        for pair, direction in zip(self.pairs, directions, strict=True):
            pair.place(direction, rate)

    def loss(self) -> float:
        """Mean loss of the rows under the LoRAs as they are, nats; infinite where one is not finite."""
        try:
            return self.step.loss_of(self.input_ids, self.weights, self.rows)
        except NonFiniteLossError:
            return math.inf

    def _groups(self, signs: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        """Rows that have the same sign in every pattern, which one pass may take together, and their share of the
        mean."""
        _, group_of_row = np.unique(signs, axis=1, return_inverse=True)
        sizes = np.ones(len(self.rows))
        if self.step.settings.loss_normalisation == "token":
            sizes = self.weights.map_values(np.abs).row_sums()[self.rows]
        for group in range(int(group_of_row.max()) + 1):
            members = np.flatnonzero(group_of_row == group)
            yield members, float(sizes[members].sum() / sizes.sum())

    def _backward(self, rows: list[int]) -> None:
        self.step.model.zero_grad(set_to_none=True)
        try:
            self.step(self.input_ids, self.weights, rows)
        except NonFiniteLossError as error:
            raise TrainingError(f"the loss of row {self.names[error.row]} is {error.loss}; look at that row") from error


def orthonormal(matrix: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns that span those of ``matrix``, (outputs, rank); where rank > outputs the last ones are 0."""
    columns = torch.linalg.qr(matrix)[0]
    return torch.nn.functional.pad(columns, (0, matrix.shape[1] - columns.shape[1]))


def _place_first_order_step(gradient: _Gradient, directions: list[Direction], random: list[list[Direction]]) -> OneStep:
    """Let the model take the step, at the first rate that is small enough."""
    slope = _length(directions) ** 2
    gradient.place(directions, 0.0)
    loss = gradient.loss()
    rate = _FIRST_SHARE * loss / slope if slope else 0.0
    for halvings in range(_MOST_HALVINGS if 0 < rate < math.inf else 0):
        gradient.place(directions, rate)
        drop = loss - gradient.loss()
        if drop >= FIRST_ORDER_SHARE * rate * slope:
            tokens = int(np.count_nonzero(gradient.weights.values))
            length = float(np.mean([_length(null) for null in random])) / math.sqrt(slope) if random else math.nan
            return OneStep(len(gradient.rows), tokens, rate, halvings, loss, drop, rate * slope, length)
        rate /= 2
    raise TrainingError(
        f"no step lowers the loss of the {len(gradient.rows)} rows, {loss:.4f} nats, as their gradient (squared norm "
        f"{slope:.3g}) predicts; they may be learnt already, or training.precision is too coarse for them: use exact"
    )


def _length(directions: list[Direction]) -> float:
    """Frobenius norm over all layers."""
    return math.sqrt(sum(direction.norm**2 for direction in directions))


def _fill(parameter: torch.nn.Parameter, values: torch.Tensor | None) -> None:
    """Set a parameter; None for 0."""
    with torch.no_grad():
        parameter.zero_() if values is None else parameter.copy_(values)


def _gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Its gradient; 0 where nothing depends on it, as of an expert that no token was sent to."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
