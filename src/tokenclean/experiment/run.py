"""A whole experiment: every strategy of a recipe, measured on the same held-out rows, written to one results folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tokenclean
from tokenclean.cleaning import STRATEGIES, Outcome, Workshop
from tokenclean.cleaning.workshop import Model, array_hash
from tokenclean.pool import write_rejected
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.report.tables import Table, difference_text, jaccard_table, share_text
from tokenclean.scoring import PairedDifference
from tokenclean.selection import jaccard
from tokenclean.store import atomic_path, fingerprint, write_json
from tokenclean.tokens import TokenTable, write_table


@dataclass(frozen=True)
class Measured:
    """A model on the held-out rows: against the base, and against full tokens where that was trained."""

    name: str
    kept_share: float | None
    loss: float
    against_base: PairedDifference | None
    against_full: PairedDifference | None
    weak_reference: str = ""


@dataclass(frozen=True)
class RunResult:
    """``folder``: everything the run made for its user. ``outcomes``: one a strategy. ``tables``: to be shown."""

    folder: Path
    outcomes: tuple[Outcome, ...]
    measured: tuple[Measured, ...]
    tables: tuple[Table, ...]
    stages_made: int
    stages_reused: int


def run(workshop: Workshop, further: Mapping[str, Callable[[Workshop], Outcome]] | None = None) -> RunResult:
    """Run the recipe's strategies (and ``further`` ones), measure each model, write models, kept tokens and tables."""
    started = time.time()
    recipe = workshop.recipe
    _tell_pool(workshop)
    functions = {**{name: STRATEGIES[name] for name in recipe.strategies}, **(further or {})}
    outcomes = []
    for name, function in functions.items():
        workshop.observer.note(f"strategy {name}")
        outcomes.append(function(workshop))
    measured = measure(workshop, outcomes)
    tables = [loss_table(measured, workshop)]
    kept = {o.strategy: o.kept for o in outcomes if o.kept is not None}
    if len(kept) > 1:
        tables.append(overlap_table(kept))
    folder = _results_folder(workshop)
    _write(folder, workshop, outcomes, measured, tables, time.time() - started)
    return RunResult(
        folder, tuple(outcomes), tuple(measured), tuple(tables), len(workshop.made), len(set(workshop.reused))
    )


def measure(workshop: Workshop, outcomes: list[Outcome]) -> list[Measured]:
    """Held-out losses of the base, of every model trained on the way, and of every final model, in that order."""
    full = next((o.model for o in outcomes if o.strategy == "full_tokens"), None)
    seen: set[str] = set()
    lines: list[Measured] = []

    def add(name: str, model: Model, kept_share: float | None, weak: str) -> None:
        seen.add(model.key)
        against_base = workshop.against(model, workshop.base) if model.key != workshop.base.key else None
        against_full = workshop.against(model, full) if full is not None and model.key != full.key else None
        loss = against_base.loss if against_base else float(np.nanmean(workshop.heldout_losses(model).values))
        lines.append(Measured(name, kept_share, loss, against_base, against_full, weak))

    weak = {c.model.key: "; ".join(c.faults) for o in outcomes for c in o.checks if c.faults}
    add("base", workshop.base, None, "")
    for outcome in outcomes:
        for check in outcome.checks:
            if check.model.key in seen:  # strategies share references
                continue
            add(f"  {check.model.name}", check.model, None, weak.get(check.model.key, ""))
        if outcome.model.key != workshop.base.key:
            add(outcome.strategy, outcome.model, kept_share(outcome, workshop), weak.get(outcome.model.key, ""))
    return lines


def kept_share(outcome: Outcome, workshop: Workshop) -> float | None:
    """Kept tokens over response tokens of the training pool (r̂); None where nothing was selected."""
    if outcome.kept is None:
        return None
    return float(outcome.kept.values.sum() / workshop.tokens.is_response.values.sum())


