"""``tokenclean export``: the cleaned dataset in the form that a trainer takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from tokenclean.cli.console import err, say, warn
from tokenclean.cli.options import StrategyOption
from tokenclean.errors import RunFolderError
from tokenclean.exporting import WRITERS


def export(
    run: Annotated[
        Path, Argument(metavar="RUN", help="A run folder, a results folder, or a table from tokenclean select.")
    ],
    to: Annotated[
        str,
        Option(
            metavar="FORM",
            help=f"The trainer, of {', '.join(WRITERS)}; hf is a Hub dataset repository, also for the transformers "
            "Trainer, spans the weights of characters, for any tokenizer.",
            autocompletion=lambda: list(WRITERS),
        ),
    ],
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder to write; by default RUN's name and the trainer's.")
    ] = None,
    strategy: StrategyOption = None,
    push_to_hub: Annotated[
        str | None, Option(metavar="ORG/NAME", help="Upload too, with the token in HF_TOKEN or of `hf auth login`.")
    ] = None,
    public: Annotated[bool, Option("--public", help="Make the uploaded dataset public.")] = False,
) -> None:
    """Write the cleaned dataset in a trainer's format, with a card and the configuration to paste.

    Rows with nothing to train are left out. The configuration sets the trainer's maximum length to the longest row.
    What a form cannot hold, such as weights other than 0 and 1, is counted, and written into the card.

    Example: tokenclean export runs/quick --to trl -o for-trl
    """
    if not run.exists():
        raise RunFolderError(f"{run}: no such run folder or table")

    if not err.is_terminal:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from tokenclean.experiment.finished.export import export_dataset, find_dataset
    from tokenclean.exporting import push_folder

    folder = output or Path(f"{run.resolve().stem}-{to}")
    dataset = find_dataset(run, strategy)
    written = export_dataset(dataset, to, folder)
    say(f"{folder}: {written.rows:,} rows for {to} of {dataset}")
    say(f"  {', '.join(written.files)}")
    for change in written.changes:
        warn(change)
    if written.left_out:
        warn(f"{written.left_out:,} rows are left out; {folder / 'left_out.csv'} lists them with the reason")
    if written.keeps_everything:
        name, model = ("this table", "")
        if run.is_dir():
            name = dataset.parent.name
            model = f"use its model (tokenclean merge {run} --strategy {name}), or "
        warn(
            f"{name} drops no token, so these are the ordinary labels of the data, and training on them is training on "
            f"full tokens; {model}export a strategy that drops tokens, such as fixed_model"
        )
    say(f"next: {written.snippet}")
    if push_to_hub is not None:
        say(push_folder(folder, push_to_hub, private=not public))
