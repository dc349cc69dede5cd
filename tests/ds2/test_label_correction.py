from __future__ import annotations

import numpy as np
import pytest
from planted import CLASSES, MATRIX, SHARES, plant

from tokenclean.ds2.label_correction import Detection, correct_labels, detect_errors, neighbour_votes
from tokenclean.ds2.neighbours import Neighbours, draw_samples, nearest_neighbours, needed_neighbours
from tokenclean.ds2.transition_matrix import Transition, count_consensus, estimate_transition


def test_votes_are_weighed_by_nearness_and_of_length_one():
    nearest = Neighbours(
        np.array([[1, 2, 3], [0, 2, 3]]), np.array([[0.1, 0.2, 1.5], [1.2, 1.1, 1.0]], dtype=np.float32)
    )
    found = neighbour_votes(np.array([0, 1, 1, 2]), nearest, 3)
    expected = np.array([0, 0.9 + 0.8, 0])
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(found[1], 3**-0.5)  # nobody votes
    some = neighbour_votes(np.array([0, 1, 1, 2]), nearest, 3, np.array([[False, True, True]] * 2))
    np.testing.assert_allclose(some[0], [0, 1, 0], atol=1e-6)


def test_detection_is_that_of_a_loop():
    vectors, _, noisy = plant(200, 0.7, seed=4)
    neighbours = nearest_neighbours(vectors, needed_neighbours(200, 5))
    transition = Transition(MATRIX, SHARES, 0.0)
    found = detect_errors(noisy, neighbours, transition, epochs=3, count=5, seed=2)
    sampled, flags, votes = np.zeros(200), np.zeros(200), np.zeros((200, CLASSES))
    for is_sampled in draw_samples(200, 3, 2):
        points = np.flatnonzero(is_sampled)
        doubt, choice = {}, {}
        for point in points:
            pairs = zip(neighbours.indices[point], neighbours.distances[point], strict=True)
            near = [(n, d) for n, d in pairs if is_sampled[n]][:5]
            q = np.zeros(CLASSES)
            for n, d in near:
                q[noisy[n]] += max(0.0, 1 - float(d))
            q /= np.linalg.norm(q)
            doubt[point], choice[point] = -np.log(max(q[noisy[point]], 1e-12)), int(q.argmax())
        for label in range(CLASSES):
            members = [p for p in points if noisy[p] == label]
            rate = np.clip(transition.class_noise_rates[label], 0.05, 0.95)
            bound = np.percentile([doubt[p] for p in members], 100 * (1 - rate))
            for p in members:
                if doubt[p] >= bound:
                    flags[p] += 1
                    votes[p, choice[p]] += 1
        sampled[points] += 1
    np.testing.assert_array_equal(found.times_sampled, sampled)
    np.testing.assert_array_equal(found.flags, flags)
    np.testing.assert_array_equal(found.votes, votes)


def test_correction_by_hand():
    """Row 0 always flagged for class 2; row 1 never; row 2 flagged, but its votes are split; row 3 hardly seen."""
    detection = Detection(
        times_sampled=np.array([40, 40, 40, 0]),
        flags=np.array([40, 0, 40, 0]),
        votes=np.array([[0, 0, 40], [0, 0, 0], [0, 20, 20], [0, 0, 0]]),
    )
    found = correct_labels(np.array([0, 1, 0, 2]), detection, minimum_confidence=0.5)
    np.testing.assert_allclose(found.noisy, [41 / 42, 1 / 42, 41 / 42, 1 / 2])
    assert found.is_error.tolist() == [True, False, True, False]
    np.testing.assert_allclose(found.confidence[0], 41 / 43 * 41 / 42)
    np.testing.assert_allclose(found.confidence[2], 21 / 43 * 41 / 42)
    assert found.suggested.tolist() == [2, 0, 1, 0]
    assert found.labels.tolist() == [2, 1, 0, 2]
    assert correct_labels(np.array([0, 1, 0, 2]), detection, minimum_confidence=0.4).labels.tolist() == [2, 1, 1, 2]


@pytest.mark.slow
def test_planted_errors_are_found_and_corrected():
    vectors, true, noisy = plant(10_000, 0.5)
    neighbours = nearest_neighbours(vectors, needed_neighbours(len(vectors), 10))
    transition = estimate_transition(count_consensus(noisy, neighbours, CLASSES))
    found = correct_labels(noisy, detect_errors(noisy, neighbours, transition), minimum_confidence=0.5)
    is_wrong = noisy != true
    hits = int((found.is_error & is_wrong).sum())
    f1 = 2 * hits / (int(found.is_error.sum()) + int(is_wrong.sum()))
    assert is_wrong.mean() == pytest.approx(0.3, abs=0.02)
    assert f1 > 0.8
    assert (found.labels != true).mean() < 0.4 * is_wrong.mean()
