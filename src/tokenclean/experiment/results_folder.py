"""The results folder: what a run made for its user, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenclean.cleaning import StrategyResult, Workshop
from tokenclean.cleaning.noise import fractions_of
from tokenclean.cleaning.strategy_result import weights_of
from tokenclean.cleaning.workshop import Model
from tokenclean.exporting import write_cleaned
from tokenclean.pool import write_rejected, write_removed
from tokenclean.recipe import Recipe
from tokenclean.report.tables import Table
from tokenclean.scoring import PairedDifference
from tokenclean.selection import lowest_kept
from tokenclean.store import RESULTS, array_hash, atomic_path, file_hash, write_json
from tokenclean.token_table import write_table
from tokenclean.training.optimizer_state import MOMENTS

LATEST = "latest"
"""File of the run folder that names the results of the last run, found or made."""


TABLES = "tables.json"
"""File of results, of a comparison and of a sweep that holds their tables, for a report."""


@dataclass(frozen=True)
class Measured:
    """A model on the held-out rows: against the base, and against full tokens where that was trained.

    ``reference``: of a strategy's final model, the reference on the way that it is, after a rollback.
    """

    name: str
    kept_share: float | None
    loss: float
    against_base: PairedDifference | None
    against_full: PairedDifference | None
    weak_reference: str = ""
    reference: str = ""


def kept_share(outcome: StrategyResult, workshop: Workshop) -> float | None:
    """Kept tokens over response tokens of the training pool (r̂); None where nothing was selected."""
    if outcome.kept is None:
        return None
    return float(outcome.kept.values.sum() / workshop.tokens.is_response.values.sum())


def write_results(
    workshop: Workshop,
    outcomes: Sequence[StrategyResult],
    measured: Sequence[Measured],
    rounds: Mapping[str, Any] | None,
    tables: Sequence[Table],
    documents: Mapping[str, Any],
    seconds: float,
) -> Path:
    """Write, or find unharmed, the folder of these results; ``rounds``: of self-evolving cleaning, for ``result.json``;
    ``documents``: further JSON by file name.

    Its name hashes the recipe, the pool's tokens, the models and the kept tokens. It holds for each strategy the final
    model, the references on the way, ``kept.parquet`` (losses, scores and labels of every token) and
    ``cleaned.parquet`` (the dataset for a trainer), then recipe, tables, rejected rows and ``result.json``.
    """
    tokens = workshop.tokens
    inputs = {
        "recipe": workshop.recipe.model_dump(mode="json"),
        "tokens": array_hash(tokens.input_ids.values, tokens.is_response.values),
        "models": {m.name: m.identity for o in outcomes for m in _models_of(o)},
        "kept": {o.strategy: array_hash(o.kept.values) for o in outcomes if o.kept is not None},
        "rejected": len(workshop.rejected),
        "removed": len(workshop.pool.removed),
    }

    def make(folder: Path) -> dict[str, Any]:
        for outcome in outcomes:
            _write_strategy(workshop, outcome, folder / outcome.strategy)
        write_rejected(workshop.rejected, folder / "rejected.jsonl")
        if workshop.pool.removed:
            write_removed(workshop.pool.removed, folder / "removed.jsonl")
        (folder / "recipe.yaml").write_text(workshop.recipe.to_yaml(), encoding="utf-8")
        (folder / "table.md").write_text("\n".join(table.to_markdown() for table in tables), encoding="utf-8")
        write_json(folder / TABLES, [table.to_document() for table in tables])
        for name, document in documents.items():
            write_json(folder / name, document)
        write_json(folder / "result.json", _result(workshop, outcomes, measured, rounds, seconds))
        strategies = [outcome.strategy for outcome in outcomes]
        return {"what": ", ".join(strategies), "strategies": strategies}

    folder = workshop.stage("results", inputs, make, within=RESULTS).path
    name_latest(folder)
    return folder


def _models_of(outcome: StrategyResult) -> list[Model]:
    """Every model that the results tell of, which a rolled-back one is too."""
    told = (*(check.model for check in outcome.checks), *(record.model for record in outcome.round_records))
    return [*outcome.rounds, *told, outcome.model]


def name_latest(results: Path) -> None:
    """Let the run folder say that these are the results of its last run."""
    with atomic_path(results.parent.parent / LATEST) as temporary:
        temporary.write_text(results.name + "\n", encoding="utf-8")


def _write_strategy(workshop: Workshop, outcome: StrategyResult, place: Path) -> None:
    if outcome.kept is not None:
        columns = {"is_kept": outcome.kept} | ({"score": outcome.scores} if outcome.scores is not None else {})
        columns |= outcome.losses
        weights = workshop.weighted(weights_of(outcome.kept) if outcome.weights is None else outcome.weights)
        columns |= {"weight": weights} if fractions_of(weights) is not None else {}
        table = workshop.tokens.table(_metadata(workshop, outcome), **columns)
        write_table(table, place / "kept.parquet")
        write_cleaned(table, place / "cleaned.parquet")
    for number, model in enumerate(outcome.rounds):
        is_final = number == len(outcome.rounds) - 1
        _place_model(model, place / ("model" if is_final else model.name), as_copy=is_final)


def _metadata(workshop: Workshop, outcome: StrategyResult) -> dict[str, Any]:
    """What a dataset card says, in the terms of ``tokenclean score`` and ``select``."""
    recipe: Recipe = workshop.recipe
    scored = outcome.scores is not None
    references = [check.model for check in outcome.checks]
    models = {"base": workshop.base, **{reference.name: reference for reference in references}}
    level = {"random": "random", "rho": "sample"}.get(outcome.strategy, recipe.cleaning.level)
    selected = scored or outcome.strategy == "random"
    return {
        "strategy": outcome.strategy,
        "template": recipe.tokens.template,
        "max_length": recipe.tokens.max_length,
        "targets": recipe.tokens.targets,
        "precision": recipe.scoring.precision,
        "models": {
            name: {"name": _name_of(model), "revision": model.source.revision, "fingerprint": model.key}
            for name, model in models.items()
        },
        "selection": {
            "proportion": recipe.cleaning.proportion,
            "level": level,
            "threshold": lowest_kept(outcome.scores, outcome.kept),
        }
        if outcome.kept is not None and selected
        else {},
        "licenses": _licenses(workshop),
        "name": recipe.name,
        "recipe": recipe.to_yaml(),
    }


def _licenses(workshop: Workshop) -> dict[str, str | None]:
    """Source name -> the licences that the recipe states for the places its rows came from; None for none."""
    stated = {s.place: s.license for s in workshop.recipe.pool.sources}
    found: dict[str, set[str]] = {}
    for conversation in workshop.pool:
        licenses = found.setdefault(conversation.source, set())
        if license := stated.get(conversation.file):
            licenses.add(license)
    return {source: "; ".join(sorted(licenses)) or None for source, licenses in found.items()}


def _name_of(model: Model) -> str:
    """The model's source; for one that this run trained its base and its name, since its folder means nothing."""
    return str(model.source) if model.training is None else f"{model.source.base} + {model.name}"


