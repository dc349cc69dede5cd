"""Answers corrupted at a known rate, and the accuracy of choices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.evaluation.corrupted_answers import answer_accuracy, corrupt_answers, is_answered
from tokenclean.ragged import Ragged

QUESTIONS = st.lists(
    st.integers(2, 6).flatmap(lambda k: st.tuples(st.integers(0, k - 1), st.just(k))), min_size=1, max_size=30
)


@given(QUESTIONS, st.floats(0, 1), st.integers(0, 5))
def test_exactly_the_rate_is_wrong_and_still_a_choice(questions, rate, seed):
    answers, choices = (np.array(column) for column in zip(*questions, strict=True))
    wrong = corrupt_answers(answers, choices, rate=rate, seed=seed)
    assert np.count_nonzero(wrong != answers) == round(rate * len(answers))
    assert ((wrong >= 0) & (wrong < choices)).all()
    more = corrupt_answers(answers, choices, rate=1.0, seed=seed)
    changed = wrong != answers
    np.testing.assert_array_equal(wrong[changed], more[changed])


def test_every_wrong_choice_is_drawn_about_equally():
    wrong = corrupt_answers(np.ones(3000, dtype=int), np.full(3000, 4), rate=1.0, seed=0)
    assert np.bincount(wrong, minlength=4)[1] == 0
    assert (np.abs(np.bincount(wrong)[[0, 2, 3]] - 1000) < 120).all()


def test_faults_of_questions():
    with pytest.raises(ValueError, match=r"rate .* must lie in \[0, 1\], got 1.5"):
        corrupt_answers(np.array([0]), np.array([2]), rate=1.5, seed=0)
    with pytest.raises(ValueError, match=r"question 1: expected at least 2 choices.*found answer 3 of 3"):
        corrupt_answers(np.array([0, 3]), np.array([2, 3]), rate=0.5, seed=0)
    with pytest.raises(ValueError, match="question 0: expected at least 2 choices"):
        corrupt_answers(np.array([0]), np.array([1]), rate=0.5, seed=0)


def test_accuracy_by_hand():
    choices = Ragged.from_rows([[-1.0, -2.0], [-3.0, -1.0, -2.0], [-1.0, -1.0], [-5.0, -1.0]])
    answers = np.array([0, 0, 1, 1])
    assert is_answered(choices, answers).tolist() == [1.0, 0.0, 0.5, 1.0]
    found = answer_accuracy(choices, answers)
    assert (found.mean, found.items) == (0.625, 4)
    with pytest.raises(ValueError, match="question 1: answer 3 is none"):
        is_answered(choices, np.array([0, 3, 0, 0]))
    with pytest.raises(ValueError, match="every choice of 3 questions"):
        is_answered(choices, np.array([0, 0, 0]))
