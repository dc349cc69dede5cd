"""One export: from the canonical file to a complete folder for one trainer, or none."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenclean.errors import RecipeError
from tokenclean.exporting.axolotl import write_axolotl
from tokenclean.exporting.cleaned_file import CleanedDataset, read_cleaned
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.huggingface import write_hf
from tokenclean.exporting.llamafactory import write_llamafactory
from tokenclean.exporting.trl import write_trl
from tokenclean.store import atomic_folder

_CARD = "README.md"
_ROW_IDS = "row_ids.csv"
# A writer fills the folder and returns the command that trains on it, run from inside the folder.
WRITERS: dict[str, Callable[[CleanedDataset, Path, Card], str]] = {
    "trl": write_trl,
    "llamafactory": write_llamafactory,
    "axolotl": write_axolotl,
    "hf": write_hf,
}


@dataclass(frozen=True)
class ExportResult:
    """``files``: names inside ``folder``, sorted. ``snippet``: the shell command that uses the export."""

    folder: Path
    rows: int
    files: tuple[str, ...]
    snippet: str


def export(cleaned_path: Path | str, to: str, folder: Path | str, card: Card) -> ExportResult:
    """Write a canonical file in the form of the trainer ``to`` (a key of WRITERS) into a new or empty folder.

    ``README.md`` is its card, ``row_ids.csv`` lists the ids of its rows. The folder gets its name only when complete.
    Raises RecipeError for an unknown trainer, TableError for a file of another kind or with weights that the trainer
    cannot take, RunFolderError for a folder that is not empty or cannot be written, MissingExtraError where the writer
    needs ``datasets``.
    """
    if to not in WRITERS:
        raise RecipeError(f"unknown trainer {to!r}; known: {', '.join(WRITERS)}", source="export")
    cleaned, folder = read_cleaned(cleaned_path), Path(folder)
    with atomic_folder(folder) as temporary:
        command = WRITERS[to](cleaned, temporary, card)
        if to != "hf":  # there every row has its ids as columns
            cleaned.write_row_ids(temporary / _ROW_IDS)
        data = next((str(file.relative_to(temporary)) for file in temporary.rglob("*.parquet")), None)
        (temporary / _CARD).write_text(card.to_markdown(data), encoding="utf-8")
        files = sorted(str(file.relative_to(temporary)) for file in temporary.rglob("*") if file.is_file())
    return ExportResult(folder, len(cleaned.rows), tuple(files), f"cd {shlex.quote(str(folder))} && {command}")
