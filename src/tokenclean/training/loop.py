"""The loop of optimizer steps: a thin ``transformers.Trainer`` with our step, our state and our journal."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler

from tokenclean.errors import MissingExtraError, RecipeError, TrainingError
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.store import disk_refusal
from tokenclean.training.checkpoint import (
    last_checkpoint,
    load_optimizer,
    load_random,
    load_trained,
    read_record,
    save_checkpoint,
)
from tokenclean.training.collate import selected_lengths
from tokenclean.training.journal import JOURNAL, Journal
from tokenclean.training.online_mixture import OnlineMixture
from tokenclean.training.optimizer_state import load_moments, save_moments
from tokenclean.training.sharding import shard
from tokenclean.training.sigterm import termination
from tokenclean.training.step_plan import StepPlan
from tokenclean.training.train_step import NonFiniteLossError, TrainingStep

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called after each optimizer step with (steps done, steps in all)."""


class _Rows(Dataset):
    """Row numbers; the collator turns a batch of them into packs."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return int(self.rows[index])


@dataclass(frozen=True)
class TrainingData:
    """``rows`` are trained, ``eval_rows`` set aside; ``names``: of all rows, for errors; ``what``: the training's name,
    for its states."""

    input_ids: Ragged
    weights: Ragged
    rows: np.ndarray
    eval_rows: np.ndarray
    names: Sequence[str]
    what: str = ""


@dataclass
class Done:
    """What has come out so far; a checkpoint holds it."""

    losses: list[float] = field(default_factory=list)
    eval_losses: list[float] = field(default_factory=list)
    row_rates: dict[int, float] = field(default_factory=dict)


def run_steps(
    model: torch.nn.Module,
    data: TrainingData,
    settings: TrainingSettings,
    steps: StepPlan,
    seed: int,
    device: str,
    progress: Progress | None,
    mixture: OnlineMixture | None,
    place: Path,
    saves: bool,
    processes: Processes = SINGLE_PROCESS,
    moments_from: Path | None = None,
    moments_to: Path | None = None,
) -> Done:
    """Take all steps, or those that are left after the last state in ``place``; the model is trained in place.

    ``place``: folder of the journal and, where it ``saves``, of the state. ``processes``: the processes that share each
    batch; the first writes. ``moments_from``, ``moments_to``: folders whose moments the optimizer starts with, and to
    which it hands them at the end. Raises as ``trainer.train``, and RecipeError for a tracker of ``report_to`` that is
    not installed.
    """
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "training") from error
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    if missing := sorted(set(settings.report_to) - set(get_available_reporting_integrations())):
        raise RecipeError(f"training.report_to: {missing[0]} is not installed: pip install {missing[0]}")
    longest = int(data.input_ids.lengths.max(initial=0))
    step = TrainingStep(model, settings, device=device, longest_row=longest, mixture=mixture, processes=processes)
    if processes.count > 1:
        for parameter in model.parameters():
            if parameter.requires_grad:
                processes.broadcast(parameter.data)
        if settings.sharding == "fsdp2":
            shard(step, processes)
    # The first looks for all: a state must not be whole for one and damaged for another.
    found = str(last_checkpoint(place) or "") if saves and processes.is_first else ""
    last = Path(found) if (found := processes.gather(found)[0]) else None
    done = Done() if last is None else _from_record(read_record(last))
    step.row_rates = done.row_rates
    journal = Journal(place / JOURNAL, steps.steps, len(done.losses)) if processes.is_first else None
    if last is not None:
        logger.info("going on after step %d of %d", len(done.losses), steps.steps)

    def collate(rows: list[int]) -> dict[str, Any]:
        chosen = data.weights.take(rows)
        return {
            "rows": rows,
            "packs": step.packs(data.input_ids, data.weights, rows),
            "tokens": int(selected_lengths(chosen).sum()),
            "selected": int(np.count_nonzero(chosen.values)),
        }

    class SelectedTokenTrainer(Trainer):
        """The batch is the optimizer's whole batch; its packs are run one after another within one step."""

        tokens = selected = 0

        def get_train_dataloader(self) -> Any:
            """Every rank gets every whole batch, of which it then takes its share."""
            loader = super().get_train_dataloader()
            if processes.count > 1:
                batches: Any = loader.batch_sampler
                batches.num_processes, batches.process_index, batches.even_batches = 1, 0, False
                torch.manual_seed(seed + processes.rank)  # of the dropout masks; the order of the rows is drawn by now
            return loader

        def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
            """Another object says that the model is wrapped already: the step itself brings the gradients together."""
            return model if processes.count == 1 else step.model

        def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            packs = inputs["packs"]
            try:
                loss = step.train_packs(packs, self.accelerator.backward)
            except NonFiniteLossError as error:
                batch = ", ".join(data.names[int(row)] for row in inputs["rows"])
                raise TrainingError(
                    f"the loss of step {len(done.losses) + 1} is {error.loss} in row {data.names[error.row]}, of the "
                    f"batch {batch}; lower training.learning_rate, or look at that row"
                ) from error
            done.losses.append(loss)
            self.tokens, self.selected = inputs["tokens"], inputs["selected"]
            return torch.tensor(loss, device=step.causal_lm.device)

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            try:
                loss = step.loss_of_packs(step.packs(data.input_ids, data.weights, data.eval_rows.tolist()))
            except NonFiniteLossError as error:
                raise TrainingError(
                    f"the loss of row {data.names[error.row]}, set aside, is {error.loss}; lower training.learning_rate"
                ) from error
            done.eval_losses.append(loss)
            logger.info("epoch %g: loss of the %d rows set aside %.4f", self.state.epoch, len(data.eval_rows), loss)
            return {"eval_loss": loss}

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            """To ``report_to``: what the journal says of the step instead of the Trainer's own few numbers."""
            super().log({**logs, **report.line}, *args, **kwargs)

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            optimizer = super().create_optimizer(*args, **kwargs)
            if moments_from is not None:
                load_moments(moments_from, model, optimizer)
            return optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            """The rates of the whole schedule, at the positions of this training's steps."""
            whole: Any = super().create_scheduler(steps.part.total, optimizer)
            rate = whole.lr_lambdas[0]
            self.lr_scheduler = LambdaLR(whole.optimizer, lambda number: rate(steps.position(number)))
            return self.lr_scheduler

        def save_state_at(self, step_number: int) -> None:
            record = {**asdict(done), "row_rates": list(done.row_rates.items())}
            record |= {"what": data.what, "steps": steps.steps}
            try:
                save_checkpoint(
                    place,
                    step_number,
                    model,
                    self.optimizer,
                    self.lr_scheduler,
                    record,
                    lambda folder: self.state.save_to_json(str(folder / "trainer_state.json")),
                    processes,
                )
            except OSError as error:
                raise TrainingError(
                    f"cannot save the state at step {step_number} ({disk_refusal(error) or error}); the one before "
                    "stands, and the same command goes on from it once there is room"
                ) from error

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            load_trained(Path(resume_from_checkpoint), step.model)

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is not None:
                load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)

        def _load_rng_state(self, checkpoint: str | None) -> None:
            if checkpoint is not None:
                load_random(Path(checkpoint), processes)

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return (
                super()._get_train_sampler(train_dataset) if settings.shuffle else SequentialSampler(_Rows(data.rows))
            )

    class Report(TrainerCallback):
        """After each step: progress, journal, and the checkpoint where its time has come."""

        def __init__(self, is_stopping: Callable[[], bool]) -> None:
            self.line: dict[str, Any] = {}
            self._is_stopping, self._saved = is_stopping, time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            number = state.global_step
            facts = {
                "loss": done.losses[-1],
                "learning_rate": kwargs["lr_scheduler"].get_last_lr()[0],
                "selected_share": trainer.selected / max(trainer.tokens, 1),
            }
            if journal is not None:
                self.line = journal.write(number, facts, trainer.tokens, device)
            if progress is not None:
                progress(number, steps.steps)
            is_due = time.monotonic() - self._saved >= 60 * settings.checkpoint_minutes
            told = processes.gather(
                [self._is_stopping(), is_due]
            )  # the first rank's clock counts, and any rank's SIGTERM
            is_stopping, is_due = any(stops for stops, _ in told), told[0][1]
            if saves and (is_stopping or (is_due and number < steps.steps)):
                trainer.save_state_at(number)
                self._saved = time.monotonic()
            if is_stopping:
                logger.warning("stopped by SIGTERM after step %d of %d", number, steps.steps)
                raise SystemExit(143)

    with tempfile.TemporaryDirectory() as scratch, termination() as is_stopping:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=steps.batch_size,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=steps.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=seed,
            eval_strategy="epoch" if len(data.eval_rows) else "no",
            save_strategy="no",
            logging_strategy="steps" if settings.report_to else "no",
            logging_steps=1,
            report_to=list(settings.report_to),
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=device == "cpu",
        )
        if arguments.world_size != processes.count:
            raise TrainingError(
                f"{arguments.world_size} processes were started, but the training knows of {processes.count}; start "
                "tokenclean run with torchrun or accelerate launch, or a single process without them"
            )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # one device; the Trainer would wrap the model in DataParallel
        report = Report(is_stopping)
        trainer = SelectedTokenTrainer(
            model=step.module,
            args=arguments,
            train_dataset=_Rows(data.rows),
            eval_dataset=_Rows(data.eval_rows) if len(data.eval_rows) else None,
            data_collator=collate,
            callbacks=[report],
        )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise TrainingError(
                "found the launcher set to FSDP or DeepSpeed; start it without (torchrun, or accelerate launch "
                "--multi_gpu), and set training.sharding: fsdp2 to shard the model"
            )
        trainer.remove_callback(PrinterCallback)  # the caller's progress speaks instead
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if len(done.losses) != steps.steps:
        raise TrainingError(f"planned {steps.steps} optimizer steps but took {len(done.losses)}")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise TrainingError(f"{name} is not finite after training; lower training.learning_rate")
    if moments_to is not None:
        save_moments(moments_to, model, trainer.optimizer, processes)
    return done


def _from_record(record: Mapping[str, Any]) -> Done:
    return Done(record["losses"], record["eval_losses"], {int(row): rate for row, rate in record["row_rates"]})
