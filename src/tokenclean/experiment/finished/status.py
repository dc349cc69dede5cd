"""What a run folder holds, and why each stage is or isn't valid."""

from __future__ import annotations

import time
from calendar import timegm
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenclean.cleaning.stages import STAGE_VERSIONS
from tokenclean.cleaning.trainings import CHECKPOINTS
from tokenclean.report.tables import Table, size_text
from tokenclean.store import DAMAGED, MANIFEST, RESULTS, STAGES, StageState, Store, judge
from tokenclean.training.checkpoint import saved_states


@dataclass(frozen=True)
class RunStatus:
    """``headline``: how much lies there, and who runs. ``table``: a line a stage, its state one word. ``notes``: why
    a stage is in its state, then what can be done."""

    headline: str
    table: Table
    notes: tuple[str, ...]


def describe_run(run: Path) -> RunStatus:
    """Check every stage of a run folder, which has to be there, against its manifest; nothing is changed."""
    store = Store(run)
    holder = store.holder()
    found = [*store.stages(), *store.stages(RESULTS)]
    reasons = judge(found, STAGE_VERSIONS)
    stages = sorted(found, key=_when_made)
    rows = tuple(
        (
            _name(stage, run),
            stage.what or "–",
            size_text(stage.size_bytes),
            _age(stage.finished),
            _state(reasons[stage.key]),
        )
        for stage in stages
    )
    columns = ("stage", "what", "size", "age", "state")
    table = Table("Stages, in the order in which they were made", columns, rows, text_columns=(0, 1, 4))
    states = Counter(row[-1] for row in rows)
    explained = [
        f"{row[0]}: {reasons[stage.key]}"
        for row, stage in zip(rows, stages, strict=True)
        if reasons[stage.key] != "valid" and not stage.is_unfinished
    ]
    notes = (*explained, *_saved(run, holder), *_advice(run, holder, states), *_set_aside(run))
    return RunStatus(_headline(run, holder, stages, states), table, notes)


def _headline(
    run: Path, holder: Mapping[str, Any] | None, stages: Sequence[StageState], states: Mapping[str, int]
) -> str:
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    size = size_text(sum(stage.size_bytes for stage in stages))
    held = f"{counted}, {size}" if stages else "no stage yet"
    return f"{run}: {held}; {_running(holder)}"


def _running(holder: Mapping[str, Any] | None) -> str:
    if holder is None:
        return "no run is going on"
    if not holder:
        return "in use by another process"
    return f"in use by process {holder['pid']} ({holder['command']}) on {holder['host']} since {holder['started']}"


def _advice(run: Path, holder: Mapping[str, Any] | None, states: Mapping[str, int]) -> list[str]:
    advice = []
    if states.get("stale"):
        advice.append("stale stages are not used any more: the next run makes them anew; they may be deleted")
    if states.get("damaged"):
        advice.append(f"a damaged stage is moved to {run / DAMAGED} and made again by the next run that needs it")
    if states.get("unfinished"):
        advice.append(
            "what a stopped run left unfinished is cleared away by the next run"
            if holder is None
            else "the unfinished stage is the one that the run is making"
        )
    return advice


def _saved(run: Path, holder: Mapping[str, Any] | None) -> list[str]:
    """A line for each training that was stopped, or is going on, after its state was saved."""
    then = "; the same command goes on from it" if holder is None else ""
    lines = []
    for state in saved_states(run / CHECKPOINTS):
        step = f"{state.step:,}" + (f" of {state.steps:,}" if state.steps else "")
        lines.append(f"training {state.what}: state saved at step {step}, {_age(state.saved)} ago{then}")
    return lines


def _set_aside(run: Path) -> list[str]:
    aside = sorted(path.name for path in (run / DAMAGED).iterdir()) if (run / DAMAGED).is_dir() else []
    return [f"{len(aside)} set aside in {run / DAMAGED}, which may be deleted: {', '.join(aside)}"] if aside else []


def _state(reason: str) -> str:
    return reason.partition(" ")[0].rstrip(":,")


def _name(stage: StageState, run: Path) -> str:
    """The folder below ``run``; that of all but the results stands in ``stages``, which is left out."""
    return str(stage.path.relative_to(run)).removeprefix(f"{STAGES}/")


def _when_made(stage: StageState) -> tuple[str, int, str]:
    """Manifests tell whole seconds, in which small stages are many; the manifest's own file tells them apart."""
    manifest = stage.path / MANIFEST
    written_ns = manifest.stat().st_mtime_ns if manifest.is_file() else 0
    return stage.finished or "~", written_ns, stage.path.name


def _age(finished: str | None) -> str:
    if finished is None:
        return "–"
    seconds = max(time.time() - timegm(time.strptime(finished, "%Y-%m-%dT%H:%M:%SZ")), 0)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
