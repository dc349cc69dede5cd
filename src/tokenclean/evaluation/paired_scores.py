"""The scores of several strategies on the same items, one by one: the data of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class ItemScores:
    """``scores[strategy][seed][task]``: one number in [0, 1] per item, bool, integer or float, shape (items,).

    Every strategy has the same seeds, every seed the same tasks, and every task the same items in the same order, so
    that strategies are paired by item and by seed (one seed draws the split, the warm-up and the order of the data for
    all of them). A strategy that trains nothing has no seeds: repeat its scores under each.

    Items of a task must be independent of each other. A question asked in three languages is one item, whose score is
    the mean of three.

    ``groups[task]``: one id per item, for tasks that consist of fixed parts, as MMLU does of its 57 subjects; such
    items are resampled within their part. The task's score is the mean over its items, regardless of groups.

    Raises ValueError, naming strategy, seed and task, for missing or surplus seeds and tasks, shapes that differ, fewer
    than two items, and numbers outside [0, 1].
    """

    scores: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]]
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scores or not self.seeds or not self.tasks:
            raise ValueError("scores need at least one strategy, one seed and one task")
        for strategy, runs in self.scores.items():
            _check_names(f"strategy {strategy!r}", "seeds", runs, self.seeds)
            for seed, tasks in runs.items():
                where = f"strategy {strategy!r}, seed {seed}"
                _check_names(where, "tasks", tasks, self.tasks)
                for task in self.tasks:
                    _check_items(f"{where}, task {task!r}", tasks[task], self.items(task))
        for task, ids in self.groups.items():
            if task not in self.tasks:
                raise ValueError(f"groups are given for task {task!r}, which has no scores; tasks: {_list(self.tasks)}")
            if np.shape(ids) != (self.items(task),):
                raise ValueError(f"task {task!r} has {self.items(task)} items, but group ids of shape {np.shape(ids)}")

    @property
    def strategies(self) -> tuple[str, ...]:
        """Their names, in the order of ``scores``."""
        return tuple(self.scores)

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order of the first strategy."""
        return tuple(next(iter(self.scores.values())))

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of the first strategy's first seed."""
        return tuple(self.scores[self.strategies[0]][self.seeds[0]])

    def items(self, task: str) -> int:
        """Number of the task's items."""
        first = np.asarray(self.scores[self.strategies[0]][self.seeds[0]][task])
        return first.shape[0] if first.ndim else 0

    def of_task(self, task: str) -> np.ndarray:
        """All scores of a task, float64, shape (seeds, items, strategies)."""
        columns = [[self.scores[strategy][seed][task] for strategy in self.strategies] for seed in self.seeds]
        return np.asarray(columns, dtype=np.float64).transpose(0, 2, 1)

    def strata(self, task: str) -> list[np.ndarray]:
        """Item numbers of each part of the task that is resampled separately, at least two items in each.

        Groups of a single item, within which nothing varies, are merged; if that is still one item, it joins the
        largest group.
        """
        ids = self.groups.get(task)
        if ids is None:
            return [np.arange(self.items(task))]
        labels = np.unique(np.asarray(ids), return_inverse=True)[1].reshape(-1)
        groups = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
        strata = [group for group in groups if len(group) > 1]
        single = [group for group in groups if len(group) == 1]
        if len(single) > 1:
            strata.append(np.concatenate(single))
        elif single:
            largest = int(np.argmax([len(group) for group in strata]))
            strata[largest] = np.append(strata[largest], single[0])
        return strata


def _check_names(where: str, what: str, found: Iterable[object], expected: Sequence[object]) -> None:
    if set(found) != set(expected):
        raise ValueError(f"{where}: expected the {what} {_list(expected)}, as in the first run, found {_list(found)}")


def _check_items(where: str, values: np.ndarray, expected: int) -> None:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"{where}: expected one number per item, got shape {array.shape}, dtype {array.dtype}")
    if len(array) != expected:
        raise ValueError(f"{where} has {len(array)} items, the first run has {expected}; both need the same items")
    if expected < 2:
        raise ValueError(f"{where} has {expected} items; an error needs at least 2")
    outside = ~((array >= 0) & (array <= 1))  # True for NaN
    if outside.any():
        item = int(np.flatnonzero(outside)[0])
        raise ValueError(f"{where}, item {item}: expected a score in [0, 1], got {array[item]}")


def _list(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
