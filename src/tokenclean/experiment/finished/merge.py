"""From a run, or an adapter, to a plain model: which model is meant, and which template it was trained with."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tokenclean.errors import RecipeError, RunFolderError
from tokenclean.experiment.finished.finished_run import recipe_of, results_of, strategy_folder
from tokenclean.experiment.run_files import LATEST, RECIPE
from tokenclean.models.loading.hub_models import read_json
from tokenclean.models.loading.load import ModelSource, load_tokenizer, resolve_source
from tokenclean.models.loading.safety import ADAPTER_CONFIG
from tokenclean.models.merging import Merge, MergedDtype, write_merged
from tokenclean.store import MANIFEST

RECORD = "tokenclean.json"
"""File beside a model of ``tokenclean train``: the template that rendered what it was trained on."""


@dataclass(frozen=True)
class FoundModel:
    """``name``: folder or Hub id of the adapter or model. ``template``: what it was trained with, None if unknown.
    ``base``, ``revision``: the recipe's base and its revision, for the model of a run."""

    name: str
    template: str | None = None
    base: str | None = None
    revision: str | None = None


def write_record(folder: Path, template: str) -> None:
    """Record which template rendered the table that a model was trained on; no record for an empty (unknown) one."""
    if template:
        (folder / RECORD).write_text(json.dumps({"template": template}) + "\n", encoding="utf-8")


def find_model(name: str, strategy: str | None = None) -> FoundModel:
    """The final model of a run folder (of its last run) or a results folder; any other name is taken as given.

    ``strategy``: which of a run's strategies, by default the recipe's own. Raises RunFolderError for a folder that
    holds neither a model nor results, or damaged ones, RecipeError for a strategy that trained nothing, or one given
    for something other than a run.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / file).is_file() for file in (ADAPTER_CONFIG, "config.json")):
        if not any((path / file).is_file() for file in (MANIFEST, LATEST)):
            raise RunFolderError(f"{name}: holds neither an adapter, nor a model, nor the results of a run")
        results = results_of(path)
        path = strategy_folder(results, strategy, "model", "no strategy of this run trains a model") / "model"
        name = str(path)
    elif strategy is not None:
        raise RecipeError(f"--strategy {strategy}: {name} is no run, so it has no strategies; leave it out", "merge")
    if (path / RECORD).is_file():
        return FoundModel(name, read_json(path / RECORD).get("template"))
    results = path.absolute().parent.parent
    if path.is_dir() and (results / RECIPE).is_file():
        recipe = recipe_of(results)
        return FoundModel(name, recipe["tokens"]["template"], recipe["model"]["base"], recipe["model"]["revision"])
    return FoundModel(name)


def merge_model(
    found: FoundModel,
    folder: Path,
    dtype: MergedDtype,
    *,
    template: str | None = None,
    base: str | None = None,
    trusted: Collection[str] = (),
) -> tuple[ModelSource, str, Merge]:
    """Write the plain model to ``folder`` (see ``write_merged``); returns its source, its template and what was merged.

    ``template``, ``base`` replace what the model itself names. Raises as ``write_merged``, and RecipeError where the
    template is neither given nor known.
    """
    source = resolve_source(found.name, base=base, trusted=trusted)
    if found.revision is not None and source.base == found.base:
        source = resolve_source(found.name, base=found.base, revision=found.revision, trusted=trusted)
    template = template or found.template or only_template(source)
    return source, template, write_merged(source, folder, dtype=dtype, template=template)


def only_template(source: ModelSource) -> str:
    """``tulu``, for a tokenizer without a chat template. Raises RecipeError for any other, since either is possible."""
    if load_tokenizer(source).chat_template:
        raise RecipeError(
            f"nothing says which chat template {source} was trained with, and its tokenizer has one of its own; name "
            "it with tokenclean merge --template tulu, or --template tokenizer",
            "merge",
        )
    return "tulu"
