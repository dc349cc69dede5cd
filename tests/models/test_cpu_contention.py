"""OpenMP's threads sleep instead of spinning while other processes want the cores, and only then."""

import os
import subprocess
import sys
import threading

import pytest

from tokenclean.models.cpu_contention import Contention, IdleTeams, idle_teams, waited_seconds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone counts how long threads wait")


class Waited:
    """Seconds of waiting as a test sets them."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def team_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "idle team"]


@pytest.fixture(autouse=True)
def no_teams_are_left():
    yield
    for thread in team_threads():
        thread.join(timeout=30)
    assert not team_threads()


def test_teams_are_added_under_load_and_removed_after_ten_calm_checks():
    waited, teams = Waited(), IdleTeams(1)
    contention = Contention(waited, teams)
    now = 0.0

    def check(seconds_waited: float) -> bool:
        nonlocal now
        now += 0.5
        waited.seconds += seconds_waited
        contention.check(now)
        return teams.are_there

    assert not check(100)  # nothing to compare with yet
    assert not check(0.04)  # 8 % of the time
    assert check(0.06)  # 12 %
    assert len(team_threads()) == 1
    assert all(check(0.0) for _ in range(9))
    assert check(0.06)  # the count of calm checks begins again
    assert all(check(0.0) for _ in range(9))
    assert not check(0.0)
    assert not check(-3.0)  # threads that waited have ended
    assert check(0.4)
    teams.remove()


def test_adding_and_removing_twice_changes_nothing():
    teams = IdleTeams(2)
    teams.add()
    teams.add()
    assert len(team_threads()) == 2
    teams.remove()
    teams.remove()
    assert not teams.are_there


@pytest.mark.parametrize("threads", [2, 3, 4, 16, 64, 128])
def test_the_least_number_of_teams_with_which_threads_exceed_cores(threads):
    def in_all(teams: int) -> int:
        return threads + teams * (threads - 1)

    for cores in range(1, 130):
        teams = idle_teams(threads, cores)
        assert in_all(teams) > cores
        assert teams == 1 or in_all(teams - 1) <= cores


SCRIPT = """
import os, subprocess, sys, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import torch
torch.set_num_threads(2)
from tokenclean.models.cpu_contention import watch_contention
watched = watch_contention()
if watched is None:
    sys.exit("nothing is watched")
spin = "while True: pass"
others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(int(sys.argv[1]))]
try:
    a = torch.randn(300, 300)
    until = time.monotonic() + 60
    while not watched.teams.are_there and time.monotonic() < until:
        a = torch.tanh(a @ a)
finally:
    for other in others:
        other.kill()
print(watched.teams.are_there)
"""


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: ())(0)) < 2, reason="needs two cores")
def test_a_process_beside_busy_ones_notices_them():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", SCRIPT, "4"], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "0"}, {"OMP_NUM_THREADS": "1"}])
def test_who_has_chosen_how_threads_wait_is_left_alone(chosen):
    script = "from tokenclean.models.cpu_contention import watch_contention; print(watch_contention())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))} | chosen
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stderr


def test_waiting_is_counted_in_seconds():
    before = waited_seconds()
    assert 0 <= before < 1e6
