from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenclean.ragged import Ragged
from tokenclean.selection import label_noise
from tokenclean.theory import (
    LOG_TWO_MODELS,
    CorollaryCheck,
    data_quality,
    error_bound,
    learn_lookup_tables,
    possible_noise,
)

SHARES = st.floats(0, 1)
KEPT = st.floats(0.001, 1)
TOKENS = st.integers(10, 10**9)
DELTAS = st.floats(0.001, 0.5)
LOG_SIZES = st.floats(0, 1e9)


class TestErrorBound:
    def test_by_hand(self):
        """log(4/0.04) = log 100 = 4.605170186; 2 * 4.605170186 / 10000 = 9.210340372e-4; its root is 0.0303485426."""
        assert error_bound(0.25, 10_000, delta=0.04) == pytest.approx(0.25 + 0.0303485426, abs=1e-9)

    def test_at_the_default_delta(self):
        """log 80 = 4.382026635, so the second term is sqrt(8.764053269 / 100) = 0.2960414374."""
        assert error_bound(0.0, 100) == pytest.approx(0.2960414374, abs=1e-9)

    def test_of_a_class_by_hand(self):
        """1024 models, δ = 2/1024: log(2·1024/δ) = 20 log 2 = 13.86294361; sqrt(27.72588722 / 100) = 0.5265537695."""
        found = error_bound(0.1, 100, 2 / 1024, 10 * math.log(2))
        assert found == pytest.approx(0.1 + 0.5265537695, abs=1e-9)

    @given(SHARES, TOKENS, DELTAS)
    def test_the_paper_counts_two_models(self, noise, tokens, delta):
        by_hand = noise + math.sqrt(2 * math.log(4 / delta) / tokens)
        assert error_bound(noise, tokens, delta, LOG_TWO_MODELS) == pytest.approx(by_hand, rel=1e-12)
        assert error_bound(noise, tokens, delta) == error_bound(noise, tokens, delta, math.log(2))
        assert error_bound(noise, tokens, delta, 0) < error_bound(noise, tokens, delta)

    @given(SHARES, TOKENS, LOG_SIZES, DELTAS)
    def test_a_power_of_a_class_asks_for_as_many_times_the_tokens(self, noise, tokens, size, delta):
        """|F|³ models at δ³/4 need three times the tokens: 3 log|F| + log(2·4/δ³) = 3 (log|F| + log(2/δ))."""
        other = error_bound(noise, 3 * tokens, delta**3 / 4, 3 * size)
        assert other == pytest.approx(error_bound(noise, tokens, delta, size), rel=1e-9)


