"""``tokenclean train``: fine-tuning on the kept tokens of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from tokenclean.cli.console import note, progress, quiet_libraries, say
from tokenclean.cli.merge import MergedDtype, print_merge
from tokenclean.cli.options import BaseOption, DeviceOption, SeedOption, TrustOption
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.errors import TableError
from tokenclean.recipe import LoraSettings, TrainingSettings, training_from

if TYPE_CHECKING:
    from tokenclean.models.loading.load import ModelSource
    from tokenclean.token_table import TokenTable
    from tokenclean.training.fine_tune import TrainingResult

_PANEL = "Training"


@takes_settings
def train(
    table: Annotated[
        Path, Argument(metavar="TABLE", help="A table with is_kept or weight, else all responses are trained.")
    ],
    base: BaseOption,
    output: Annotated[Path, Option("--output", "-o", help="Folder for the trained model or adapter.")] = Path("model"),
    merge: Annotated[
        MergedDtype | None,
        Option(help="Write the plain model too, in this dtype, beside the adapter as OUTPUT-merged."),
    ] = None,
    *,
    seed: SeedOption,
    device: DeviceOption,
    trust_remote_code: TrustOption,
    training: Annotated[
        Mapping[str, object],
        FromSettings(
            TrainingSettings,
            *("method", "learning_rate", "batch_size", "epochs", "warmup_ratio", "loss_normalisation", "eval_rows"),
            *("precision", "quantization", "pack_tokens", "activation_checkpointing", "checkpoint_minutes"),
            panel=_PANEL,
        ),
    ],
    lora: Annotated[Mapping[str, object], FromSettings(LoraSettings, "rank", "dropout", panel=_PANEL)],
    set_: Annotated[
        list[str] | None,
        Option(
            *("--set", "-s"),
            metavar="KEY=VALUE",
            help="Set any training key of a recipe, such as training.schedule=cosine; repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> None:
    """Fine-tune on the kept tokens of a table: float weights in `weight`, else `is_kept`, else every response token.

    A stopped training, given again, continues from its last state, which is in the hidden folder .OUTPUT.states beside
    OUTPUT until the training is done; SIGTERM saves one. Another command starts from the beginning.

    Example: tokenclean train kept.parquet --base HuggingFaceTB/SmolLM2-135M -o model
    """
    from tokenclean.experiment.finished.merge import only_template
    from tokenclean.models.device import resolve_device
    from tokenclean.models.loading.load import resolve_source
    from tokenclean.models.merging import write_merged
    from tokenclean.token_table import read_table

    settings = training_from({**training, "lora": lora}, set_ or ())
    selected = read_table(table)
    merged_folder = output.with_name(f"{output.name}-merged")
    for folder in (output, merged_folder) if merge else (output,):
        if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
            raise TableError(f"{folder}: exists and is not empty; name another --output")
    quiet_libraries()
    source = resolve_source(base, trusted=trust_remote_code)
    template = str(selected.metadata.get("template") or (only_template(source) if merge else ""))
    _fine_tune(source, selected, settings, output, template, seed, resolve_device(device))
    if merge:
        trained = replace(source, **{"adapter" if settings.method == "lora" else "base": str(output)})
        merged = write_merged(trained, merged_folder, dtype=merge, template=template)
        say(f"{merged_folder}: the plain model in {merge}, chat template {template}")
        print_merge(merged, merge)


def _fine_tune(
    source: ModelSource,
    table: TokenTable,
    settings: TrainingSettings,
    output: Path,
    template: str,
    seed: int,
    device: str,
) -> None:
    import numpy as np

    from tokenclean.experiment.finished.merge import write_record
    from tokenclean.models.loading.load import source_fingerprint
    from tokenclean.store import STAGE_VERSIONS, atomic_folder, fingerprint
    from tokenclean.training.checkpoint import states_beside
    from tokenclean.training.fine_tune import train as fine_tune
    from tokenclean.training.fine_tune import training_inputs

    column = next(name for name in ("weight", "is_kept", "is_response") if name in table.columns)
    weights = table[column].map_values(lambda values: values.astype(np.float32))
    weights = weights if column == "weight" else table.weighed(weights)
    kind = device.partition(":")[0]
    inputs = training_inputs(source_fingerprint(source), table["input_ids"], weights, settings, seed=seed, device=kind)
    key = fingerprint([STAGE_VERSIONS["training"], inputs])
    with states_beside(output, key[:12], note) as states, atomic_folder(output) as folder:
        result = fine_tune(
            source,
            table["input_ids"],
            weights,
            settings,
            folder,
            seed=seed,
            device=device,
            progress=progress("train", "step"),
            checkpoints=states,
            row_names=table.ids,
        )
        write_record(folder, template)
    _print(result, output, column)


def _print(result: TrainingResult, output: Path, column: str) -> None:
    say(f"{output}: {result.steps} optimizer steps on {result.selected_tokens:,} tokens ({column})")
    say(f"  {result.trained_rows:,} rows trained, {result.dropped_rows:,} without a selected token dropped")
    say(f"  batch loss {result.losses[0]:.4f} at the first step, {result.losses[-1]:.4f} at the last")
    for epoch, loss in enumerate(result.eval_losses, start=1):
        say(f"  epoch {epoch}: loss {loss:.4f} on the {result.eval_rows} rows set aside")
