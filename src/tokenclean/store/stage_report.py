"""The state of a run folder's stages under the current code: valid, stale, damaged, unfinished or unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenclean.errors import RunFolderError
from tokenclean.store.damage import check_stage
from tokenclean.store.layout import FINISHED, RESULTS, SHORT_KEY, UNFINISHED
from tokenclean.store.manifest import folder_bytes, read_manifest


@dataclass(frozen=True)
class StageState:
    """A stage's folder as found on disk.

    ``name``, ``version``, ``key``, ``what`` it holds, ``finished`` (UTC, ISO 8601), ``seconds`` and ``depends_on``
    (keys of the stages it was built on) come from the manifest. Where that cannot be read, name and key come from the
    folder's name, which has the first 12 characters of the key, and the rest is None or empty. ``faults``: see
    ``check_stage``.
    """

    name: str
    version: int | None
    key: str
    path: Path
    size_bytes: int
    finished: str | None
    seconds: float | None
    faults: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    is_unfinished: bool = False
    what: str = ""

    @property
    def label(self) -> str:
        """Name and short key, as in the folder's name."""
        return f"{self.name}-{self.key[:SHORT_KEY]}"


def list_stages(folder: Path) -> list[StageState]:
    """All stages in a folder, checked, and those left unfinished, sorted by their folders' names."""
    if not folder.is_dir():
        return []
    states = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if path.name.startswith(".") and not UNFINISHED.fullmatch(path.name):
            continue
        try:
            states.append(_state(path))
        except FileNotFoundError:  # a run finished or cleared it just now
            continue
    return states


def _state(path: Path) -> StageState:
    match = UNFINISHED.fullmatch(path.name) or FINISHED.fullmatch(path.name)
    name, key = (match["name"] or RESULTS, match["key"]) if match else (path.name, path.name)
    size_bytes = folder_bytes(path)
    if path.name.startswith("."):
        return StageState(name, None, key, path, size_bytes, None, None, is_unfinished=True)
    faults = tuple(check_stage(path))
    try:
        manifest = read_manifest(path)
    except RunFolderError:  # one of the faults
        return StageState(name, None, key, path, size_bytes, None, None, faults)
    return StageState(
        manifest["stage"],
        manifest["version"],
        manifest["key"],
        path,
        size_bytes,
        manifest["finished"],
        manifest["seconds"],
        faults,
        tuple(manifest["depends_on"]),
        what=str(manifest["results"].get("what", "")),
    )


def judge(stages: Sequence[StageState], versions: Mapping[str, int]) -> dict[str, str]:
    """Why each stage is or isn't valid, by key; ``versions`` are those of the current code, by stage name.

    The text's first word is valid, stale, damaged, unfinished or unknown. Stale: the current code asks for another key,
    so the stage is never found again. A stage whose inputs are damaged or gone stays valid, and the text says so: its
    key names the inputs by their content, and it was computed while they were whole. (A killed run's unfinished folder
    has only the short key, so it never hides the finished stage.)
    """
    whole = {stage.key[:SHORT_KEY]: stage for stage in stages if not stage.is_unfinished}
    reasons: dict[str, str] = {}

    def reason(stage: StageState) -> str:
        if stage.key not in reasons:
            reasons[stage.key] = _own_reason(stage, versions) or inherited_reason(stage)
        return reasons[stage.key]

    def inherited_reason(stage: StageState) -> str:
        remarks = ["valid"]
        for key in stage.depends_on:
            below = whole.get(key[:SHORT_KEY])
            if below is None:
                remarks.append(f"built on {key[:SHORT_KEY]}…, which is no longer there")
                continue
            state = reason(below).partition(" ")[0].rstrip(":,")
            if state in ("stale", "unknown"):
                return f"stale: built on {below.label}…, which is {state}"
            if state == "damaged":
                remarks.append(f"built on {below.label}…, which is damaged now")
        return ", ".join(remarks)

    for stage in stages:
        reason(stage)
    return reasons


def _own_reason(stage: StageState, versions: Mapping[str, int]) -> str | None:
    """Why the stage by itself is not valid; None where it is."""
    if stage.is_unfinished:
        return "unfinished: a run is making it, or was stopped while it did"
    if stage.faults:
        first, *others = stage.faults
        return f"damaged: {first}" + (f" (and {len(others)} more)" if others else "")
    if stage.name not in versions:
        return f"unknown stage: this version has no stage {stage.name}"
    if stage.version != versions[stage.name]:
        return f"stale: made by version {stage.version} of {stage.name}, the code is at version {versions[stage.name]}"
    return None
