"""What a finished run left on disk: its results, comparison and sweep, and the tables of its strategies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tokenclean.errors import RecipeError, RunFolderError, TableError
from tokenclean.experiment.curate import CURATION
from tokenclean.experiment.results_folder import LATEST, TABLES
from tokenclean.report.tables import Table
from tokenclean.store import MANIFEST, RESULTS, STAGES, Manifest, check_stage, read_manifest
from tokenclean.token_table import read_metadata

KEPT = "kept.parquet"


@dataclass(frozen=True)
class FinishedRun:
    """``name``: for a reader; ``place``: the run folder, or the one folder that was given; ``results``,
    ``comparison``, ``sweep``: the last of each, whole, or None; ``curation``: what ``tokenclean curate`` wrote.
    """

    name: str
    place: Path
    results: Path | None = None
    comparison: Path | None = None
    sweep: Path | None = None
    curation: Path | None = None

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """As the results, else the comparison, the sweep or the curation, were made with it."""
        folders = (self.results, self.comparison, self.sweep, self.curation)
        return recipe_of(next(folder for folder in folders if folder is not None))

    @cached_property
    def result(self) -> dict[str, Any]:
        """``result.json``, empty without results."""
        return {} if self.results is None else self.document(self.results, "result.json")

    def document(self, folder: Path, name: str) -> Any:
        """A JSON file of one of its folders."""
        return json.loads((folder / name).read_text(encoding="utf-8"))

    def tables(self, folder: Path) -> list[Table]:
        """The tables of one of its folders. Raises RunFolderError where an earlier version wrote none."""
        if not (folder / TABLES).is_file():
            raise RunFolderError(
                f"{folder}: has no {TABLES}, which earlier versions did not write; run the recipe again, which reuses "
                "every finished stage"
            )
        return [Table.from_document(document) for document in self.document(folder, TABLES)]

    def kept_tables(self) -> dict[str, Path]:
        """Strategy -> its table of labelled tokens, in the recipe's order: its own strategy first."""
        if self.results is None:
            return {}
        found = {path.parent.name: path for path in sorted(self.results.glob(f"*/{KEPT}"))}
        own = self.recipe.get("cleaning", {}).get("strategy")
        return {name: found[name] for name in sorted(found, key=lambda name: (name != own, name))}


def find_run(place: Path) -> FinishedRun:
    """A run folder with the last of what was made in it, or one folder of results, of a comparison or of a sweep.

    Raises RunFolderError where there is none of them, or not as it was written.
    """
    if not place.is_dir():
        raise RunFolderError(f"{place}: no such run folder")
    name = place.resolve().name
    if (place / MANIFEST).is_file():
        stage = _manifest(place)["stage"]
        if stage not in ("results", "comparison", "sweep"):
            raise RunFolderError(f"{place}: is a stage ({stage}); give its run folder, or a folder of results")
        _check(place)
        return FinishedRun(name, place, **{stage: place})
    results = results_of(place) if (place / LATEST).is_file() else None
    comparison, sweep = (_newest(place, stage) for stage in ("comparison", "sweep"))
    curation = place / "curation" if (place / "curation" / CURATION).is_file() else None
    if results is None and comparison is None and sweep is None and curation is None:
        raise RunFolderError(f"{place}: holds no results; `tokenclean run`, `compare`, `sweep` and `curate` make them")
    return FinishedRun(name, place, results, comparison, sweep, curation)


def results_of(run: Path) -> Path:
    """The results of the last run in the folder, or ``run`` itself where it is a results folder.

    Raises RunFolderError where there are none, or not as they were written.
    """
    if (run / MANIFEST).is_file():
        latest = run
    elif (run / LATEST).is_file():
        latest = run / RESULTS / (run / LATEST).read_text(encoding="utf-8", errors="replace").strip()
    else:
        raise RunFolderError(f"{run}: holds no results; `tokenclean run` makes them, or give a .parquet table")
    _check(latest)
    return latest


def strategy_folder(results: Path, strategy: str | None, holding: str, why_none: str) -> Path:
    """The folder of a strategy that has a file or folder ``holding``; by default that of the recipe's own strategy.

    Raises RunFolderError, with ``why_none``, where no strategy has it, RecipeError where this one has not.
    """
    known = sorted(path.parent.name for path in results.glob(f"*/{holding}"))
    if not known:
        raise RunFolderError(f"{results}: {why_none}, so there is no {holding}")
    if strategy is None:
        strategy = recipe_of(results)["cleaning"]["strategy"]
    if strategy not in known:
        raise RecipeError(f"--strategy: {results} has no strategy {strategy!r}; it has {', '.join(known)}", "run")
    return results / strategy


def find_table(run: Path, strategy: str | None = None) -> Path:
    """The table of a run folder (of its last run) or a results folder; a file is taken as it is.

    ``strategy``: by default the recipe's own, or the first with a table. Raises RunFolderError for a place that is
    not there or has no table, RecipeError for a strategy it has not, or one beside a file.
    """
    if run.is_file():
        if strategy is not None:
            raise RecipeError(f"{strategy}: {run} is a file, which has no strategies; leave it out", "view")
        return run
    if not run.exists():
        raise RunFolderError(f"{run}: no such run folder or table")
    results = results_of(run)
    known = sorted(path.parent.name for path in results.glob(f"*/{KEPT}"))
    if strategy is None and known:
        own = recipe_of(results).get("cleaning", {}).get("strategy")
        strategy = own if own in known else known[0]
    return strategy_folder(results, strategy, KEPT, "no strategy of this run selects tokens") / KEPT


def tokenizer_name(table: Path) -> tuple[str, str | None]:
    """The model whose tokenizer made a table, and its revision: by the table's own word, else by the recipe beside it.

    Raises TableError where neither names one.
    """
    stated: dict[str, Any] = (read_metadata(table).get("models") or {}).get("base") or {}
    if name := stated.get("name"):
        return name.partition(" + ")[0], stated.get("revision")  # an adapter has its base's tokenizer
    named = recipe_of(table.parent.parent).get("model") or {}
    if name := named.get("base"):
        return name, None
    raise TableError(f"{table}: does not say which model its tokens belong to; name it with --model")


def recipe_of(results: Path) -> dict[str, Any]:
    """The recipe that lies in a folder of results, empty where none does."""
    path = results / "recipe.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _check(folder: Path) -> None:
    if faults := check_stage(folder):
        raise RunFolderError(
            f"{folder}: is not what was written: {'; '.join(faults[:3])}. Run the recipe again, which makes it anew"
        )


def _manifest(folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except RunFolderError as error:
        raise RunFolderError(f"{folder}: {error}") from None


def _newest(run: Path, stage: str) -> Path | None:
    """The stage of this name that was finished last."""
    found = [folder for folder in (run / STAGES).glob(f"{stage}-*") if (folder / MANIFEST).is_file()]
    if not found:
        return None
    newest = max(found, key=lambda folder: _manifest(folder)["finished"])
    _check(newest)
    return newest
