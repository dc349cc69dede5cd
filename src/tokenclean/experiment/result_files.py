"""The results folder: what a run made for its user, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenclean.cleaning import StrategyResult
from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.noise_removal import fractions_of
from tokenclean.cleaning.open_run import OpenRun
from tokenclean.cleaning.strategy_result import proportion_of, weights_of
from tokenclean.experiment.preferences import ModelPreference
from tokenclean.experiment.run_files import LATEST, TABLES, MeasuredModel
from tokenclean.exporting import write_cleaned
from tokenclean.pool import write_rejected, write_removed
from tokenclean.recipe import Recipe, ServedModel
from tokenclean.report.tables import Table
from tokenclean.scoring import PairedDifference
from tokenclean.selection import lowest_kept
from tokenclean.store import RESULTS, array_hash, atomic_path, file_hash, write_json
from tokenclean.token_table import write_table
from tokenclean.training.optimizer import MOMENTS


@dataclass(frozen=True)
class Measured:
    """A model on the held-out rows: against the base, and against full tokens where that was trained.

    ``reference``: after a rollback, the name of the reference that became the strategy's final model. ``preference``:
    of a final model over the pairs of ``evaluation.pairs``, where there are any.
    """

    name: str
    kept_share: float | None
    loss: float
    against_base: PairedDifference | None
    against_full: PairedDifference | None
    weak_reference: str = ""
    reference: str = ""
    preference: ModelPreference | None = None

    def to_json(self) -> MeasuredModel:
        """As in ``result.json``."""
        found = self.preference
        preferences = {
            "preference": found and asdict(found.preference),
            "preference_against_full": found and found.change and asdict(found.change),
        }
        return MeasuredModel(**{**asdict(self), **preferences})


def kept_share(result: StrategyResult, context: RunContext) -> float | None:
    """Kept tokens over response tokens of the training pool (r̂); None where nothing was selected."""
    if result.kept is None:
        return None
    return float(result.kept.values.sum() / context.tokens.is_response.values.sum())


def write_results(
    opened: OpenRun,
    results: Sequence[StrategyResult],
    measured: Sequence[Measured],
    rounds: Mapping[str, object] | None,
    tables: Sequence[Table],
    documents: Mapping[str, object],
    seconds: float,
) -> Path:
    """Write, or find unharmed, the folder of these results; ``rounds``: of self-evolving cleaning, for ``result.json``;
    ``documents``: further JSON by file name.

    Its name hashes the recipe, the pool's tokens, the models and the kept tokens. It holds for each strategy the final
    model, the intermediate references, ``kept.parquet`` (losses, scores and labels of every token) and
    ``cleaned.parquet`` (the dataset for a trainer), then recipe, tables, rejected rows and ``result.json``.
    """
    context = opened.context
    tokens = context.tokens
    inputs = {
        "recipe": context.recipe.result_inputs(),
        "tokens": array_hash(tokens.input_ids.values, tokens.is_response.values),
        "models": {m.name: m.identity for o in results for m in _models_of(o)},
        "kept": {o.strategy: array_hash(o.kept.values) for o in results if o.kept is not None},
        "rejected": len(context.data.rejected),
        "removed": len(context.data.pool.removed),
        "preferences": {m.name: asdict(m.preference) for m in measured if m.preference is not None},
        **_review(context),
    }

    def make(folder: Path) -> dict[str, object]:
        for result in results:
            _write_strategy(context, result, folder / result.strategy)
        write_rejected(context.data.rejected, folder / "rejected.jsonl")
        if context.data.pool.removed:
            write_removed(context.data.pool.removed, folder / "removed.jsonl")
        (folder / "recipe.yaml").write_text(context.recipe.to_yaml(), encoding="utf-8")
        (folder / "table.md").write_text("\n".join(table.to_markdown() for table in tables), encoding="utf-8")
        write_json(folder / TABLES, [table.to_document() for table in tables])
        for name, document in documents.items():
            write_json(folder / name, document)
        write_json(folder / "result.json", _result_document(opened, results, measured, rounds, seconds))
        strategies = [result.strategy for result in results]
        return {"what": ", ".join(strategies), "strategies": strategies}

    folder = opened.stages.stage("results", inputs, make, within=RESULTS).path
    name_latest(folder)
    return folder


def _models_of(result: StrategyResult) -> list[Model]:
    """Every model that the results mention, rolled-back ones included."""
    further = (*(check.model for check in result.checks), *(record.model for record in result.round_records))
    return [*result.rounds, *further, result.model]


def name_latest(results: Path) -> None:
    """Let the run folder say that these are the results of its last run."""
    with atomic_path(results.parent.parent / LATEST) as temporary:
        temporary.write_text(results.name + "\n", encoding="utf-8")


def _write_strategy(context: RunContext, result: StrategyResult, place: Path) -> None:
    if result.kept is not None:
        columns = {"is_kept": result.kept} | ({"score": result.scores} if result.scores is not None else {})
        columns |= result.losses
        weights = context.data.weighted(weights_of(result.kept) if result.weights is None else result.weights)
        has_weights = fractions_of(weights) is not None or context.data.review is not None
        columns |= {"weight": weights} if has_weights else {}
        table = context.tokens.table(_metadata(context, result), **columns)
        write_table(table, place / "kept.parquet")
        write_cleaned(table, place / "cleaned.parquet")
    for number, model in enumerate(result.rounds):
        is_final = number == len(result.rounds) - 1
        _place_model(model, place / ("model" if is_final else model.name))


def _metadata(context: RunContext, result: StrategyResult) -> dict[str, object]:
    """What a dataset card says, in the terms of ``tokenclean score`` and ``select``."""
    recipe: Recipe = context.recipe
    scored = result.scores is not None
    references = [check.model for check in result.checks]
    models = {"base": context.base, **{reference.name: reference for reference in references}}
    level = result.level or recipe.cleaning.level
    selected = scored or result.strategy == "random"
    return {
        "strategy": result.strategy,
        "template": recipe.tokens.template,
        "max_length": recipe.tokens.max_length,
        "targets": recipe.tokens.targets,
        "precision": recipe.scoring.precision,
        "models": {name: _described(context, model) for name, model in models.items()},
        "selection": {
            "proportion": proportion_of(recipe, result),
            "level": level,
            "unit": recipe.cleaning.unit if scored else "token",
            "threshold": lowest_kept(result.scores, result.kept),
        }
        if result.kept is not None and selected
        else {},
        "licenses": _licenses(context),
        "name": recipe.name,
        "recipe": recipe.to_yaml(),
    }


def _review(context: RunContext) -> dict[str, object]:
    """What people decided on the training rows, where the recipe names their decisions."""
    review = context.data.review
    return {} if review is None else {"review": review.to_json()}


def _choices(context: RunContext, results: Sequence[StrategyResult]) -> dict[str, object]:
    """What the run decided by itself, and by which rows, where it did."""
    choices = {o.strategy: o.choice.to_json() for o in results if o.choice is not None}
    if not choices:
        return {}
    return {"choices": choices, "choosing_rows": list(context.data.choosing.ids) if context.data.choosing else []}


def _licenses(context: RunContext) -> dict[str, str | None]:
    """Source name -> the licences that the recipe states for the places its rows came from; None for none."""
    stated = {s.place: s.license for s in context.recipe.pool.sources}
    found: dict[str, set[str]] = {}
    for conversation in context.data.pool:
        licenses = found.setdefault(conversation.source, set())
        if license := stated.get(conversation.file):
            licenses.add(license)
    return {source: "; ".join(sorted(licenses)) or None for source, licenses in found.items()}


def _described(context: RunContext, model: Model) -> dict[str, object]:
    """Name, revision and hash of a model; of a served one how its losses were computed.

    The name is the model's source; for one that this run trained its base and its own name, since its folder means
    nothing.
    """
    source = model.source
    if isinstance(source, ServedModel):
        served = context.passes.served_policy(model)
        return {"name": source.model, "revision": None, "fingerprint": model.key, "served": served}
    name = str(source) if model.training is None else f"{source.base} + {model.name}"
    return {"name": name, "revision": source.revision, "fingerprint": model.key}


def _result_document(
    opened: OpenRun,
    results: Sequence[StrategyResult],
    measured: Sequence[Measured],
    rounds: Mapping[str, object] | None,
    seconds: float,
) -> dict[str, object]:
    context, stages = opened.context, opened.stages
    return {
        "seconds": round(seconds, 1),
        "seed": context.recipe.seed,
        "base": str(context.data.base_source),
        "pool_files": _pool_files(context.recipe),
        "training_rows": list(context.tokens.ids),
        "heldout_rows": list(context.heldout.ids),
        "counts": {
            "training_rows": len(context.tokens),
            "heldout_rows": len(context.heldout),
            "rejected_rows": len(context.data.rejected),
            "removed_rows": len(context.data.pool.removed),
            "truncated_rows": int(context.tokens.is_cut.sum()),
            "tokens": len(context.tokens.input_ids.values),
            "response_tokens": int(context.tokens.is_response.values.sum()),
        },
        "intake": context.data.intake.to_json(),
        **_review(context),
        **_choices(context, results),
        "measured": [m.to_json() for m in measured],
        "training": {m.name: dict(m.training) for o in results for m in _models_of(o) if m.training},
        "references": [
            {
                "strategy": o.strategy,
                "name": c.model.name,
                "heldout": asdict(c.heldout),
                "score_deviation_nats": c.score_deviation,
                "score_error_nats": c.score_error,
                "faults": c.faults,
                "served": context.passes.served_policy(c.model),
            }
            for o in results
            for c in o.checks
        ],
        "rounds": rounds,
        "stages": {"made": stages.computed, "reused": stages.reused},
    }


def _pool_files(recipe: Recipe) -> list[dict[str, object]]:
    """Name, size and sha256 of each local file; id and revision of a Hub dataset."""
    described: list[dict[str, object]] = []
    for source in recipe.pool.sources:
        path = Path(source.place).expanduser()
        if source.hub is not None:
            described.append({"hub": source.hub, "revision": source.revision, "split": source.split})
        elif path.is_file():
            described.append({"path": source.place, "bytes": path.stat().st_size, "sha256": file_hash(path)})
        else:
            described.append({"path": source.place})
    return described


def _place_model(model: Model, place: Path) -> None:
    """A model as hard links to its training's files, so that it is stored once.

    An optimizer's moments, twice as large as the adapter, stay in the stage: they are for the next round alone.
    """
    shutil.copytree(model.folder, place, ignore=shutil.ignore_patterns("manifest.json", MOMENTS), copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
