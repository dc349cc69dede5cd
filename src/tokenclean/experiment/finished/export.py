"""From a run, or a table of selected tokens, to one trainer's form of the cleaned dataset."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tokenclean
from tokenclean.errors import RecipeError, TableError
from tokenclean.experiment.finished.finished_run import results_of, strategy_folder
from tokenclean.experiment.run_files import CLEANED
from tokenclean.exporting import (
    Card,
    CleanedDataset,
    ExportResult,
    ModelName,
    WeightedTexts,
    export,
    read_cleaned,
    write_cleaned,
)
from tokenclean.token_table import TokenTable, is_table, read_table


def find_dataset(run: Path, strategy: str | None = None) -> Path:
    """The cleaned dataset of a run folder (of its last run) or a results folder; a file is taken as given.

    ``strategy``: which of a run's strategies, by default the recipe's own. Raises RunFolderError for a damaged or
    missing results folder, RecipeError for a strategy that the run lacks, or one given for a file.
    """
    if run.is_dir():
        return strategy_folder(results_of(run), strategy, CLEANED, "no strategy of this run selects tokens") / CLEANED
    if strategy is not None:
        raise RecipeError(f"--strategy {strategy}: {run} is a file, which has no strategies; leave it out", "export")
    return run


def export_dataset(path: Path, to: str, folder: Path) -> ExportResult:
    """Export a ``.parquet`` file: a cleaned dataset, or a table with ``is_kept`` or ``weight``.

    For a form of texts, the pool is read again by the recipe that the dataset names. Raises what ``exporting.export``
    and ``weighted_texts`` raise, and TableError for a table that does not name its base model.
    """
    if not is_table(path):
        return _export_cleaned(path, to, folder)
    return export_table(read_table(path), path, to, folder)


def export_table(table: TokenTable, path: Path, to: str, folder: Path) -> ExportResult:
    """Export a table in memory; ``path``: where it came from, for errors. Raises as ``export_dataset``."""
    with tempfile.TemporaryDirectory() as scratch:
        cleaned = Path(scratch) / CLEANED
        try:
            write_cleaned(table, cleaned)
            return _export_cleaned(cleaned, to, folder)
        except TableError as error:  # about a scratch file, whose name would mean nothing to the user
            raise TableError(f"{path}: {str(error).removeprefix(f'{cleaned}: ')}") from error


def card_of(cleaned: CleanedDataset) -> Card:
    """The card of a cleaned dataset, from the metadata that came with its tokens."""
    metadata = cleaned.metadata
    selection = metadata.get("selection") or {}
    models = {name: ModelName(m["name"], m.get("revision")) for name, m in metadata.get("models", {}).items()}
    base = models.pop("base", None)
    if base is None:
        raise TableError(f"{cleaned.path}: does not say which base model its tokens belong to; score the pool again")
    strategy = metadata.get("strategy") or f"score, top tokens by level {selection.get('level', 'global')}"
    return Card(
        title=metadata.get("name", "cleaned tokens"),
        base=base,
        strategy=strategy,
        counts=cleaned.counts,
        template=metadata.get("template", ""),
        max_length=cleaned.max_length,
        tokenclean_version=tokenclean.__version__,
        references=tuple(models.values()),
        proportion=selection.get("proportion"),
        threshold=selection.get("threshold"),
        level=selection.get("level"),
        unit=selection.get("unit"),
        licences=metadata.get("licenses", {}),
        recipe=metadata.get("recipe", ""),
        keeps_everything=cleaned.keeps_everything,
    )


def _export_cleaned(path: Path, to: str, folder: Path) -> ExportResult:
    return export(path, to, folder, card_of(read_cleaned(path)), _read_texts)


def _read_texts(cleaned: CleanedDataset) -> WeightedTexts:
    from tokenclean.experiment.finished.run_texts import weighted_texts  # loads torch; forms of tokens do without

    return weighted_texts(cleaned)
