"""Fine-tuning on the selected tokens: from a model and token weights to a model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenclean.errors import TrainingError
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.store import array_hash
from tokenclean.training.adapters import add_fresh_lora, go_on_with_lora, save_lora, save_rounds
from tokenclean.training.checkpoint import whole
from tokenclean.training.collate import selected_lengths
from tokenclean.training.journal import JOURNAL
from tokenclean.training.loop import Progress, TrainingData, run_steps
from tokenclean.training.online_mixture import OnlineMixture
from tokenclean.training.step_plan import SchedulePart, plan_steps

TRAINING_VERSION = 4
"""To be raised when a training comes to mean something else: what was trained before is then stale."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    ``steps``/``effective_steps``: optimizer steps, and those with a learning rate above 0. ``trained_rows``,
    ``dropped_rows``: with and without a selected token. ``selected_tokens``: tokens of weight other than 0 an epoch.
    ``losses``: the batch loss of each step, nats. ``eval_losses``: after each epoch, of the rows set aside.
    ``row_rates``: with an ``OnlineMixture``, the noise rate last found of each row.
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
    row_rates: Mapping[int, float]

    def as_manifest(self) -> dict[str, Any]:
        """All but the rows' rates, which are as many as the rows."""
        return {name: value for name, value in asdict(self).items() if name != "row_rates"}


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
    mixture: OnlineMixture | None = None,
    checkpoints: Path | None = None,
    row_names: Sequence[str] | None = None,
    name: str = "",
    processes: Processes = SINGLE_PROCESS,
    part: SchedulePart | None = None,
) -> TrainingResult:
    """Fine-tune ``source`` on the tokens of weight other than 0 and write the model to ``folder``.

    ``input_ids``: int64; ``weights``: float, aligned, 0 for a token that is not trained (Eq. 1's y, or any weight; a
    negative one raises the token's loss).
    LoRA writes one adapter on ``source.base``, the sum of ``source.adapter`` and this round; full fine-tuning writes
    a whole model. Rows with nothing selected are dropped and counted. ``mixture``: weigh tokens by the posterior that
    they are no noise (see ``TrainingStep``).

    ``checkpoints``: a folder of this training's own, in which it keeps its last state and its journal; a training that
    was stopped, given again, goes on from there and gives the same model bit for bit (on a CPU). SIGTERM is heard after
    the step at hand: the state is saved and SystemExit(143) raised. ``row_names``: one a row, for errors;
    ``name``: of the training, kept with its states.

    ``processes``: processes that train together, each on its share of every batch, all calling this with the same
    arguments; the batch stays what the settings say. The first writes ``folder``, the others leave theirs empty.

    ``part``: this training is one of several that together are one training of one LoRA, with one learning-rate
    schedule, of which it takes this part. The first takes a plain base; each further one goes on with the LoRA in
    ``source.adapter``, a folder that the one before it wrote with the same settings, and with its optimizer's moments
    (``MOMENTS``), which all but the last write.

    Raises TrainingError when no row has a selected token, when a loss or gradient is not finite, or when there is
    nothing for a ``part`` to go on from; ModelError as ``add_fresh_lora`` and ``go_on_with_lora``; MissingExtraError
    without peft, accelerate or, with ``quantization: nf4``, bitsandbytes.
    """
    input_ids.check_aligned(weights)
    rows = np.flatnonzero(selected_lengths(weights) > 0)
    dropped = len(input_ids) - len(rows)
    if len(rows) <= settings.eval_rows:
        raise TrainingError(f"{len(rows)} of {len(input_ids)} rows have a selected token: too few to train on; raise k")
    rows, eval_rows = _set_aside(rows, settings.eval_rows, seed)
    steps = plan_steps(len(rows), settings, part)
    if part is not None:
        _check_part(part, source, settings)
    torch.manual_seed(seed)
    # What is to be quantized gets to the device in 4 bits, layer by layer: the whole in float32 may not fit there.
    base = load_model(replace(source, adapter=None), device="cpu" if settings.quantization == "nf4" else device)
    earlier = Path(source.adapter) if source.adapter else None
    part_before = earlier if steps.part.start > 0 else None
    model: Any = base
    if part_before is not None:
        model = go_on_with_lora(base, settings.lora, part_before)
    elif settings.method == "lora":
        model = add_fresh_lora(base, settings.lora, earlier)
    elif earlier is not None:
        raise TrainingError("full fine-tuning cannot go on from an adapter; merge it into its base first")
    names = [str(row) for row in range(len(input_ids))] if row_names is None else row_names
    data = TrainingData(input_ids, weights, rows, eval_rows, names, name)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) if checkpoints is None else checkpoints
        done = run_steps(
            model,
            data,
            settings,
            steps,
            seed,
            device,
            progress,
            mixture,
            place,
            checkpoints is not None,
            processes,
            moments_from=part_before,
            moments_to=folder if steps.part.end < steps.part.total else None,
        )
        if processes.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place / JOURNAL, folder / JOURNAL)
    if settings.method == "lora":
        save = save_rounds if part is None else save_lora
        save(model, folder, base=source.base, processes=processes)
    else:
        found = base.state_dict(keep_vars=True)
        gathered = {id(tensor): whole(tensor).cpu() for tensor in found.values()}  # tied weights stay one tensor
        if processes.is_first:
            base.save_pretrained(folder, state_dict={name: gathered[id(tensor)] for name, tensor in found.items()})
            load_tokenizer(source).save_pretrained(folder)
    return TrainingResult(
        steps=steps.steps,
        effective_steps=steps.effective_steps,
        batch_size=steps.batch_size,
        trained_rows=len(rows),
        dropped_rows=dropped,
        eval_rows=len(eval_rows),
        selected_tokens=int(np.count_nonzero(weights.take(rows).values)),
        losses=tuple(done.losses),
        eval_losses=tuple(done.eval_losses),
        row_rates=done.row_rates,
    )