class TestCondition:
    def test_by_hand(self):
        """A quarter kept: sqrt(1/0.25) - 1 = 1, so the right side is the second term of Eq. 5."""
        check = CorollaryCheck(eta_full=0.3, eta_cleaned=0.2, kept_share=0.25, tokens=10_000, delta=0.04)
        assert check.left == pytest.approx(0.1)
        assert check.right == pytest.approx(0.0303485426, abs=1e-9)
        assert check.holds is True
        assert check.margin == pytest.approx(0.1 - 0.0303485426, abs=1e-9)
        assert check.least_tokens == pytest.approx(2 * math.log(100) / 0.01)  # 2 log(4/δ) · (1 / 0.1)²
        assert check.break_even_kept_share == pytest.approx((0.0303485426 / 0.1303485426) ** 2, abs=1e-9)

    def test_few_tokens_make_cleaning_not_worth_its_price(self):
        """With 100 tokens the price is ten times that of 10000: 0.303 > 0.1."""
        check = CorollaryCheck(eta_full=0.3, eta_cleaned=0.2, kept_share=0.25, tokens=100, delta=0.04)
        assert check.right == pytest.approx(0.303485426, abs=1e-8)
        assert check.holds is False

    def test_keeping_everything_changes_nothing_and_holds_with_equality(self):
        check = CorollaryCheck(eta_full=0.3, eta_cleaned=0.3, kept_share=1.0, tokens=1000)
        assert (check.left, check.right, check.holds, check.margin) == (0.0, 0.0, True, 0.0)
        assert (check.least_tokens, check.break_even_kept_share) == (0.0, 1.0)

    def test_keeping_nothing_never_helps(self):
        check = CorollaryCheck(eta_full=1.0, eta_cleaned=0.0, kept_share=0.0, tokens=10**9)
        assert (check.right, check.margin, check.least_tokens) == (math.inf, -math.inf, math.inf)
        assert not check.holds

    @pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
    def test_noisier_labels_help_with_no_tokens_and_no_share(self, kept):
        check = CorollaryCheck(eta_full=0.1, eta_cleaned=0.2, kept_share=kept, tokens=10**12)
        assert not check.holds
        assert (check.least_tokens, check.break_even_kept_share) == (math.inf, math.inf)

    def test_as_noisy_and_fewer_labels_help_with_no_tokens(self):
        assert CorollaryCheck(0.2, 0.2, 0.9, 1000).least_tokens == math.inf
        assert CorollaryCheck(0.2, 0.2, 0.9, 1000).break_even_kept_share == 1.0

    def test_noise_removed_at_no_price_helps_with_any_tokens(self):
        assert CorollaryCheck(0.2, 0.1, 1.0, 1000).least_tokens == 0.0

    @given(SHARES, SHARES, KEPT, TOKENS, DELTAS)
    def test_it_compares_the_two_bounds(self, eta_full, eta_cleaned, kept_share, tokens, delta):
        """Eq. 6 is Eq. 5 for M tokens at η(D̃) against Eq. 5 for r̂M tokens at η̂."""
        full, cleaned = error_bound(eta_full, tokens, delta), error_bound(eta_cleaned, kept_share * tokens, delta)
        check = CorollaryCheck(eta_full, eta_cleaned, kept_share, tokens, delta)
        assert check.left - check.right == pytest.approx(full - cleaned, abs=1e-9)
        assert check.margin == check.left - check.right
        assert check.holds == (check.margin >= 0)
        assume(abs(full - cleaned) > 1e-9)
        assert check.holds == (cleaned < full)

    @given(SHARES, SHARES, KEPT, TOKENS, DELTAS, st.floats(0, 1e4))
    def test_the_margin_compares_the_bounds_of_any_class(self, eta_full, eta_cleaned, kept, tokens, delta, size):
        full = error_bound(eta_full, tokens, delta, size)
        cleaned = error_bound(eta_cleaned, kept * tokens, delta, size)
        check = CorollaryCheck(eta_full, eta_cleaned, kept, tokens, delta, size)
        assert check.margin == pytest.approx(full - cleaned, rel=1e-9, abs=1e-9)

    @given(SHARES, SHARES, st.floats(0.001, 0.999), DELTAS, LOG_SIZES)
    def test_the_margin_is_0_at_the_least_tokens(self, eta_full, eta_cleaned, kept, delta, size):
        assume(eta_full - eta_cleaned > 1e-3)
        check = CorollaryCheck(eta_full, eta_cleaned, kept, 1, delta, size)
        least = check.least_tokens
        assert replace(check, tokens=least).margin == pytest.approx(0, abs=1e-12)
        assert replace(check, tokens=least * 1.01).margin > 0
        assert replace(check, tokens=least / 1.01).margin < 0

    @given(SHARES, SHARES, TOKENS, DELTAS, st.floats(0, 1e4))
    def test_the_margin_is_0_at_the_break_even_kept_share(self, eta_full, eta_cleaned, tokens, delta, size):
        assume(eta_full >= eta_cleaned)
        check = CorollaryCheck(eta_full, eta_cleaned, 1.0, tokens, delta, size)
        share = check.break_even_kept_share
        assert 0 < share <= 1
        assert replace(check, kept_share=share).margin == pytest.approx(0, abs=1e-9)

    @given(SHARES, SHARES, KEPT, TOKENS, DELTAS)
    def test_both_thresholds_say_whether_it_holds(self, eta_full, eta_cleaned, kept, tokens, delta):
        check = CorollaryCheck(eta_full, eta_cleaned, kept, tokens, delta)
        assume(abs(check.margin) > 1e-9)
        assert check.holds == (tokens >= check.least_tokens) == (kept >= check.break_even_kept_share)

    def test_the_size_of_the_class_multiplies_the_least_tokens(self):
        few = CorollaryCheck(0.3, 0.1, 0.7, 1000, 0.05)
        many = replace(few, log_class_size=1e6)
        assert many.least_tokens / few.least_tokens == pytest.approx((1e6 + math.log(40)) / math.log(80))


class TestLabelRates:
    @given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
    def test_measured_labels_have_possible_rates_and_their_total_variation(self, tokens):
        """Against a sum over the tokens, each uniformly drawn: ½ Σ |P(token | Y = 1) - P(token | Ŷ = 1)|."""
        is_noise, is_kept = (np.array(column) for column in zip(*tokens, strict=True))
        response = np.ones(len(tokens), dtype=bool)
        noise = label_noise(*(Ragged.from_rows([v.tolist()], np.bool_) for v in (is_kept, response, is_noise)))
        lowest, highest = possible_noise(noise.eta_full, noise.kept_share)
        assert lowest - 1e-12 <= noise.eta_cleaned <= highest + 1e-12
        found = data_quality(noise.eta_full, noise.eta_cleaned, noise.kept_share)
        if not is_kept.any() or is_noise.all():
            assert math.isnan(found)
            return
        valid = ~is_noise / (~is_noise).sum()
        assert found == pytest.approx(0.5 * np.abs(valid - is_kept / is_kept.sum()).sum(), abs=1e-12)
        larger = max(1 - noise.eta_full, noise.kept_share)
        assert noise.eta_cleaned / (2 * larger) - 1e-12 <= found <= noise.eta_cleaned / larger + 1e-12

    @given(st.floats(0, 0.99))
    def test_full_tokens_and_perfect_labels(self, noise):
        assert data_quality(noise, noise, 1.0) == pytest.approx(noise, abs=1e-12)
        assert data_quality(noise, 0.0, 1 - noise) == 0

    def test_a_model_can_err_more_than_the_noise_rate_says(self):
        """Half of the tokens valid, half of those kept: no error on the kept ones, all other valid ones wrong."""
        assert data_quality(0.5, 0.25, 0.25) == 0.5 > 0.25

    def test_impossible_rates(self):
        """70 % valid and 25 % kept: at least 45 % of the labels are wrong, and at least 5 % right."""
        assert possible_noise(0.3, 0.25) == pytest.approx((0.45, 0.95))
        assert math.isnan(data_quality(0.3, 0.2, 0.25))
        assert math.isnan(data_quality(0.3, 0.96, 0.25))

    @given(SHARES, SHARES, SHARES, TOKENS)
    def test_little_kept_never_meets_the_condition(self, eta_full, kept, place, tokens):
        assume(kept < 1 - 2 * eta_full - 1e-9)
        lowest, highest = possible_noise(eta_full, kept)
        assert not CorollaryCheck(eta_full, lowest + place * (highest - lowest), kept, tokens).holds


