"""What a run folder holds, and why each stage is or isn't valid."""

from __future__ import annotations

import time
from calendar import timegm
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenclean.cleaning.workshop import STAGE_VERSIONS
from tokenclean.report.tables import Table, size_text
from tokenclean.store import DAMAGED, RESULTS, StageState, Store, judge


@dataclass(frozen=True)
class RunStatus:
    """``headline``: who runs, and how much lies there. ``table``: a line a stage. ``notes``: what can be done."""

    headline: str
    table: Table
    notes: tuple[str, ...]


def describe_run(run: Path) -> RunStatus:
    """Check every stage of a run folder, which has to be there, against its manifest; nothing is changed."""
    store = Store(run)
    stages = store.stages()
    results = store.stages(RESULTS)
    reasons = judge([*stages, *results], STAGE_VERSIONS)
    lines = sorted([*stages, *results], key=lambda stage: (stage.finished or "~", stage.label))
    rows = tuple(
        (
            stage.label,
            "–" if stage.version is None else str(stage.version),
            size_text(stage.size_bytes),
            "–" if stage.seconds is None else f"{stage.seconds:,.1f} s",
            _age(stage.finished),
            reasons[stage.key],
        )
        for stage in lines
    )
    columns = ("stage", "version", "size", "took", "age", "state")
    table = Table("Stages, in the order in which they were made", columns, rows, text_columns=(0, 5))
    return RunStatus(_headline(run, store, lines), table, tuple(_notes(run, lines, reasons)))


def _headline(run: Path, store: Store, stages: Sequence[StageState]) -> str:
    holder = store.holder()
    running = (
        "no run is going on"
        if holder is None
        else f"held by process {holder['pid']} on {holder['host']} since {holder['started']} ({holder['command']})"
    )
    return f"{run}: {len(stages)} stages, {size_text(sum(s.size_bytes for s in stages))}; {running}"


def _notes(run: Path, stages: Sequence[StageState], reasons: dict[str, str]) -> list[str]:
    counted = Counter(reasons[stage.key].split()[0].rstrip(":,") for stage in stages)
    notes = ["in all " + ", ".join(f"{count} {state}" for state, count in counted.most_common())] if stages else []
    if counted["stale"]:
        notes.append("stale stages are not used any more: the next run makes them anew; they may be deleted")
    if counted["damaged"]:
        notes.append("a damaged stage is moved to damaged/ and made again by the next run that needs it")
    if counted["unfinished"]:
        notes.append("what a stopped run left unfinished is cleared away by the next run")
    aside = sorted(path.name for path in (run / DAMAGED).iterdir()) if (run / DAMAGED).is_dir() else []
    if aside:
        notes.append(f"{len(aside)} set aside in {run / DAMAGED}, which may be deleted: {', '.join(aside)}")
    return notes


def _age(finished: str | None) -> str:
    if finished is None:
        return "–"
    seconds = max(time.time() - timegm(time.strptime(finished, "%Y-%m-%dT%H:%M:%SZ")), 0)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
