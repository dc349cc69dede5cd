"""Experiment trackers (TensorBoard, Trackio, Weights & Biases) by transformers' own callbacks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenclean.errors import MissingExtraError, RecipeError
from tokenclean.training.step_plan import StepPlan
from tokenclean.training.train_step import TrainingStep


def check_trackers(names: Sequence[str]) -> None:
    """Raises RecipeError for a tracker that is not installed, MissingExtraError without accelerate."""
    if not names:
        return
    try:
        import accelerate  # noqa: F401  # without it transformers has no TrainingArguments
    except ImportError as error:
        raise MissingExtraError("accelerate", "train", "training.report_to") from error
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    if missing := sorted(set(names) - set(get_available_reporting_integrations())):
        raise RecipeError(f"training.report_to: {missing[0]} is not installed: pip install {missing[0]}")


class Trackers:
    """Reports each step to the trackers of ``training.report_to``; the first process alone does, but all have one.

    They get the settings by the names of transformers' TrainingArguments, as from any training by its Trainer.
    """

    def __init__(self, step: TrainingStep, plan: StepPlan, seed: int) -> None:
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        settings = step.settings
        self._arguments = TrainingArguments(
            output_dir=".",
            per_device_train_batch_size=plan.batch_size,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=plan.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=seed,
            report_to=list(settings.report_to),
            use_cpu=step.causal_lm.device.type == "cpu",
        )
        self._steps_an_epoch = plan.steps // settings.epochs
        self._state = TrainerState(max_steps=plan.steps, is_world_process_zero=step.processes.is_first)
        self._control = TrainerControl()
        self._callbacks = [INTEGRATION_TO_CALLBACK[name]() for name in settings.report_to]
        for callback in self._callbacks:
            callback.on_train_begin(self._arguments, self._state, self._control, model=step.module)

    def log(self, number: int, figures: Mapping[str, float]) -> None:
        """Report the step of this number, from 1."""
        self._state.global_step, self._state.epoch = number, number / self._steps_an_epoch
        for callback in self._callbacks:
            logs = {**figures, "epoch": self._state.epoch}
            callback.on_log(self._arguments, self._state, self._control, logs=logs)

    def close(self) -> None:
        """To be called after the last step."""
        for callback in self._callbacks:
            callback.on_train_end(self._arguments, self._state, self._control)
