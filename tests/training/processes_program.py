"""What a process of test_train_of_many runs: trainings of the small Llama, one by one; what came out of each as JSON.

Started as ``python processes_program.py BASE PLACE JOBS``, JOBS being JSON: name -> ``settings`` (of TrainingSettings),
``mixture`` (whether there is one), ``kill`` ([rank, step]: where a rank kills itself), ``part`` ([start, end, total] of
a schedule over several trainings) and ``before`` (the job that it goes on from).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_llama import VOCABULARY, random_rows, weights_from

from tokenclean.models.loading.load import ModelSource
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.recipe import training_from
from tokenclean.selection import surprisal_table
from tokenclean.training.fine_tune import train
from tokenclean.training.online_mixture import OnlineMixture
from tokenclean.training.step_plan import SchedulePart

SETTINGS = {"batch_size": 4, "epochs": 2, "learning_rate": 1e-2, "precision": "exact", "checkpoint_minutes": 0}
LORA = {"rank": 4, "dropout": 0.0}


def train_job(
    base: Path,
    folder: Path,
    job: dict[str, Any],
    processes: Processes = SINGLE_PROCESS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Six steps in two epochs, their states kept in ``FOLDER.states``."""
    input_ids = random_rows([12, 7, 20, 5, 9, 16, 3, 11, 8, 14, 6])
    weights = weights_from(input_ids, share=0.8)
    mixture = OnlineMixture(surprisal_table(input_ids, weights.map_values(lambda w: w > 0), VOCABULARY))
    before = job.get("before")
    result = train(
        ModelSource(str(base), before and str(folder.with_name(before))),
        input_ids,
        weights,
        training_from(SETTINGS | {"lora": LORA} | job.get("settings", {})),
        folder if processes.is_first else folder.with_name(f"of-rank-{processes.rank}"),
        seed=3,
        mixture=mixture if job.get("mixture") else None,
        checkpoints=folder.with_name(f"{folder.name}.states"),
        progress=progress,
        processes=processes,
        part=SchedulePart(*job["part"]) if "part" in job else None,
    )
    return json.loads(json.dumps({**result.as_manifest(), "row_rates": sorted(result.row_rates.items())}))


def _killing(processes: Processes, kill: list[int] | None) -> Callable[[int, int], None]:
    def progress(step: int, steps: int) -> None:
        if kill == [processes.rank, step]:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def main(base: Path, place: Path, jobs: dict[str, Any]) -> None:
    processes = Processes.from_environment()
    with processes.together():
        for name, job in jobs.items():
            reported = train_job(base, place / name, job, processes, _killing(processes, job.get("kill")))
            (place / f"{name}.{processes.rank}.json").write_text(json.dumps(reported))
            processes.barrier()  # the next may go on from what the first rank has written


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
