"""What a run folder holds, and why each stage is or isn't valid."""

from __future__ import annotations

import time
from calendar import timegm
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from tokenclean.report.tables import Table, size_text
from tokenclean.servers.answer_cache import read_answers
from tokenclean.store import (
    CHECKPOINTS,
    DAMAGED,
    MANIFEST,
    RESULTS,
    SERVED,
    STAGE_VERSIONS,
    STAGES,
    StageState,
    Store,
    judge,
)


@dataclass(frozen=True)
class RunStatus:
    """``headline``: how many stages there are, their size, and who is running. ``table``: a line a stage, its state in
    one word. ``notes``: why a stage is in its state, then what can be done."""

    headline: str
    table: Table
    notes: tuple[str, ...]


def describe_run(run: Path) -> RunStatus:
    """Check every stage of an existing run folder against its manifest; nothing is changed."""
    store = Store(run)
    holder = store.holder()
    found = [*store.stages(), *store.stages(RESULTS)]
    reasons = judge(found, STAGE_VERSIONS)
    rows, explained = [], []
    for stage in sorted(found, key=_when_finished):
        # Results are named with their folder; all other stages are in the folder ``stages``, which goes without saying.
        name = str(stage.path.relative_to(run)).removeprefix(f"{STAGES}/")
        reason = reasons[stage.key]
        state = reason.partition(" ")[0].rstrip(":,")
        rows.append((name, stage.what or "–", size_text(stage.size_bytes), _age(stage.finished), state))
        if reason != "valid" and not stage.is_unfinished:
            explained.append(f"{name}: {reason}")
    columns = ("stage", "what", "size", "age", "state")
    table = Table("Stages, in the order in which they were made", columns, tuple(rows), text_columns=(0, 1, 4))
    states = Counter(row[-1] for row in rows)
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    held = f"{counted}, {size_text(_held_bytes(found))} on disk" if found else "no stage yet"
    notes = (
        *explained,
        *_saved(run, is_running=holder is not None),
        *_answered(run, is_running=holder is not None),
        *_advice(run, states, holder is not None),
    )
    return RunStatus(f"{run}: {held}; {_running(holder)}", table, notes)


def _held_bytes(stages: Iterable[StageState]) -> int:
    """Size of all files; one that results share with a training, as a hard link, takes its space once."""
    sizes: dict[tuple[int, int], int] = {}
    for path in (path for stage in stages for path in stage.path.rglob("*")):
        with suppress(FileNotFoundError):  # a run finished or cleared it just now
            state = path.lstat()
            if S_ISREG(state.st_mode):
                sizes[state.st_dev, state.st_ino] = state.st_size
    return sum(sizes.values())


def _running(holder: Mapping[str, object] | None) -> str:
    if holder is None:
        return "no run in progress"
    if not holder:
        return "in use by another process"
    return f"in use by process {holder['pid']} ({holder['command']}) on {holder['host']} since {holder['started']}"


def _saved(run: Path, *, is_running: bool) -> list[str]:
    """A line for each training that saved its state and has not finished."""
    if not any((run / CHECKPOINTS).glob("*")):
        return []
    from tokenclean.training.checkpoint import saved_states  # loads torch

    lines = []
    for state in saved_states(run / CHECKPOINTS):
        step = f"{state.step:,}" + (f" of {state.steps:,}" if state.steps else "")
        then = "" if is_running else "; the same command continues from it"
        lines.append(f"training {state.what}: state saved at step {step}, {_age(state.saved)} ago{then}")
    return lines


def _answered(run: Path, *, is_running: bool) -> list[str]:
    """A line where a server has answered rows of losses that are not complete."""
    folders = sorted((run / SERVED).glob("*")) if (run / SERVED).is_dir() else []
    rows = sum(len(read_answers(folder)) for folder in folders)
    then = "" if is_running else "; the same command asks for the others"
    return [f"served reference: answers to {rows:,} rows kept{then}"] if rows else []


def _advice(run: Path, states: Mapping[str, int], is_running: bool) -> list[str]:
    advice = []
    if states.get("stale"):
        advice.append("stale stages are no longer used: the next run recomputes them; they may be deleted")
    if states.get("damaged"):
        advice.append(f"the next run that needs a damaged stage moves it to {run / DAMAGED} and recomputes it")
    if states.get("unfinished"):
        advice.append(
            "the unfinished stage is the one being computed by the run in progress"
            if is_running
            else "the next run deletes what a stopped run left unfinished"
        )
    damaged = sorted(path.name for path in (run / DAMAGED).iterdir()) if (run / DAMAGED).is_dir() else []
    if damaged:
        advice.append(f"{len(damaged)} set aside in {run / DAMAGED}, which may be deleted: {', '.join(damaged)}")
    return advice


def _when_finished(stage: StageState) -> tuple[str, int, str]:
    """Manifests record whole seconds, too coarse for small stages; the time of the manifest's file is finer."""
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
