"""What a run folder's stages are worth to the code of today: valid, stale, damaged, unfinished or unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SHORT_KEY = 12
"""Characters of a key that a folder's name holds."""


@dataclass(frozen=True)
class StageState:
    """A stage's folder as it lies on disk.

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
        """Name and short key, as the folder has them."""
        return f"{self.name}-{self.key[:SHORT_KEY]}"


def judge(stages: Sequence[StageState], versions: Mapping[str, int]) -> dict[str, str]:
    """Key -> why the stage is or isn't valid; ``versions`` are those of today's code, by stage name.

    The text's first word is one of valid, stale, damaged, unfinished and unknown. Stale: today's code asks for another
    key, so the stage is never found again. That what a stage was built on is damaged or gone makes it no less right:
    its key names its inputs by their content, and it was made while they were whole. It stays valid, and the text says
    so. (A killed run's unfinished folder has only the short key, so it never hides the finished stage.)
    """
    whole = {stage.key[:SHORT_KEY]: stage for stage in stages if not stage.is_unfinished}
    reasons: dict[str, str] = {}

    def reason(stage: StageState) -> str:
        if stage.key not in reasons:
            reasons[stage.key] = own_reason(stage, versions) or inherited_reason(stage)
        return reasons[stage.key]

    def inherited_reason(stage: StageState) -> str:
        remarks = []
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
        return ", ".join(["valid", *remarks])

    for stage in stages:
        reason(stage)
    return reasons


def own_reason(stage: StageState, versions: Mapping[str, int]) -> str | None:
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
