"""Fine-tuning on the selected tokens: a thin ``transformers.Trainer``."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler

from tokenclean.errors import MissingExtraError, TrainingError
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer
from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.training.adapters import add_fresh_lora, save_rounds
from tokenclean.training.collate import Pack, batch_packs, selected_lengths
from tokenclean.training.steps import StepPlan, plan_steps

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called after each optimizer step with (steps done, steps in all)."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    ``steps``/``effective_steps``: optimizer steps, and those with a learning rate above 0. ``trained_rows``,
    ``dropped_rows``: with and without a selected token. ``selected_tokens``: tokens of weight above 0 an epoch.
    ``losses``: the batch loss of each step, nats. ``eval_losses``: after each epoch, of the rows set aside.
    """

    steps: int
    effective_steps: int
    batch_size: int
    trained_rows: int
    dropped_rows: int
    eval_rows: int
    selected_tokens: int
    losses: tuple[float, ...]
    eval_losses: tuple[float, ...]

    def as_manifest(self) -> dict[str, Any]:
        return asdict(self)


def train(
    source: ModelSource,
    input_ids: Ragged,
    weights: Ragged,
    settings: TrainingSettings,
    folder: Path,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainingResult:
    """Fine-tune ``source`` on the tokens of weight above 0 and write the model to ``folder``.

    ``input_ids``: int64; ``weights``: float, aligned, 0 for a token that is not trained (Eq. 1's y, or any weight).
    LoRA writes one adapter on ``source.base``, the sum of ``source.adapter`` and this round; full fine-tuning writes
    a whole model. Rows with nothing selected are dropped and counted.

    Raises TrainingError when no row has a selected token, or when a loss or gradient is not finite.
    """
    input_ids.check_aligned(weights)
    rows = np.flatnonzero(selected_lengths(weights) > 0)
    dropped = len(input_ids) - len(rows)
    if len(rows) <= settings.eval_rows:
        raise TrainingError(f"{len(rows)} of {len(input_ids)} rows have a selected token: too few to train on; raise k")
    rows, eval_rows = _set_aside(rows, settings.eval_rows, seed)
    steps = plan_steps(len(rows), settings)
    torch.manual_seed(seed)
    base = load_model(replace(source, adapter=None), device=device)
    earlier = Path(source.adapter) if source.adapter else None
    model: Any = base
    if settings.method == "lora":
        model = add_fresh_lora(base, settings.lora, earlier)
    elif earlier is not None:
        raise TrainingError("full fine-tuning cannot go on from an adapter; merge it into its base first")
    losses, eval_losses = _run(model, input_ids, weights, rows, eval_rows, settings, steps, seed, device, progress)
    if settings.method == "lora":
        save_rounds(model, folder, base=source.base)
    else:
        base.save_pretrained(folder)
        load_tokenizer(source).save_pretrained(folder)
    return TrainingResult(
        steps=steps.steps,
        effective_steps=steps.effective_steps,
        batch_size=steps.batch_size,
        trained_rows=len(rows),
        dropped_rows=dropped,
        eval_rows=len(eval_rows),
        selected_tokens=int(np.count_nonzero(weights.take(rows).values)),
        losses=tuple(losses),
        eval_losses=tuple(eval_losses),
    )


def batch_loss(causal_lm: CausalLM, packs: list[Pack], backward: Callable[[torch.Tensor], None] | None = None) -> float:
    """Σ coefficient · ℓ over all packs, in nats; with ``backward``, each pack's share is handed to it at once."""
    total = 0.0
    for pack in packs:
        ids, positions = (torch.from_numpy(a).to(causal_lm.device) for a in (pack.input_ids, pack.positions))
        coefficients = torch.from_numpy(pack.coefficients).to(causal_lm.device)
        loss = (causal_lm.losses(ids, pack.lengths, positions) * coefficients).sum()
        if backward is not None:
            backward(loss)
        total += float(loss.detach())
    return total


def _set_aside(rows: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))[:count]
    mask = np.zeros(len(rows), dtype=bool)
    mask[chosen] = True
    return rows[~mask], rows[mask]


class _Rows(Dataset):
    """Row numbers; the collator turns a batch of them into packs."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return int(self.rows[index])


def _run(
    model: torch.nn.Module,
    input_ids: Ragged,
    weights: Ragged,
    rows: np.ndarray,
    eval_rows: np.ndarray,
    settings: TrainingSettings,
    steps: StepPlan,
    seed: int,
    device: str,
    progress: Progress | None,
) -> tuple[list[float], list[float]]:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "training") from error
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    causal_lm = CausalLM(model, longest_row=int(input_ids.lengths.max(initial=0)))
    losses: list[float] = []
    eval_losses: list[float] = []

    def packs_of(batch: list[int]) -> list[Pack]:
        return batch_packs(
            input_ids,
            weights,
            batch,
            pack_tokens=settings.pack_tokens,
            loss_normalisation=settings.loss_normalisation,
        )

    class SelectedTokenTrainer(Trainer):
        """The batch is the optimizer's whole batch; its packs are run one after another within one step."""

        def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            model.train()
            with causal_lm.precision(settings.precision):
                loss = batch_loss(causal_lm, inputs["packs"], self.accelerator.backward)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss of step {len(losses) + 1} is {loss}; lower training.learning_rate")
            losses.append(loss)
            return torch.tensor(loss, device=causal_lm.device)

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            model.eval()
            with torch.no_grad(), causal_lm.precision(settings.precision):
                loss = batch_loss(causal_lm, packs_of(eval_rows.tolist()))
            if not math.isfinite(loss):
                raise TrainingError(f"the loss of the rows set aside is {loss}; lower training.learning_rate")
            eval_losses.append(loss)
            logger.info("epoch %g: loss of the %d rows set aside %.4f", self.state.epoch, len(eval_rows), loss)
            return {"eval_loss": loss}

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return super()._get_train_sampler(train_dataset) if settings.shuffle else SequentialSampler(_Rows(rows))

    class Report(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if progress is not None:
                progress(state.global_step, steps.steps)

    with tempfile.TemporaryDirectory() as scratch:
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
            eval_strategy="epoch" if len(eval_rows) else "no",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=device == "cpu",
        )
        if arguments.world_size > 1:
            raise TrainingError("training runs in one process; start it without torchrun or accelerate launch")
        arguments._n_gpu = min(arguments.n_gpu, 1)  # one device; the Trainer would wrap the model in DataParallel
        trainer = SelectedTokenTrainer(
            model=model,
            args=arguments,
            train_dataset=_Rows(rows),
            eval_dataset=_Rows(eval_rows) if len(eval_rows) else None,
            data_collator=lambda batch: {"packs": packs_of(batch)},
            callbacks=[Report()],
        )
        trainer.remove_callback(PrinterCallback)  # the caller's progress speaks instead
        trainer.train()
    if len(losses) != steps.steps:
        raise TrainingError(f"planned {steps.steps} optimizer steps but took {len(losses)}")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise TrainingError(f"{name} is not finite after training; lower training.learning_rate")
    return losses, eval_losses
