"""``tokenclean train``: fine-tuning on the kept tokens of a table."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tokenclean.cli.console import note, out, progress, quiet_libraries
from tokenclean.cli.merge import MergedDtype, print_merge
from tokenclean.cli.options import DeviceOption, ModelOption, TrustOption
from tokenclean.errors import TableError


class TrainingPrecision(StrEnum):
    exact = "exact"
    safe = "safe"
    fast = "fast"
    mixed = "mixed"


class Quantization(StrEnum):
    none = "none"
    nf4 = "nf4"


class Method(StrEnum):
    lora = "lora"
    full = "full"


def train(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A table with is_kept or weight; else all of the response.")
    ],
    base: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the trained model or adapter.")] = Path(
        "model"
    ),
    method: Annotated[Method, typer.Option(help="LoRA adapter, or all weights.")] = Method.lora,
    learning_rate: Annotated[float, typer.Option(min=1e-12)] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Conversations an optimizer step.")] = 48,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank; alpha is 16.")] = 64,
    dropout: Annotated[float, typer.Option(min=0, max=0.99, help="LoRA dropout.")] = 0.1,
    warmup_ratio: Annotated[float, typer.Option(min=0, max=0.99)] = 0.03,
    loss_normalisation: Annotated[
        str, typer.Option(help="token: one mean over the batch's tokens (Eq. 1); sample: mean of samples' means.")
    ] = "token",
    eval_rows: Annotated[int, typer.Option(min=0, help="Set rows aside and print their loss after each epoch.")] = 0,
    precision: Annotated[
        TrainingPrecision,
        typer.Option(
            help="exact: float32; safe: bf16 inside products; fast: bf16 products; mixed: the frozen base held in bf16."
        ),
    ] = TrainingPrecision.safe,
    quantization: Annotated[
        Quantization, typer.Option(help="nf4: the frozen base held in 4 bits while training (bitsandbytes).")
    ] = Quantization.none,
    pack_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in one forward and backward pass; by default 512 on a CPU, else 2048."),
    ] = None,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory, a third more work.")
    ] = False,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0, help="How often the training's state is saved; 0: after every step.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 42,
    merge: Annotated[
        MergedDtype | None,
        typer.Option(help="Write the plain model too, in this dtype, beside the adapter as OUTPUT-merged."),
    ] = None,
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = None,
) -> None:
    """Fine-tune on the kept tokens of a table: float weights in `weight`, else `is_kept`, else every response token.

    A stopped training, given again, goes on from its last state, which lies in the hidden folder .OUTPUT.states beside
    OUTPUT until the training is done; SIGTERM saves one. Another command starts from the beginning.

    Example: tokenclean train kept.parquet --base HuggingFaceTB/SmolLM2-135M -o model
    """
    import numpy as np

    from tokenclean.experiment.finished.merge import only_template, write_record
    from tokenclean.models.device import resolve_device
    from tokenclean.models.loading.load import resolve_source, source_fingerprint
    from tokenclean.models.merging import write_merged
    from tokenclean.recipe import training_from
    from tokenclean.store import atomic_folder, fingerprint
    from tokenclean.token_table import read_table
    from tokenclean.training.checkpoint import states_beside
    from tokenclean.training.fine_tune import TRAINING_VERSION, training_inputs
    from tokenclean.training.fine_tune import train as fine_tune

    settings = training_from(
        {
            "method": method.value,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "epochs": epochs,
            "lora": {"rank": rank, "dropout": dropout},
            "warmup_ratio": warmup_ratio,
            "loss_normalisation": loss_normalisation,
            "eval_rows": eval_rows,
            "precision": precision.value,
            "quantization": quantization.value,
            "pack_tokens": pack_tokens,
            "activation_checkpointing": activation_checkpointing,
            "checkpoint_minutes": checkpoint_minutes,
        }
    )
    selected = read_table(table)
    column = next(name for name in ("weight", "is_kept", "is_response") if name in selected.columns)
    merged_folder = output.with_name(f"{output.name}-merged")
    for folder in (output, merged_folder) if merge else (output,):
        if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
            raise TableError(f"{folder}: already there and not empty; name another --output")
    quiet_libraries()
    source = resolve_source(base, trusted=tuple(trust_remote_code or ()))
    template = str(selected.metadata.get("template") or (only_template(source) if merge else ""))
    weights = selected[column].map_values(lambda values: values.astype(np.float32))
    weights = weights if column == "weight" else selected.weighed(weights)
    device = resolve_device(device)
    inputs = training_inputs(
        source_fingerprint(source), selected["input_ids"], weights, settings, seed=seed, device=device.partition(":")[0]
    )
    key = fingerprint([TRAINING_VERSION, inputs])
    with states_beside(output, key[:12], note) as states, atomic_folder(output) as folder:
        result = fine_tune(
            source,
            selected["input_ids"],
            weights,
            settings,
            folder,
            seed=seed,
            device=device,
            progress=progress("train", "step"),
            checkpoints=states,
            row_names=selected.ids,
        )
        write_record(folder, template)
    out.print(
        f"{output}: {result.steps} optimizer steps on {result.selected_tokens:,} tokens ({column})", soft_wrap=True
    )
    out.print(f"  {result.trained_rows:,} rows trained, {result.dropped_rows:,} without a selected token dropped")
    out.print(f"  batch loss {result.losses[0]:.4f} at the first step, {result.losses[-1]:.4f} at the last")
    for epoch, loss in enumerate(result.eval_losses, start=1):
        out.print(f"  epoch {epoch}: loss {loss:.4f} on the {result.eval_rows} rows set aside")
    if merge:
        trained = replace(source, **{"adapter" if method is Method.lora else "base": str(output)})
        merged = write_merged(trained, merged_folder, dtype=merge.value, template=template)
        out.print(f"{merged_folder}: the plain model in {merge.value}, chat template {template}", soft_wrap=True)
        print_merge(merged, merge)
