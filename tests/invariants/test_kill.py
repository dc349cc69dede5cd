"""A run that is killed again and again ends with the same bits as one that nobody disturbs."""

from __future__ import annotations

import json
import logging
import random
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tokenclean.token_table import read_table

pytestmark = pytest.mark.slow

ROWS, RANDOM_KILLS, ATTEMPTS = 150, 6, 4
LONGEST_RUN_SECONDS = 120

logger = logging.getLogger(__name__)


def stage_name(folder: Path) -> str:
    """``losses-5e3c…``, or ``results``, whose hash depends on where the run folder lies."""
    return "results" if folder.parent.name == "results" else folder.name.removeprefix(".").partition(".")[0]


def in_progress(run_folder: Path) -> list[str]:
    """Stages being written: those of the temporary folders."""
    return sorted(stage_name(f) for place in ("stages", "results") for f in (run_folder / place).glob(".*.*"))


def stages_of(run_folder: Path) -> dict[str, float]:
    """Each finished stage and the seconds it took, in the order in which they were made."""
    manifests = [path for place in ("stages", "results") for path in (run_folder / place).glob("[!.]*/manifest.json")]
    manifests.sort(key=lambda path: path.stat().st_mtime_ns)
    return {stage_name(path.parent): json.loads(path.read_text())["seconds"] for path in manifests}


def outcome_of(run_folder: Path) -> dict[str, object]:
    """Everything a run is for, to the bit: kept tokens, scores, models, held-out losses."""
    (results,) = (run_folder / "results").iterdir()
    found: dict[str, object] = {"measured": json.loads((results / "result.json").read_text())["measured"]}
    for path in sorted(results.rglob("kept.parquet")):
        table = read_table(path)
        for name, column in table.columns.items():
            found[f"{path.parent.name}/{name}"] = column.values.tobytes()
    for path in sorted(results.rglob("*.safetensors")):
        tensors = {name: tensor.tobytes() for name, tensor in load_file(path).items()}
        found[str(path.relative_to(results))] = tensors
    return found


@pytest.fixture(scope="module")
def undisturbed(start_command, demo_rows, small_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = small_recipe(demo_rows(folder / "pool.jsonl", ROWS), folder)
    start_command(["--version"], folder / "log.txt").join()  # the server has loaded its modules by then
    started = time.monotonic()
    process = start_command(["run", str(recipe)], folder / "log.txt")
    process.join(LONGEST_RUN_SECONDS)
    assert process.exitcode == 0, (folder / "log.txt").read_text()
    return folder, time.monotonic() - started


class KilledRun:
    """One run that is started, killed and started again, with a record of what it was doing each time."""

    def __init__(self, start_command, recipe: Path, folder: Path, chance: random.Random) -> None:
        self.start_command, self.recipe, self.chance = start_command, recipe, chance
        self.folder, self.log = folder / "runs" / "small", folder / "log.txt"
        self.kills: list[list[str]] = []

    def start(self):
        return self.start_command(["run", str(self.recipe)], self.log)

    def kill_after(self, seconds: float) -> None:
        """Start, and kill after so many seconds."""
        self._kill(self.start(), seconds, f"{seconds:.2f} s after the start")

    def kill_within(self, stage: str, stage_seconds: float) -> bool:
        """Start, and kill at a random moment of the stage; False where the stage was over by then."""
        process = self.start()
        deadline = time.monotonic() + LONGEST_RUN_SECONDS
        while stage not in in_progress(self.folder):
            if stage in stages_of(self.folder):
                process.kill()
                process.join()
                return False
            assert process.is_alive(), self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        seconds = self.chance.uniform(0, 0.6) * stage_seconds
        self._kill(process, seconds, f"{seconds:.3f} s into {stage}")
        return stage in self.kills[-1]

    def finish(self) -> dict[str, object]:
        """Start once more, wait for the end, and give the outcome."""
        process = self.start()
        process.join(LONGEST_RUN_SECONDS)
        assert process.exitcode == 0, self.log.read_text()
        return outcome_of(self.folder)

    def _kill(self, process, seconds: float, moment: str) -> None:
        process.join(seconds)
        process.kill()
        process.join()
        self.kills.append(in_progress(self.folder))
        logger.info("killed %s; in progress: %s", moment, ", ".join(self.kills[-1]) or "no stage")


def test_a_run_killed_at_random_moments_and_within_each_stage_gives_the_same_bits(
    undisturbed, start_command, small_recipe, tmp_path
):
    reference, whole_seconds = undisturbed
    expected = outcome_of(reference / "runs" / "small")
    stages = stages_of(reference / "runs" / "small")
    chance = random.Random(20)

    def fresh_run(name: str) -> KilledRun:
        (tmp_path / name).mkdir()
        return KilledRun(
            start_command, small_recipe(reference / "pool.jsonl", tmp_path / name), tmp_path / name, chance
        )

    spread = fresh_run("spread")
    for _ in range(RANDOM_KILLS):
        spread.kill_after(chance.uniform(0, whole_seconds))
    runs, missed = [spread], list(stages)
    for attempt in range(ATTEMPTS):  # a stage that ended before the kill is met again in a fresh run
        runs.append(fresh_run(f"within-{attempt}"))
        missed = [stage for stage in missed if not runs[-1].kill_within(stage, stages[stage])]
        if not missed:
            break
    assert missed == []
    kills = [names for run in runs for names in run.kills]
    assert len(kills) >= 20
    for run in runs:
        found = run.finish()
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []


def test_the_undisturbed_run_has_scores_that_differ_and_every_kind_of_stage(undisturbed):
    run_folder = undisturbed[0] / "runs" / "small"
    assert {name.partition("-")[0] for name in stages_of(run_folder)} == {"losses", "training", "results"}
    (table,) = (run_folder / "results").glob("*/self_evolving/kept.parquet")
    scores = read_table(table)["score"].values
    assert np.nanstd(scores) > 1e-3