def _result(
    workshop: Workshop,
    outcomes: Sequence[StrategyResult],
    measured: Sequence[Measured],
    rounds: Mapping[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "seed": workshop.recipe.seed,
        "base": str(workshop.base_source),
        "pool_files": _pool_files(workshop.recipe),
        "training_rows": list(workshop.tokens.ids),
        "heldout_rows": list(workshop.heldout.ids),
        "counts": {
            "training_rows": len(workshop.tokens),
            "heldout_rows": len(workshop.heldout),
            "rejected_rows": len(workshop.rejected),
            "removed_rows": len(workshop.pool.removed),
            "truncated_rows": int(workshop.tokens.is_cut.sum()),
            "tokens": len(workshop.tokens.input_ids.values),
            "response_tokens": int(workshop.tokens.is_response.values.sum()),
        },
        "intake": workshop.intake.to_json(),
        "measured": [asdict(m) for m in measured],
        "training": {m.name: dict(m.training) for o in outcomes for m in _models_of(o) if m.training},
        "references": [
            {
                "strategy": o.strategy,
                "name": c.model.name,
                "heldout": asdict(c.heldout),
                "score_deviation_nats": c.score_deviation,
                "score_error_nats": c.score_error,
                "faults": c.faults,
            }
            for o in outcomes
            for c in o.checks
        ],
        "rounds": rounds,
        "stages": {"made": workshop.made, "reused": workshop.reused},
    }


def _pool_files(recipe: Recipe) -> list[dict[str, Any]]:
    """Name, size and sha256 of each local file; id and revision of a Hub dataset."""
    described: list[dict[str, Any]] = []
    for source in recipe.pool.sources:
        path = Path(source.place).expanduser()
        if source.hub is not None:
            described.append({"hub": source.hub, "revision": source.revision, "split": source.split})
        elif path.is_file():
            described.append({"path": source.place, "bytes": path.stat().st_size, "sha256": file_hash(path)})
        else:
            described.append({"path": source.place})
    return described


def _place_model(model: Model, place: Path, *, as_copy: bool) -> None:
    """The final model as a copy, so that nothing done to it harms its stage; references as hard links to theirs.

    An optimizer's moments, twice as large as the adapter, stay in the stage: they are for the next round alone.
    """
    ignored = shutil.ignore_patterns("manifest.json", MOMENTS)
    shutil.copytree(model.folder, place, ignore=ignored, copy_function=shutil.copy2 if as_copy else _link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
