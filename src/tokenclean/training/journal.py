"""What a training reports of each optimizer step: a JSON line of its journal, and figures for experiment trackers.

Trackers (TensorBoard, Trackio, Weights & Biases) are reached by transformers' own callbacks for them.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tokenclean.errors import MissingExtraError, RecipeError

if TYPE_CHECKING:
    import torch

    from tokenclean.training.step_plan import StepPlan
    from tokenclean.training.train_step import TrainingStep

JOURNAL = "journal.jsonl"


class Journal:
    """Appends to a file; ``steps``: optimizer steps of the whole training, for the time left.

    A training that resumes after ``done`` steps keeps the lines up to there and drops those after.
    """

    def __init__(self, path: Path, steps: int, done: int = 0) -> None:
        self._path, self._steps = path, steps
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_journal(path) if line["step"] <= done]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._last, self._seconds, self._counted = time.monotonic(), 0.0, 0

    def write(self, step: int, figures: Mapping[str, float], tokens: int, device: torch.device) -> dict[str, float]:
        """The line of a step: ``figures``, then tokens a second, peak memory in bytes and the seconds left."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._seconds, self._counted = self._seconds + seconds, self._counted + 1
        line = {
            "step": step,
            **figures,
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            "peak_memory_bytes": _peak_memory(device),
            "seconds_left": round(self._seconds / self._counted * (self._steps - step), 1),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def read_journal(path: Path) -> list[dict[str, float]]:
    """The whole lines of a journal; a line that a killed process left unfinished is skipped."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
