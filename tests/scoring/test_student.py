"""Student's t against printed tables and its closed forms."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.scoring.student import t_quantile, t_tail

# Abramowitz and Stegun, Table 26.10, more digits where they are known in closed form.
TABLE = {
    1: (3.077684, 6.313752, 12.706205, 63.656741),
    2: (1.885618, 2.919986, 4.302653, 9.924843),
    3: (1.637744, 2.353363, 3.182446, 5.840909),
    4: (1.533206, 2.131847, 2.776445, 4.604095),
    5: (1.475884, 2.015048, 2.570582, 4.032143),
    10: (1.372184, 1.812461, 2.228139, 3.169273),
    30: (1.310415, 1.697261, 2.042272, 2.749996),
    120: (1.288646, 1.657651, 1.979930, 2.617421),
    math.inf: (1.281552, 1.644854, 1.959964, 2.575829),
}


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_agree_with_the_table(degrees):
    found = [t_quantile(probability, degrees) for probability in (0.9, 0.95, 0.975, 0.995)]
    assert found == pytest.approx(TABLE[degrees], abs=6e-7)


@given(st.floats(-1e6, 1e6))
def test_one_and_two_degrees_in_closed_form(t):
    assert t_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, abs=1e-14)
    assert t_tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), abs=1e-14)


@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.5, 1e7))
def test_tail_undoes_quantile(probability, degrees):
    assert t_tail(t_quantile(probability, degrees), degrees) == pytest.approx(1 - probability, rel=1e-7)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-t_quantile(probability, degrees), rel=1e-6, abs=1e-12)


def test_many_degrees_join_smoothly():
    below, above = (t_quantile(0.975, degrees) for degrees in (99_999, 100_000))
    assert below == pytest.approx(above, abs=1e-9)


@pytest.mark.parametrize(("probability", "degrees"), [(0, 3), (1, 3), (0.5, 0), (0.5, -1), (0.5, math.nan)])
def test_what_is_no_quantile(probability, degrees):
    with pytest.raises(ValueError, match="between 0 and 1" if degrees == 3 else "degrees of freedom"):
        t_quantile(probability, degrees)
