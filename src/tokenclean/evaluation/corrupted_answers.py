"""Multiple-choice questions whose answers are corrupted at a known rate: what a training set of them teaches shows in
the accuracy on sound ones."""

from __future__ import annotations

import numpy as np

from tokenclean.evaluation.intervals import Interval, mean_interval
from tokenclean.ragged import Ragged


def corrupt_answers(answers: np.ndarray, choices: np.ndarray, *, rate: float, seed: int) -> np.ndarray:
    """The answers with ``round(rate · N)`` of them replaced by another choice of their question, drawn uniformly.

    ``answers``: number of the right choice, from 0, int, shape (N,); ``choices``: how many each question has, int (N,).
    The questions changed at a rate are among those changed at any higher one with the same ``seed``, with the same
    wrong answers. Raises ValueError for a rate outside [0, 1], an answer that is no choice, and a question of one
    choice.
    """
    answers, choices = np.asarray(answers), np.asarray(choices)
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate of corrupted answers must lie in [0, 1], got {rate}")
    bad = np.flatnonzero((answers < 0) | (answers >= choices) | (choices < 2))
    if len(bad):
        first = bad[0]
        raise ValueError(
            f"question {first}: expected at least 2 choices and an answer among them, found answer {answers[first]} of "
            f"{choices[first]} choices"
        )
    generator = np.random.default_rng(seed)
    changed = generator.permutation(len(answers))[: round(rate * len(answers))]
    steps = generator.integers(1, choices)  # of each question, so that its wrong answer does not depend on the rate
    wrong = answers.copy()
    wrong[changed] = (answers[changed] + steps[changed]) % choices[changed]
    return wrong


def is_answered(log_likelihoods: Ragged, answers: np.ndarray) -> np.ndarray:
    """Whether the likeliest choice is the right one, float64 (N,): 1.0, 0.0, or 1/k where k choices share the highest
    value and the right one is among them.

    ``log_likelihoods``: a row a question, a value a choice, in nats; ``answers``: int (N,). Raises ValueError for
    another number of questions, an answer that is no choice, or a value that is NaN.
    """
    answers = np.asarray(answers)
    if len(log_likelihoods) != len(answers) or np.isnan(log_likelihoods.values).any():
        raise ValueError(f"expected a value for every choice of {len(answers)} questions, got {log_likelihoods!r}")
    outside = np.flatnonzero((answers < 0) | (answers >= log_likelihoods.lengths))
    if len(outside):
        raise ValueError(f"question {outside[0]}: answer {answers[outside[0]]} is none of its choices")
    is_best = [values == values.max() for values in log_likelihoods]
    return np.array([best[answer] / best.sum() for best, answer in zip(is_best, answers, strict=True)])


def answer_accuracy(log_likelihoods: Ragged, answers: np.ndarray) -> Interval:
    """Share of the questions answered right, with its 95 % interval over questions; arguments and errors as for
    ``is_answered``. Two models on the same questions: ``mean_interval`` of the difference of their ``is_answered``."""
    return mean_interval(is_answered(log_likelihoods, answers))
