"""Item scores: what is refused, and how a task is parted for resampling."""

from __future__ import annotations

import numpy as np
import pytest

from tokenclean.evaluation.paired_scores import ItemScores


def two_strategies():
    return {name: {seed: {"mmlu": np.ones(4), "boolq": np.zeros(3)} for seed in (0, 1)} for name in ("full", "rho")}


def test_shapes_and_orders():
    scores = two_strategies()
    scores["rho"][1]["mmlu"] = np.array([True, False, False, True])
    made = ItemScores(scores)
    assert (made.strategies, made.seeds, made.tasks) == (("full", "rho"), (0, 1), ("mmlu", "boolq"))
    assert (made.items("mmlu"), made.items("boolq")) == (4, 3)
    values = made.of_task("mmlu")
    assert values.shape == (2, 4, 2)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values[1, :, 1], [1, 0, 0, 1])


def without_seed(scores):
    del scores["rho"][1]


def without_all_seeds(scores):
    scores["rho"].clear()


def with_another_task(scores):
    scores["rho"][1]["arc"] = np.ones(3)


def with_fewer_items(scores):
    scores["rho"][1]["mmlu"] = np.ones(3)


def with_one_item(scores):
    for seeds in scores.values():
        for tasks in seeds.values():
            tasks["boolq"] = np.ones(1)


def with_nan(scores):
    scores["rho"][0]["mmlu"] = np.array([0, 1, np.nan, 1])


def with_percent(scores):
    scores["full"][0]["boolq"] = np.array([0.0, 55.0, 1.0])


def with_a_column(scores):
    scores["rho"][0]["mmlu"] = np.ones((4, 1))


def with_text(scores):
    scores["rho"][0]["mmlu"] = np.array(["1", "0", "1", "1"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_seed, r"strategy 'rho': expected the seeds 0, 1, as in the first run, found 0"),
        (without_all_seeds, r"strategy 'rho': expected the seeds 0, 1, .* found none"),
        (with_another_task, r"'rho', seed 1: expected the tasks mmlu, boolq, .* found mmlu, boolq, arc"),
        (with_fewer_items, r"'rho', seed 1, task 'mmlu' has 3 items, the first run has 4"),
        (with_one_item, r"'full', seed 0, task 'boolq' has 1 items; an error needs at least 2"),
        (with_nan, r"'rho', seed 0, task 'mmlu', item 2: expected a score in \[0, 1\], got nan"),
        (with_percent, r"'full', seed 0, task 'boolq', item 1: .* got 55.0"),
        (with_a_column, r"'rho', seed 0, task 'mmlu': expected one number per item, got shape \(4, 1\)"),
        (with_text, r"'rho', seed 0, task 'mmlu': expected one number per item, .* dtype <U1"),
    ],
)
def test_what_is_refused_names_its_place(spoil, message):
    scores = two_strategies()
    spoil(scores)
    with pytest.raises(ValueError, match=message):
        ItemScores(scores)


@pytest.mark.parametrize("scores", [{}, {"full": {}}, {"full": {0: {}}}])
def test_nothing_to_compare(scores):
    with pytest.raises(ValueError, match="at least one strategy, one seed and one task"):
        ItemScores(scores)


def test_groups_must_fit():
    with pytest.raises(ValueError, match="groups are given for task 'arc', which has no scores; tasks: mmlu, boolq"):
        ItemScores(two_strategies(), {"arc": np.zeros(4)})
    with pytest.raises(ValueError, match=r"task 'boolq' has 3 items, but group ids of shape \(4,\)"):
        ItemScores(two_strategies(), {"boolq": np.zeros(4)})


@pytest.mark.parametrize(
    ("ids", "strata"),
    [
        (["law", "art", "law", "art"], [[1, 3], [0, 2]]),
        (["law", "art", "law", "law"], [[0, 2, 3, 1]]),  # a group of one joins the largest
        (["law", "art", "law", "maths"], [[0, 2], [1, 3]]),  # groups of one go together
        (["a", "b", "c", "d"], [[0, 1, 2, 3]]),
        ([0, 0, 0, 0], [[0, 1, 2, 3]]),
    ],
)
def test_no_stratum_holds_one_item(ids, strata):
    made = ItemScores(two_strategies(), {"mmlu": np.array(ids)})
    assert [part.tolist() for part in made.strata("mmlu")] == strata
    assert [part.tolist() for part in made.strata("boolq")] == [[0, 1, 2]]
