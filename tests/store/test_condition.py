"""Why a stage is or isn't valid."""

from __future__ import annotations

from pathlib import Path

from tokenclean.store import StageState, judge

VERSIONS = {"training": 2, "losses": 1}


def state(name: str, digit: str, version: int | None = None, **fields) -> StageState:
    key = digit * 64
    version = VERSIONS.get(name) if version is None else version
    return StageState(name, key, Path(f"{name}-{key[:12]}"), 10, version, "2025-01-01T00:00:00Z", **fields)


def on(*digits: str) -> tuple[str, ...]:
    return tuple(digit * 64 for digit in digits)


def reasons(*stages: StageState) -> list[str]:
    judged = judge(stages, VERSIONS)
    return [judged[stage.key] for stage in stages]


def test_whole_stages_of_todays_versions_are_valid():
    assert reasons(state("training", "a"), state("losses", "b", depends_on=on("a"))) == ["valid", "valid"]


def test_what_is_built_on_an_old_version_is_stale_all_the_way_up():
    old = state("training", "a", version=1)
    assert reasons(state("losses", "c", depends_on=on("b")), state("training", "b", depends_on=on("a")), old) == [
        "stale: built on training-bbbbbbbbbbbb…, which is stale",
        "stale: built on training-aaaaaaaaaaaa…, which is stale",
        "stale: made by version 1 of training, the code is at version 2",
    ]


def test_results_outlive_what_they_were_built_on():
    damaged = state("training", "a", faults=("model.safetensors: missing", "config.json: missing"))
    assert reasons(damaged, state("losses", "b", depends_on=on("a", "f"))) == [
        "damaged: model.safetensors: missing (and 1 more)",
        "valid, built on training-aaaaaaaaaaaa…, which is damaged now, "
        "complete without the 1 stage it was built on, pruned or deleted",
    ]
    assert reasons(state("losses", "b", depends_on=on("e", "f"))) == [
        "valid, complete without the 2 stages it was built on, pruned or deleted"
    ]


def test_a_stage_that_the_code_does_not_know():
    assert reasons(state("ratings", "a", version=1), state("losses", "b", depends_on=on("a"))) == [
        "unknown stage: this version has no stage ratings",
        "stale: built on ratings-aaaaaaaaaaaa…, which is unknown",
    ]


def test_an_unfinished_folder_hides_no_finished_stage():
    half = StageState("losses", "b" * 12, Path(".losses-bbbbbbbbbbbb.7"), 0, is_unfinished=True)
    top = state("training", "c", depends_on=on("b"))
    judged = judge([state("losses", "b", version=0), half, top], VERSIONS)
    assert judged["c" * 64] == "stale: built on losses-bbbbbbbbbbbb…, which is stale"
    assert judged["b" * 12].startswith("unfinished: ")