class TestLookupTables:
    def test_unseen_contexts_break_the_bound_but_not_that_of_the_class(self):
        """A hundred times more contexts than tokens: nearly all are new, and the error is 0.99, above Eq. 5's 0.09."""
        found = learn_lookup_tables(contexts=100_000, vocabulary=1000, tokens=1000, delta=0.05)
        assert found.bound == pytest.approx(error_bound(0.0, 1000))
        assert found.bound < 0.1 < 0.98 < found.errors.min()
        assert found.share_above_bound == 1.0
        assert found.share_above_bound_of_class == 0.0

    def test_a_class_bound_that_says_something(self):
        """Four tokens a context: the class bound lies below 1 and holds, while the error is three times Eq. 5."""
        found = learn_lookup_tables(contexts=250_000, vocabulary=2, tokens=1_000_000, draws=20)
        assert found.bound_of_class == pytest.approx(math.sqrt(2 * (250_000 * math.log(2) + math.log(40)) / 1e6))
        assert found.bound_of_class < 0.6
        assert (found.share_above_bound, found.share_above_bound_of_class) == (1.0, 0.0)
        assert found.errors.min() > 2 * found.bound

    @pytest.mark.parametrize(("contexts", "vocabulary", "tokens"), [(50, 2, 20), (200, 5, 700), (2, 3, 4), (1, 2, 1)])
    def test_the_mean_error_is_the_expected_one(self, contexts, vocabulary, tokens):
        found = learn_lookup_tables(contexts, vocabulary, tokens, draws=4000, seed=3)
        standard_error = found.errors.std() / math.sqrt(len(found.errors))
        assert found.errors.mean() == pytest.approx(found.expected_error, abs=4 * standard_error + 1e-12)
        assert found.share_above_bound_of_class <= 0.05

    def test_two_tables_have_the_bound_of_two_models(self):
        found = learn_lookup_tables(contexts=1, vocabulary=2, tokens=100, draws=1)
        assert found.bound_of_class == pytest.approx(found.bound)
        assert found.errors.tolist() == [0.0]

    def test_a_seed_gives_its_errors(self):
        first, again, other = (learn_lookup_tables(100, 4, 50, draws=5, seed=seed).errors for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    @pytest.mark.parametrize("name", ["contexts", "vocabulary", "tokens", "draws"])
    @pytest.mark.parametrize("number", [0, 2.5])
    def test_counts_are_whole(self, name, number):
        with pytest.raises(ValueError, match=f"{name} must be a whole number"):
            learn_lookup_tables(**{"contexts": 10, "vocabulary": 4, "tokens": 5, name: number})


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_shares_lie_between_0_and_1(share):
    with pytest.raises(ValueError, match="noise_rate"):
        error_bound(share, 10)
    with pytest.raises(ValueError, match="eta_full"):
        CorollaryCheck(share, 0.1, 0.5, 10)
    with pytest.raises(ValueError, match="eta_cleaned"):
        CorollaryCheck(0.1, share, 0.5, 10)
    with pytest.raises(ValueError, match="kept_share"):
        CorollaryCheck(0.1, 0.1, share, 10)
    with pytest.raises(ValueError, match="kept_share"):
        data_quality(0.1, 0.1, share)


@pytest.mark.parametrize("tokens", [0, -1, math.nan, math.inf])
def test_tokens_are_positive(tokens):
    with pytest.raises(ValueError, match="tokens"):
        error_bound(0.1, tokens)
    with pytest.raises(ValueError, match="tokens"):
        CorollaryCheck(0.1, 0.1, 0.5, tokens)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_delta_is_a_probability(delta):
    with pytest.raises(ValueError, match="delta"):
        error_bound(0.1, 10, delta)
    with pytest.raises(ValueError, match="delta"):
        CorollaryCheck(0.1, 0.1, 0.5, 10, delta)


@pytest.mark.parametrize("size", [-0.1, math.inf, math.nan])
def test_a_class_has_a_model_and_a_size(size):
    with pytest.raises(ValueError, match="log_class_size"):
        error_bound(0.1, 10, log_class_size=size)
