"""What a run is going to compute, for its progress: from the same dry run as a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenclean.cleaning.open_run import OpenRun
from tokenclean.experiment.planning.dry_run import Recorded, RecordedPass, record
from tokenclean.experiment.run import Further

_TRAINING_UNITS = 2.5
"""Work of training on a token, with LoRA, over that of scoring it."""


@dataclass(frozen=True)
class Work:
    """``label``: as its progress is labelled; ``units``: tokens scored, those trained counting 2.5 times."""

    label: str
    units: float


def planned_work(opened: OpenRun, further: Further | None = None) -> list[Work]:
    """The passes and trainings of an open run, in its order; none, with a note, where a strategy of the user's own
    cannot run dry. ``further``: strategies beside the recipe's.
    """
    try:
        recorded = record(opened.context.data, opened.passes.device.partition(":")[0], further or {})
    except Exception as error:  # of anybody's code; if it is ours, the run itself fails with it
        opened.context.note(f"no overall progress, since a strategy fails in a dry run: {error}")
        return []
    return work_of(recorded, opened.context.recipe.training.epochs)


def work_of(recorded: Sequence[Recorded], epochs: int) -> list[Work]:
    """Labels and sizes of recorded passes and trainings."""
    works = []
    for item in recorded:
        tokens = float(item.lengths.sum())
        if isinstance(item, RecordedPass):
            works.append(Work(f"score {item.what} with {item.model}", tokens))
        else:
            works.append(Work(f"train {item.name}", tokens * epochs * _TRAINING_UNITS))
    return works
