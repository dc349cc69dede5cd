"""The loop of optimizer steps, with its journal, its saved states and its evaluations."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from tokenclean.errors import TrainingError
from tokenclean.observer import Progress
from tokenclean.ragged import Ragged
from tokenclean.store import disk_refusal
from tokenclean.training.batch_packs import selected_lengths
from tokenclean.training.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from tokenclean.training.journal import JOURNAL, Journal, Trackers
from tokenclean.training.optimizer import learning_rates
from tokenclean.training.sharding import whole
from tokenclean.training.step_plan import StepPlan
from tokenclean.training.train_step import NonFiniteLossError, TrainingStep

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """``rows`` are trained, ``eval_rows`` set aside: numbers of rows of ``input_ids`` and ``weights``. ``names``: of
    all rows, for errors."""

    input_ids: Ragged
    weights: Ragged
    rows: np.ndarray
    eval_rows: np.ndarray
    names: Sequence[str]


@dataclass
class TrainingHistory:
    """What a training has recorded up to some step: see ``fine_tune.TrainingResult``."""

    losses: list[float] = field(default_factory=list)
    eval_losses: list[float] = field(default_factory=list)
    row_rates: dict[int, float] = field(default_factory=dict)


@dataclass
class TrainingLoop:
    """Trains the model of ``step`` in place.

    ``place``: folder of the journal and, if it ``saves``, of the state, from which a loop that was stopped continues.
    ``name``: of the training, kept with its states.
    """

    step: TrainingStep
    optimizer: torch.optim.Optimizer
    data: TrainingData
    plan: StepPlan
    seed: int
    place: Path
    saves: bool
    name: str
    progress: Progress | None

    def __post_init__(self) -> None:
        self._settings, self._processes = self.step.settings, self.step.processes
        self._learning_rate = learning_rates(self._settings, self.plan)
        self._steps_an_epoch = self.plan.steps // self._settings.epochs
        self._history = TrainingHistory()
        self._saved = time.monotonic()

    def run(self) -> TrainingHistory:
        """Take all steps that are left. Raises as ``fine_tune.train``."""
        device = self.step.causal_lm.device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # a state holds the random numbers of the current device
        torch.manual_seed(self.seed + self._processes.rank)  # of the dropout masks
        done = self._resume()
        self.step.row_rates = self._history.row_rates
        journal = Journal(self.place / JOURNAL, self.plan.steps, done) if self._processes.is_first else None
        trackers = Trackers(self.step, self.plan, self.seed) if self._settings.report_to else None
        with termination() as is_stopping:
            for number, rows in self._batches_after(done):
                gradient_norm = self._take_step(number, rows)
                self._report(number, rows, gradient_norm, journal, trackers)
                if number % self._steps_an_epoch == 0 and len(self.data.eval_rows):
                    self._evaluate(number // self._steps_an_epoch)
                self._save_where_due(number, is_stopping())
        if trackers is not None:
            trackers.close()
        for name, parameter in self.step.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise TrainingError(f"{name} is not finite after training; lower training.learning_rate")
        return self._history

    def _resume(self) -> int:
        """Continue from the last state, if there is one; how many steps are done."""
        # The first process looks for all: a state must not be whole for one and damaged for another.
        found = str(last_checkpoint(self.place) or "") if self.saves and self._processes.is_first else ""
        if not (found := self._processes.gather(found)[0]):
            return 0
        record = load_checkpoint(Path(found), self.step.model, self.optimizer, self._processes)
        rates = {int(row): rate for row, rate in record["row_rates"]}
        self._history = TrainingHistory(record["losses"], record["eval_losses"], rates)
        done = len(self._history.losses)
        logger.info("resuming after step %d of %d", done, self.plan.steps)
        return done

    def _batches_after(self, done: int) -> Iterator[tuple[int, list[int]]]:
        """Number, from 1, and rows of each step but the first ``done``."""
        number, size = 0, self.plan.batch_size
        for epoch in range(self._settings.epochs):
            if number >= done:
                # Unused: torch's DataLoader, which drew the batches once, draws it at the start of an epoch, and a seed
                # is to give the same dropout masks as ever.
                torch.empty((), dtype=torch.int64).random_()
            rows = self._rows_of(epoch)
            for start in range(0, len(rows), size):
                number += 1
                if number > done:
                    yield number, rows[start : start + size].tolist()

    def _rows_of(self, epoch: int) -> np.ndarray:
        """All trained rows in the order of this epoch, from 0."""
        rows = self.data.rows
        if not self._settings.shuffle:
            return rows
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed + epoch)).numpy()]

    def _take_step(self, number: int, rows: list[int]) -> torch.Tensor:
        """Train one batch; the norm of its gradient before clipping."""
        data, step = self.data, self.step
        try:
            loss = step(data.input_ids, data.weights, rows)
        except NonFiniteLossError as error:
            batch = ", ".join(data.names[row] for row in rows)
            raise TrainingError(
                f"the loss of step {number} is {error.loss} in row {data.names[error.row]}, of the batch {batch}; "
                "lower training.learning_rate, or look at that row"
            ) from error
        self._history.losses.append(loss)
        norm = clip_grad_norm_(step.model.parameters(), self._settings.max_grad_norm or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(number - 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _report(
        self, number: int, rows: list[int], norm: torch.Tensor, journal: Journal | None, trackers: Trackers | None
    ) -> None:
        """To the journal, the trackers and the caller's progress."""
        weights = self.data.weights.take(rows)
        tokens = int(selected_lengths(weights).sum())
        figures = {
            "loss": self._history.losses[-1],
            "learning_rate": self._learning_rate(number),
            "selected_share": np.count_nonzero(weights.values) / max(tokens, 1),
        }
        if journal is not None:
            figures = journal.write(number, figures, tokens, self.step.causal_lm.device)
        if trackers is not None:
            trackers.log(number, {**figures, "grad_norm": float(whole(norm))})
        if self.progress is not None:
            self.progress(number, self.plan.steps)

    def _evaluate(self, epoch: int) -> None:
        data, step = self.data, self.step
        try:
            loss = step.loss_of(data.input_ids, data.weights, data.eval_rows.tolist())
        except NonFiniteLossError as error:
            raise TrainingError(
                f"the loss of row {data.names[error.row]}, set aside, is {error.loss}; lower training.learning_rate"
            ) from error
        self._history.eval_losses.append(loss)
        logger.info("epoch %d: loss of the %d rows set aside %.4f", epoch, len(data.eval_rows), loss)

    def _save_where_due(self, number: int, is_stopping: bool) -> None:
        """Save the state if it is time to, or if SIGTERM came to any process, after which SystemExit is raised."""
        is_due = time.monotonic() - self._saved >= 60 * self._settings.checkpoint_minutes
        answers = self._processes.gather([is_stopping, is_due])
        is_stopping, is_due = any(stops for stops, _ in answers), answers[0][1]  # the first process has the clock
        if self.saves and (is_stopping or (is_due and number < self.plan.steps)):
            self._save(number)
        if is_stopping:
            logger.warning("stopped by SIGTERM after step %d of %d", number, self.plan.steps)
            raise SystemExit(143)

    def _save(self, number: int) -> None:
        record = {**asdict(self._history), "row_rates": list(self._history.row_rates.items())}
        record |= {"what": self.name, "steps": self.plan.steps}
        try:
            save_checkpoint(self.place, number, self.step.model, self.optimizer, record, self._processes)
        except OSError as error:
            raise TrainingError(
                f"cannot save the state at step {number} ({disk_refusal(error) or error}); the one before is kept, and "
                "the same command continues from it once there is room"
            ) from error
        self._saved = time.monotonic()


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM (which a cluster sends before it kills) is only noted, and acted on
    after the current step; yields a function: did it come?

    Python delivers signals to the main thread alone; in any other the function always returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
