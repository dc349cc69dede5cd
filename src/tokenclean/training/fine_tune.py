"""Fine-tuning on the selected tokens: from a model and token weights to a model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenclean.errors import TrainingError
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer
from tokenclean.observer import Progress
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.store import array_hash
from tokenclean.training.adapters import add_fresh_lora, go_on_with_lora, save_lora, save_rounds
from tokenclean.training.batch_packs import selected_lengths
from tokenclean.training.journal import JOURNAL, check_trackers
from tokenclean.training.loop import TrainingData, TrainingLoop
from tokenclean.training.online_mixture import OnlineMixture
from tokenclean.training.optimizer import adamw, load_moments, save_moments
from tokenclean.training.sharding import distribute, whole
from tokenclean.training.step_plan import SchedulePart, plan_steps
from tokenclean.training.train_step import TrainingStep

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


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

    def as_manifest(self) -> dict[str, object]:
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
    negative one raises the token's loss). LoRA writes one adapter on ``source.base``, the sum of ``source.adapter`` and
    this round; full fine-tuning writes a whole model. Rows with nothing selected are dropped and counted. ``mixture``:
    weigh tokens by the posterior that they are not noise (see ``TrainingStep``).

    ``checkpoints``: a folder for this training alone, in which it keeps its last state and its journal; after a stop,
    the same call continues from there and gives the same model bit for bit (on a CPU). On SIGTERM the state is saved
    after the current step and SystemExit(143) raised. ``row_names``: for errors; ``name``: kept with the states.

    ``processes``: those that train together, each on its share of every batch, all calling this with the same
    arguments; the batch stays what the settings say. The first writes ``folder``, the others leave theirs empty.

    ``part``: this training is one of several that together are one training of one LoRA, with one learning-rate
    schedule, of which it takes this part. The first takes a plain base; each later one continues with the LoRA in
    ``source.adapter``, a folder that the one before it wrote with the same settings, and with its optimizer's moments
    (``MOMENTS``), which all but the last write.

    Raises TrainingError when no row has a selected token, when a loss or gradient is not finite, or when there is
    nothing for a ``part`` to continue from; ModelError as ``add_fresh_lora`` and ``go_on_with_lora``; RecipeError for
    a tracker that is not installed; MissingExtraError without peft or, with ``quantization: nf4``, bitsandbytes.
    """
    input_ids.check_aligned(weights)
    check_trackers(settings.report_to)
    _check_launcher(processes)
    names = [str(row) for row in range(len(input_ids))] if row_names is None else row_names
    data = _split_rows(input_ids, weights, names, settings.eval_rows, seed)
    plan = plan_steps(len(data.rows), settings, part)
    torch.manual_seed(seed)
    base, adapted = load_to_train(source, settings, part, device)
    model = base if adapted is None else adapted
    longest = int(input_ids.lengths.max(initial=0))
    step = TrainingStep(model, settings, device=device, longest_row=longest, mixture=mixture, processes=processes)
    distribute(step)
    optimizer = adamw(step.module, settings)
    if plan.part.start > 0:
        load_moments(Path(str(source.adapter)), model, optimizer)
    with tempfile.TemporaryDirectory() as scratch:
        place, saves = checkpoints or Path(scratch), checkpoints is not None
        history = TrainingLoop(step, optimizer, data, plan, seed, place, saves, name, progress).run()
        if plan.part.end < plan.part.total:
            save_moments(folder, model, optimizer, processes)
        if processes.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place / JOURNAL, folder / JOURNAL)
    if adapted is None:
        _write_whole_model(base, source, folder, processes)
    else:
        save = save_rounds if part is None else save_lora
        save(adapted, folder, base=source.base, processes=processes)
    return TrainingResult(
        steps=plan.steps,
        effective_steps=plan.effective_steps,
        batch_size=plan.batch_size,
        trained_rows=len(data.rows),
        dropped_rows=len(input_ids) - len(data.rows) - len(data.eval_rows),
        eval_rows=len(data.eval_rows),
        selected_tokens=int(np.count_nonzero(weights.take(data.rows).values)),
        losses=tuple(history.losses),
        eval_losses=tuple(history.eval_losses),
        row_rates=history.row_rates,
    )


