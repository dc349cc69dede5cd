from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenclean.theory import cleaning_helps, error_bound


def test_error_bound_by_hand():
    """log(4/0.04) = log 100 = 4.605170186; 2 * 4.605170186 / 10000 = 9.210340372e-4; its root is 0.0303485426."""
    assert error_bound(0.25, 10_000, delta=0.04) == pytest.approx(0.25 + 0.0303485426, abs=1e-9)


def test_error_bound_at_the_default_delta():
    """log 80 = 4.382026635, so the second term is sqrt(8.764053269 / 100) = 0.2960414374."""
    assert error_bound(0.0, 100) == pytest.approx(0.2960414374, abs=1e-9)


def test_corollary_by_hand():
    """A quarter kept: sqrt(1/0.25) - 1 = 1, so the right side is the second term of Eq. 5."""
    check = cleaning_helps(eta_full=0.3, eta_cleaned=0.2, kept_share=0.25, tokens=10_000, delta=0.04)
    assert check.left == pytest.approx(0.1)
    assert check.right == pytest.approx(0.0303485426, abs=1e-9)
    assert check.holds


def test_few_tokens_make_cleaning_not_worth_its_price():
    """With 100 tokens the price is ten times that of 10000: 0.303 > 0.1."""
    check = cleaning_helps(eta_full=0.3, eta_cleaned=0.2, kept_share=0.25, tokens=100, delta=0.04)
    assert check.right == pytest.approx(0.303485426, abs=1e-8)
    assert not check.holds


def test_keeping_everything_changes_nothing_and_holds_with_equality():
    check = cleaning_helps(eta_full=0.3, eta_cleaned=0.3, kept_share=1.0, tokens=1000)
    assert (check.left, check.right, check.holds) == (0.0, 0.0, True)


def test_keeping_nothing_never_helps():
    check = cleaning_helps(eta_full=1.0, eta_cleaned=0.0, kept_share=0.0, tokens=10**9)
    assert check.right == math.inf
    assert not check.holds


@given(
    eta_full=st.floats(0, 1),
    eta_cleaned=st.floats(0, 1),
    kept_share=st.floats(0.001, 1),
    tokens=st.integers(10, 10**9),
    delta=st.floats(0.001, 0.5),
)
def test_corollary_compares_the_two_bounds(eta_full, eta_cleaned, kept_share, tokens, delta):
    """Eq. 6 is Eq. 5 for M tokens at η(D̃) against Eq. 5 for r̂M tokens at η̂."""
    full, cleaned = error_bound(eta_full, tokens, delta), error_bound(eta_cleaned, kept_share * tokens, delta)
    check = cleaning_helps(eta_full, eta_cleaned, kept_share, tokens, delta)
    assert check.left - check.right == pytest.approx(full - cleaned, abs=1e-9)
    assume(abs(full - cleaned) > 1e-9)
    assert check.holds == (cleaned < full)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_shares_lie_between_0_and_1(share):
    with pytest.raises(ValueError, match="noise_rate"):
        error_bound(share, 10)
    with pytest.raises(ValueError, match="eta_full"):
        cleaning_helps(share, 0.1, 0.5, 10)
    with pytest.raises(ValueError, match="eta_cleaned"):
        cleaning_helps(0.1, share, 0.5, 10)
    with pytest.raises(ValueError, match="kept_share"):
        cleaning_helps(0.1, 0.1, share, 10)


@pytest.mark.parametrize("tokens", [0, -1, math.nan, math.inf])
def test_tokens_are_positive(tokens):
    with pytest.raises(ValueError, match="tokens"):
        error_bound(0.1, tokens)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_delta_is_a_probability(delta):
    with pytest.raises(ValueError, match="delta"):
        error_bound(0.1, 10, delta)