def training_inputs(
    start: Any,
    input_ids: Ragged,
    weights: Ragged,
    settings: TrainingSettings,
    *,
    seed: int,
    device: str,
    mixture: OnlineMixture | None = None,
    part: SchedulePart | None = None,
) -> dict[str, Any]:
    """Everything by which one training differs from another, to be hashed with ``TRAINING_VERSION``; JSON.

    ``start``: what tells the model that is trained; ``device``: its kind, such as ``cuda``; the rest as ``train`` gets
    it.
    """
    uncounted = {"checkpoint_minutes", "report_to", "sharding"}
    if settings.quantization == "none":  # as before there was any
        uncounted.add("quantization")
    inputs = {
        "start": start,
        "input_ids": array_hash(input_ids.values, input_ids.offsets),
        "weights": array_hash(weights.values),
        "settings": settings.model_dump(mode="json", exclude=uncounted),
        "seed": seed,
        "device": device,
    }
    if mixture is not None:
        inputs["mixture"] = {"surprisal": array_hash(mixture.surprisal), **asdict(mixture.prior)}
    if part is not None:
        inputs["part"] = asdict(part)
    return inputs


def _check_part(part: SchedulePart, source: ModelSource, settings: TrainingSettings) -> None:
    if settings.method != "lora":
        raise TrainingError(f"one training in several parts trains one LoRA; method: {settings.method} has none")
    if part.start == 0 and source.adapter is not None:
        raise TrainingError(f"{source.adapter}: the first part trains a LoRA on a plain base; merge this adapter first")
    if part.start > 0 and source.adapter is None:
        raise TrainingError(f"{source}: a part from step {part.start} on needs the adapter of the part before it")


def _set_aside(rows: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))[:count]
    mask = np.zeros(len(rows), dtype=bool)
    mask[chosen] = True
    return rows[~mask], rows[mask]