def _check_launcher(processes: Processes) -> None:
    """Raises TrainingError if processes were started that ``train`` was not given, or a launcher is to wrap models."""
    if (started := Processes.from_environment().count) != processes.count:
        raise TrainingError(
            f"{started} processes were started, but the training knows of {processes.count}; start tokenclean run with "
            "torchrun or accelerate launch, or a single process without them"
        )
    if "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        raise TrainingError(
            "found the launcher set to FSDP or DeepSpeed; start it without (torchrun, or accelerate launch "
            "--multi_gpu), and set training.sharding: fsdp2 to shard the model"
        )


def _split_rows(input_ids: Ragged, weights: Ragged, names: Sequence[str], eval_rows: int, seed: int) -> TrainingData:
    """The rows with a selected token, ``eval_rows`` of them set aside."""
    rows = np.flatnonzero(selected_lengths(weights) > 0)
    if len(rows) <= eval_rows:
        raise TrainingError(f"{len(rows)} of {len(input_ids)} rows have a selected token: too few to train on; raise k")
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))[:eval_rows]
    return TrainingData(input_ids, weights, np.delete(rows, chosen), rows[np.sort(chosen)], names)


def load_to_train(
    source: ModelSource, settings: TrainingSettings, part: SchedulePart | None, device: str
) -> tuple[PreTrainedModel, PeftModel | None]:
    """The base in float32, and with LoRA the PEFT model around it."""
    earlier = Path(source.adapter) if source.adapter else None
    if part is not None:
        _check_part(part, source, settings)
    elif settings.method == "full" and earlier is not None:
        raise TrainingError("full fine-tuning cannot go on from an adapter; merge it into its base first")
    # What is to be quantized gets to the device in 4 bits, layer by layer: the whole in float32 may not fit there.
    base = load_model(replace(source, adapter=None), device="cpu" if settings.quantization == "nf4" else device)
    if settings.method == "full":
        return base, None
    if part is not None and earlier is not None:
        return base, go_on_with_lora(base, settings.lora, earlier)
    return base, add_fresh_lora(base, settings.lora, earlier)


def _check_part(part: SchedulePart, source: ModelSource, settings: TrainingSettings) -> None:
    if settings.method != "lora":
        raise TrainingError(f"one training in several parts trains one LoRA; method: {settings.method} has none")
    if part.start == 0 and source.adapter is not None:
        raise TrainingError(f"{source.adapter}: the first part trains a LoRA on a plain base; merge this adapter first")
    if part.start > 0 and source.adapter is None:
        raise TrainingError(f"{source}: a part from step {part.start} on needs the adapter of the part before it")


def _write_whole_model(model: PreTrainedModel, source: ModelSource, folder: Path, processes: Processes) -> None:
    """With its tokenizer."""
    state = model.state_dict(keep_vars=True)
    gathered = {id(tensor): whole(tensor).cpu() for tensor in state.values()}  # tied weights stay one tensor
    if processes.is_first:
        model.save_pretrained(folder, state_dict={name: gathered[id(tensor)] for name, tensor in state.items()})
        load_tokenizer(source).save_pretrained(folder)


def training_inputs(
    start: object,
    input_ids: Ragged,
    weights: Ragged,
    settings: TrainingSettings,
    *,
    seed: int,
    device: str,
    mixture: OnlineMixture | None = None,
    part: SchedulePart | None = None,
) -> dict[str, object]:
    """Everything by which one training differs from another, to be hashed with the version of the stage; JSON.

    ``start``: identifies the model that is trained; ``device``: its kind, such as ``cuda``; the rest as in ``train``.
    """
    uncounted = {"checkpoint_minutes", "report_to", "sharding"}
    if settings.quantization == "none":  # keeps the hashes from before there was the setting
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
        prior = mixture.prior.model_dump(exclude={"mode", "with_repetition"})
        inputs["mixture"] = {"surprisal": array_hash(mixture.surprisal), **prior}
        if mixture.is_fixed is not None:
            inputs["mixture"] |= {"fixed": array_hash(mixture.is_fixed.values)}
    if part is not None:
        inputs["part"] = asdict(part)
    return inputs
