"""OpenMP's threads spin while they wait for each other, unless other processes want the same cores.

GNU's OpenMP, which torch uses on Linux, lets a thread that waits spin for some milliseconds before it sleeps. Alone
that is quickest, since waking a thread takes long. Where another process computes on the same cores, each thread then
waits for a partner whose core is taken by somebody else's waiting, and two equal runs side by side take more than
twenty times as long as one. The way of waiting is read once from the environment, with one exception: while a process
has more OpenMP threads than it may use cores, they sleep at once. So while this process has to wait for cores, idle
teams of threads are added to it, and removed when the cores are free again. The number of threads that compute stays
the same, and so does every result to the last bit.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_CHECK_SECONDS = 0.5
_CONTENDED_SHARE = 0.1
"""Waiting for cores, of the time passed: at most 0.03 on a machine without another load, 0.35 beside an equal run."""
_CALM_CHECKS = 10
_PARALLEL_ELEMENTS = 1 << 18
"""Elements that torch surely splits among threads."""
_TASKS = Path("/proc/self/task")


@dataclass
class IdleTeams:
    """Teams of OpenMP threads that do nothing. ``count``: so many that threads and cores of the process say enough.

    Each team belongs to a thread of its own, and ends with it.
    """

    count: int
    _end: threading.Event | None = None

    @property
    def are_there(self) -> bool:
        """Whether the teams exist now."""
        return self._end is not None

    def add(self) -> None:
        """Start the teams, where they are not there yet."""
        if self._end is None:
            self._end = threading.Event()
            for _ in range(self.count):
                threading.Thread(target=_keep_team, args=(self._end,), daemon=True, name="idle team").start()

    def remove(self) -> None:
        """End the teams, where they are there."""
        if self._end is not None:
            self._end.set()
            self._end = None


@dataclass
class Contention:
    """Adds idle teams while the process waits for cores, and removes them when it has not for ten checks.

    ``waited_seconds``: how long the process's threads have waited for a core up to now, summed over the threads.
    """

    waited_seconds: Callable[[], float]
    teams: IdleTeams
    _calm_checks: int = 0
    _last: tuple[float, float] | None = None

    def check(self, now_seconds: float) -> None:
        """Look how long threads waited since the last check."""
        waited, last = self.waited_seconds(), self._last
        self._last = (now_seconds, waited)
        if last is None or now_seconds <= last[0]:
            return
        if waited - last[1] > _CONTENDED_SHARE * (now_seconds - last[0]):
            self._calm_checks = 0
            self.teams.add()
        else:
            self._calm_checks += 1
            if self._calm_checks >= _CALM_CHECKS:
                self.teams.remove()

    def watch(self) -> None:
        """Check twice a second, for ever."""
        while True:
            self.check(time.monotonic())
            time.sleep(_CHECK_SECONDS)


@lru_cache(maxsize=1)
def watch_contention() -> Contention | None:
    """Watch this process from now on, in a thread; the first call counts.

    None where there is nothing to watch: one thread, another system than Linux, a kernel that does not count waiting,
    or a user who has chosen how threads wait (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``).
    """
    import torch

    threads, cores = torch.get_num_threads(), _usable_cores()
    if threads < 2 or sys.platform != "linux" or not Path("/proc/self/schedstat").is_file():
        return None
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        return None
    contention = Contention(waited_seconds, IdleTeams(idle_teams(threads, cores)))
    threading.Thread(target=contention.watch, daemon=True, name="contention").start()
    return contention


def idle_teams(threads: int, cores: int) -> int:
    """The least number of teams of ``threads`` with which the process has more threads than cores.

    A team adds all of its threads but its first, which was there before.
    """
    return max(0, cores - threads) // (threads - 1) + 1


def waited_seconds() -> float:
    """How long this process's present threads have been ready to run without a core, summed over the threads."""
    total = 0
    for path in _TASKS.glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])  # nanoseconds
        except (OSError, IndexError):  # the thread has just ended
            continue
    return total / 1e9


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _keep_team(end: threading.Event) -> None:
    import torch

    torch.zeros(_PARALLEL_ELEMENTS).add_(1)
    end.wait()
