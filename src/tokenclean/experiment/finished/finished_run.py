"""What a finished run left on disk: its results, comparison and sweep, and the tables of its strategies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tokenclean.errors import RecipeError, RunFolderError, TableError
from tokenclean.experiment.run_files import CURATION, KEPT, LATEST, RECIPE, TABLES, MeasuredModel, Result
from tokenclean.report.tables import Table
from tokenclean.store import MANIFEST, RESULTS, STAGES, Manifest, check_stage, read_manifest
from tokenclean.token_table import read_metadata


@dataclass(frozen=True)
class FinishedRun:
    """``name``: for a reader; ``place``: the run folder, or the one folder that was given; ``results``,
    ``comparison``, ``sweep``: the last of each, whole, or None; ``curation``: what ``tokenclean curate`` wrote.
    ``number``: from 1 among the runs of one report, None for a run by itself.
    """

    name: str
    place: Path
    results: Path | None = None
    comparison: Path | None = None
    sweep: Path | None = None
    curation: Path | None = None
    number: int | None = None

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the results, else of the comparison, the sweep or the curation."""
        folders = (self.results, self.comparison, self.sweep, self.curation)
        return recipe_of(next(folder for folder in folders if folder is not None))

    @property
    def strategy(self) -> str | None:
        """The recipe's own strategy."""
        return own_strategy(self.recipe)

    @cached_property
    def result(self) -> Result:
        """``result.json``, empty without results."""
        return {} if self.results is None else self.document(self.results, "result.json")

    @property
    def measured(self) -> list[MeasuredModel]:
        """The models measured on held-out rows."""
        return self.result.get("measured", [])

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
        """Strategy -> its table of labelled tokens; the recipe's own strategy first, the others by name."""
        found = [] if self.results is None else self.results.glob(f"*/{KEPT}")
        tables = {path.parent.name: path for path in found}
        return {name: tables[name] for name in sorted(tables, key=lambda name: (name != self.strategy, name))}


def find_run(place: Path) -> FinishedRun:
    """A run folder with the last of its results, comparisons and sweeps, or one folder of these.

    Raises RunFolderError where there is none of them, or a damaged one.
    """
    if not place.is_dir():
        raise RunFolderError(f"{place}: no such run folder")
    name = place.resolve().name
    if (place / MANIFEST).is_file():
        stage = _manifest(place)["stage"]
        if stage not in ("results", "comparison", "sweep"):
            raise RunFolderError(f"{place}: is a stage ({stage}); give its run folder, or a folder of results")
        return replace(FinishedRun(name, place), **{stage: _checked(place)})
    results = results_of(place) if (place / LATEST).is_file() else None
    comparison, sweep = (_newest(place, stage) for stage in ("comparison", "sweep"))
    curation = place / "curation" if (place / "curation" / CURATION).is_file() else None
    if results is None and comparison is None and sweep is None and curation is None:
        raise RunFolderError(f"{place}: holds no results; `tokenclean run`, `compare`, `sweep` and `curate` make them")
    return FinishedRun(name, place, results, comparison, sweep, curation)


def results_of(run: Path) -> Path:
    """The results of the last run in the folder, or ``run`` itself where it is a results folder.

    Raises RunFolderError where there are none, or damaged ones.
    """
    if (run / MANIFEST).is_file():
        return _checked(run)
    if (run / LATEST).is_file():
        return _checked(run / RESULTS / (run / LATEST).read_text(encoding="utf-8", errors="replace").strip())
    raise RunFolderError(f"{run}: holds no results; `tokenclean run` makes them, or give a .parquet table")


def describe_results(results: Path) -> str:
    """Which results these are, and which others their run folder holds, each with its strategies."""
    places = sorted(results.parent.glob("[!.]*")) if results.parent.name == RESULTS else []
    others = [place for place in places if place.name != results.name and (place / MANIFEST).is_file()]
    counted = f"{len(others)} other result{'s' * (len(others) > 1)}: {', '.join(map(_with_strategies, others))}"
    return _with_strategies(results) + (f"; {counted}" if others else "")


def _with_strategies(results: Path) -> str:
    try:
        return f"{results} ({read_manifest(results)['results']['what']})"
    except (RunFolderError, KeyError):  # damaged, or of an earlier version: only named here
        return str(results)


def strategy_folder(
    results: Path, strategy: str | None, holding: str, why_none: str, *, or_first: bool = False
) -> Path:
    """The folder of a strategy that has a file or folder ``holding``; by default that of the recipe's own strategy.

    ``or_first``: where the recipe's own has none, take the first by name. Raises RunFolderError, with ``why_none``,
    where no strategy has it, RecipeError where the chosen one has not.
    """
    known = sorted(path.parent.name for path in results.glob(f"*/{holding}"))
    if not known:
        raise RunFolderError(f"{results}: {why_none}, so there is no {holding}")
    if strategy is None:
        strategy = own_strategy(recipe_of(results))
        strategy = known[0] if or_first and strategy not in known else strategy
    if strategy is None or strategy not in known:
        raise RecipeError(f"--strategy: {results} has no strategy {strategy!r}; it has {', '.join(known)}", "run")
    return results / strategy


def find_table(run: Path, strategy: str | None = None) -> Path:
    """The table of a run folder (of its last run) or a results folder; a file is taken as given.

    ``strategy``: by default the recipe's own, or the first with a table. Raises RunFolderError for a place that does
    not exist or has no table, RecipeError for a strategy that the run lacks, or one given for a file.
    """
    if run.is_file():
        if strategy is not None:
            raise RecipeError(f"{strategy}: {run} is a file, which has no strategies; leave it out", "view")
        return run
    if not run.exists():
        raise RunFolderError(f"{run}: no such run folder or table")
    why_none = "no strategy of this run selects tokens"
    return strategy_folder(results_of(run), strategy, KEPT, why_none, or_first=True) / KEPT


def tokenizer_name(table: Path) -> tuple[str, str | None]:
    """The model whose tokenizer made a table, and its revision: from the table's metadata, else the recipe beside it.

    Raises TableError where neither names one.
    """
    base = (read_metadata(table).get("models") or {}).get("base") or {}
    if name := base.get("name"):
        return name.partition(" + ")[0], base.get("revision")  # an adapter has its base's tokenizer
    model = recipe_of(table.parent.parent).get("model") or {}
    if name := model.get("base"):
        return name, None
    raise TableError(f"{table}: does not say which model its tokens belong to; name it with --model")


def recipe_of(results: Path) -> dict[str, Any]:
    """The recipe in a folder of results, empty where there is none."""
    path = results / RECIPE
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def own_strategy(recipe: Mapping[str, Any]) -> str | None:
    """The name in the results of the strategy that a recipe names; of ``module:function`` it is the function's."""
    name = recipe.get("cleaning", {}).get("strategy")
    return name and name.rpartition(":")[2]


def _checked(folder: Path) -> Path:
    """The folder of a stage. Raises RunFolderError where its files are not those of its manifest."""
    if faults := check_stage(folder):
        raise RunFolderError(
            f"{folder}: failed its integrity check: {'; '.join(faults[:3])}. Run the recipe again, which recomputes it"
        )
    return folder


def _manifest(folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except RunFolderError as error:
        raise RunFolderError(f"{folder}: {error}") from None


def _newest(run: Path, stage: str) -> Path | None:
    """The stage of this name that was finished last."""
    found = [folder for folder in (run / STAGES).glob(f"{stage}-*") if (folder / MANIFEST).is_file()]
    return _checked(max(found, key=lambda folder: _manifest(folder)["finished"])) if found else None
