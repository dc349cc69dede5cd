"""When a reference counts as weak (§4.2.1, "assume model quality")."""

from __future__ import annotations

import pytest

from tokenclean.cleaning.model import Model
from tokenclean.cleaning.reference_check import ReferenceCheck
from tokenclean.models.loading.load import ModelSource
from tokenclean.scoring import PairedDifference

MODEL = Model("warm-up", ModelSource("base", "adapter"), "key")


def check(low: float, high: float, deviation: float = 0.5, error: float = 0.01) -> ReferenceCheck:
    middle = (low + high) / 2
    return ReferenceCheck(MODEL, PairedDifference(2 + middle, 2.0, middle, low, high, 50, 5000), deviation, error)


def test_a_good_reference_has_no_fault():
    assert check(-0.2, -0.1).faults == []


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.2, "worse than the base"), (-0.2, 0.01, "not shown to be better"), (-0.1, 0.0, "not shown to be better")],
)
def test_it_must_beat_the_base_beyond_chance(low: float, high: float, words: str):
    (fault,) = check(low, high).faults
    assert words in fault


@pytest.mark.parametrize(("deviation", "is_weak"), [(0.029, True), (0.031, False)])
def test_scores_must_spread_three_times_as_wide_as_their_error(deviation: float, is_weak: bool):
    assert bool(check(-0.2, -0.1, deviation, 0.01).faults) is is_weak


def test_both_faults_are_told():
    assert len(check(0.1, 0.2, 0.001, 0.01).faults) == 2
