"""The rule by which ``auto`` chooses, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from tokenclean.cleaning.automatic import decide
from tokenclean.cleaning.choice import FULL_TOKENS, Choice, Trial, best_trial, compare_trials
from tokenclean.ragged import Ragged

FULL = [[2.0, 3.0], [1.0], [4.0, 2.0, 3.0], [2.0]]
MADE = Choice(FULL_TOKENS, "", trial_rows=30, training_rows=90, choosing_rows=4, chosen_by="held-out")


def losses(*rows: list[float]) -> Ragged:
    return Ragged.from_rows([np.array([np.nan, *row], dtype=np.float32) for row in rows], np.float32)


def lowered(*by: float) -> Ragged:
    return losses(*([loss - gain for loss in row] for row, gain in zip(FULL, by, strict=True)))


LABELS = losses(*FULL).map_values(np.isfinite)


def compared(**trials: Ragged) -> tuple[list[Trial], float]:
    return compare_trials({FULL_TOKENS: losses(*FULL), **trials}, LABELS)


@pytest.mark.parametrize(("candidates", "level"), [(1, 0.95), (2, 0.975), (4, 0.9875)])
def test_intervals_share_the_chance_of_an_error_among_the_candidates(candidates, level):
    """Gains of .1, .2, .1, .3 a token in rows of 2, 1, 3, 1 tokens: D = −1.0/7, by hand."""
    gains = np.array([0.1, 0.2, 0.1, 0.3])
    counts = np.array([2, 1, 3, 1])
    trials, found = compared(**{f"c{n}": lowered(*gains) for n in range(candidates)})
    assert found == pytest.approx(level)
    difference = -1.0 / 7
    residuals = -gains * counts - difference * counts
    half = student_t.ppf(1 - 0.025 / candidates, 3) * math.sqrt(4 / 3 * np.square(residuals).sum()) / 7
    assert len(trials) == candidates
    for trial in trials:
        assert trial.difference == pytest.approx(difference, abs=1e-6)
        assert (trial.low, trial.high) == pytest.approx((difference - half, difference + half), abs=1e-6)


def test_a_gain_that_is_clear_alone_need_not_be_clear_among_many():
    gain = lowered(0.1, 0.02, 0.1, 0.3)
    [alone], _ = compared(only=gain)
    among, _ = compared(**{f"c{n}": gain for n in range(4)})
    assert alone.is_clear
    assert not any(trial.is_clear for trial in among)


def test_of_those_clearly_better_the_lowest_loss_wins_and_the_first_of_equals():
    def trial(name: str, difference: float, high: float) -> Trial:
        return Trial(name, difference, 2 * difference - high, high)

    unclear = trial("unclear", -0.5, 0.1)
    some = [unclear, trial("good", -0.1, -0.05), trial("better", -0.2, -0.01), trial("as good", -0.2, -0.02)]
    assert best_trial(some).name == "better"
    assert best_trial([unclear, trial("zero", 0.0, 0.0), trial("worse", 0.2, 0.3)]) is None
    assert best_trial([]) is None


def test_the_same_losses_as_full_tokens_are_not_better():
    [same], _ = compared(same=losses(*FULL))
    assert (same.difference, same.low, same.high, same.is_clear) == (0, 0, 0, False)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_model_without_finite_losses_is_never_taken(broken):
    diverged = losses([2.0, broken], *FULL[1:])
    trials, level = compared(diverged=diverged, good=lowered(0.1, 0.1, 0.1, 0.1))
    assert [math.isnan(trial.difference) for trial in trials] == [True, False]
    assert decide(MADE, trials, level).chosen == "good"
    alone, level = compared(diverged=diverged)
    choice = decide(MADE, alone, level)
    assert choice.chosen == FULL_TOKENS
    assert "diverged, had no finite loss" in choice.sentence


def test_nothing_is_taken_where_full_tokens_have_no_finite_loss():
    full = losses([2.0, math.nan], *FULL[1:])
    trials, level = compare_trials({FULL_TOKENS: full, "a": full, "b": losses(*FULL)}, LABELS)
    assert all(math.isnan(trial.high) for trial in trials)
    assert decide(MADE, trials, level).chosen == FULL_TOKENS


def test_the_decision_says_what_was_chosen_by_which_rows_and_how_clear_it_was():
    trials, level = compared(better=lowered(0.1, 0.1, 0.1, 0.1), other=losses(*FULL))
    choice = decide(MADE, trials, level)
    assert choice.chosen == "better"
    assert choice.sentence == (
        "auto chose better: it was better than full tokens by 0.1000 nats a token (97.5% interval -0.1000 to "
        "-0.1000) in trials on 30 of 90 rows, by 4 held-out conversations that are not reported on."
    )
    none = decide(MADE, trials[1:], level)
    assert none.chosen == FULL_TOKENS
    assert none.sentence.startswith("auto chose full tokens: nothing was clearly better in trials on 30 of 90")


def test_a_choice_is_json_without_nan():
    document = Choice("full_tokens", "so", trials=(Trial("a", math.nan, math.nan, math.nan),)).to_json()
    assert document["trials"] == [{"name": "a", "difference": None, "low": None, "high": None}]
    assert document["sentence"] == "auto chose full tokens: so."