def loss_table(measured: list[Measured], workshop: Workshop) -> Table:
    """The table that says whether it helped."""
    rows = tuple(
        (
            m.name + (" (weak)" if m.weak_reference else ""),
            share_text(m.kept_share),
            f"{m.loss:.4f}",
            difference_text(m.against_base) if m.against_base else "–",
            difference_text(m.against_full) if m.against_full else "–",
        )
        for m in measured
    )
    tokens = int(workshop.heldout.is_response.values.sum())
    return Table(
        "Held-out loss (nats a response token; lower is better)",
        ("model", "kept", "loss", "minus base ± 95%", "minus full tokens"),
        rows,
        f"{len(workshop.heldout)} held-out conversations, {tokens:,} response tokens; indented: references on the way",
    )


def overlap_table(kept: Mapping[str, Ragged]) -> Table:
    """Pairwise Jaccard of the strategies' kept sets."""
    return jaccard_table(list(kept), [[jaccard(a, b) for b in kept.values()] for a in kept.values()])


def _tell_pool(workshop: Workshop) -> None:
    tokens = workshop.tokens
    workshop.observer.note(
        f"pool: {len(tokens):,} training rows, {len(tokens.input_ids.values):,} tokens, "
        f"{int(tokens.is_response.values.sum()):,} of them response; {len(workshop.heldout):,} held-out rows; "
        f"{len(workshop.pool.rejected) + len(tokens.unusable) + len(workshop.heldout.unusable):,} rows set aside, "
        f"{int(tokens.is_truncated.sum()):,} cut at {tokens.max_length} tokens"
    )


def _results_folder(workshop: Workshop) -> Path:
    tokens = workshop.tokens
    key = fingerprint(
        [
            workshop.recipe.model_dump(mode="json"),
            workshop.base.key,
            array_hash(tokens.input_ids.values, tokens.is_response.values),
        ]
    )
    return workshop.store.root / "results" / key[:12]


def _write(
    folder: Path,
    workshop: Workshop,
    outcomes: list[Outcome],
    measured: list[Measured],
    tables: list[Table],
    seconds: float,
) -> None:
    recipe: Recipe = workshop.recipe
    for outcome in outcomes:
        place = folder / outcome.strategy
        if outcome.kept is not None:
            columns = {"is_kept": outcome.kept} | ({"score": outcome.scores} if outcome.scores is not None else {})
            metadata = {"strategy": outcome.strategy, "recipe": recipe.model_dump(mode="json")}
            write_table(TokenTable.of_tokens(workshop.tokens, metadata, **columns), place / "kept.parquet")
        for number, model in enumerate(outcome.rounds):
            is_final = number == len(outcome.rounds) - 1
            _place_model(model, place / ("model" if is_final else model.name), as_copy=is_final)
    rejected = (*workshop.pool.rejected, *workshop.tokens.unusable, *workshop.heldout.unusable)
    write_rejected(rejected, folder / "rejected.jsonl")
    for name, text in (
        ("recipe.yaml", recipe.to_yaml()),
        ("table.md", "\n".join(table.to_markdown() for table in tables)),
    ):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    result: dict[str, Any] = {
        "version": tokenclean.__version__,
        "packages": _package_versions(),
        "seconds": round(seconds, 1),
        "base": str(workshop.base_source),
        "training_rows": list(workshop.tokens.ids),
        "heldout_rows": list(workshop.heldout.ids),
        "measured": [asdict(m) for m in measured],
        "training": {m.name: dict(m.training or {}) for o in outcomes for m in o.rounds},
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
        "stages": {"made": workshop.made, "reused": sorted(set(workshop.reused))},
    }
    write_json(folder / "result.json", result)


def _place_model(model: Model, place: Path, *, as_copy: bool) -> None:
    """The final model as a copy, which its user may change; references as hard links to their stage."""
    stage = Path(model.source.adapter or model.source.base)
    shutil.rmtree(place, ignore_errors=True)
    ignored = shutil.ignore_patterns("manifest.json")
    shutil.copytree(stage, place, ignore=ignored, copy_function=shutil.copy2 if as_copy else _link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _package_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "tokenizers", "peft", "numpy")}
