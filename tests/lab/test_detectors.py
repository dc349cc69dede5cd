"""Detectors on hand-made columns, and how well they find noise, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given as draws
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tokenclean.errors import NonFiniteError
from tokenclean.lab import DETECTORS
from tokenclean.lab.detection_quality import Separation, TruthLabels, measure_detection
from tokenclean.lab.detectors import Columns, Detection, fill
from tokenclean.lab.passages import Passages
from tokenclean.ragged import Ragged
from tokenclean.recipe import STRATEGIES
from tokenclean.recipe.cleaning_settings import CleaningSettings, RepetitionSettings
from tokenclean.selection import surprisal_table, token_posterior
from tokenclean.selection.null_sums import SumNull, judge_groups

NAN = math.nan
IDS = Ragged.from_rows([[9, 1, 2, 3, 4], [9, 1, 2, 3], [9, 1, 2, 3, 5, 6]])
LABELS = IDS.map_values(lambda ids: ids != 9)
LOSSES = Ragged.from_rows([[NAN, 1, 5, 2, 1], [NAN, 3, 3, 1], [NAN, 0, 9, 1, 1, 2]], np.float32)
REFERENCE = Ragged.from_rows([[NAN, 0, 5, 2, 2], [NAN, 1, 3, 3], [NAN, 1, 8, 1, 1, 2]], np.float32)
SETTINGS = CleaningSettings(proportion=0.75, repetition=RepetitionSettings(n=3))


def columns(score: Ragged | None = None) -> Columns:
    return Columns(IDS, LABELS, LOSSES, score, ("s", "s", "s"), SETTINGS, 10)


def found(name: str, score: Ragged | None = None) -> Detection:
    detection = DETECTORS[name](columns(score))
    assert detection is not None
    return detection


def on_response(column: Ragged) -> list[list[float]]:
    return [values[labels].tolist() for values, labels in zip(column, LABELS, strict=True)]


def test_loss_and_loss_minus_surprisal():
    assert on_response(found("base_loss").scores) == [[1, 5, 2, 1], [3, 3, 1], [0, 9, 1, 1, 2]]
    table = surprisal_table(IDS, LABELS, 10)
    expected = LOSSES.values - table[IDS.values]
    got = found("loss_minus_surprisal").scores.values
    np.testing.assert_array_equal(got[LABELS.values], expected[LABELS.values])


def test_rank_in_row_counts_equal_losses_and_flags_the_highest():
    detection = found("loss_rank_in_row")
    assert on_response(detection.scores) == [[0.5, 1, 0.75, 0.5], [1, 1, 1 / 3], [0.2, 1, 0.6, 0.6, 0.8]]
    assert detection.flagged is not None
    assert [sum(row) for row in on_response(detection.flagged)] == [1, 1, 2]  # a quarter, rounded up
    assert detection.flagged[2].tolist() == [False, False, True, False, False, True]


def test_noise_mixture_is_the_posterior_of_noise():
    detection = found("noise_mixture")
    table = surprisal_table(IDS, LABELS, 10)
    weights = token_posterior(LOSSES, IDS.map_values(lambda ids: table[ids]), LABELS).weights
    noise = 1 - weights.values[LABELS.values].astype(np.float64)
    np.testing.assert_array_equal(detection.scores.values[LABELS.values], noise)
    assert detection.estimated_rate == pytest.approx(noise.mean())
    assert detection.flagged is not None
    np.testing.assert_array_equal(detection.flagged.values[LABELS.values], noise > 0.5)
    assert detection.is_probability


def test_repetition_flags_shared_passages():
    detection = found("repetition")
    assert on_response(detection.scores) == [[1, 1, 1, 0], [1, 1, 1], [1, 1, 1, 0, 0]]
    assert detection.estimated_rate == 9 / 12


def test_strategies_flag_what_they_drop():
    score = LOSSES - REFERENCE
    for name, flagged in {"fixed_model": 3, "rho": 4}.items():
        detection = found(name, score)
        assert on_response(detection.scores) == [[-v for v in row] for row in on_response(score)]
        assert detection.flagged is not None
        assert detection.flagged.values.sum() == flagged
        assert name in STRATEGIES
    assert DETECTORS["rho"](columns()) is None
    assert DETECTORS["fixed_model"](columns()) is None
    dropped = found("fixed_model", score).flagged
    assert dropped is not None
    kept_scores = score.values[LABELS.values & ~dropped.values]
    assert score.values[dropped.values].max() <= kept_scores.min()


def test_a_group_has_one_score_and_is_dropped_whole_before_the_next():
    score = LOSSES - REFERENCE
    by_row = LABELS.with_values(np.where(LABELS.values, LABELS.row_of_value(), -1))
    for name in ("fixed_model_by_row", "fixed_model_by_sentence"):
        given = replace(columns(), score=score, passages=Passages(by_row, by_row, LABELS))
        detection = DETECTORS[name](given)
        assert detection is not None
        assert detection.flagged is not None
        for row in range(3):
            of_row = score[row][LABELS[row]].astype(np.float64)
            expected = -of_row.sum() / math.sqrt(len(of_row))
            np.testing.assert_allclose(detection.scores[row][LABELS[row]], expected)
        kept = LABELS.values & ~detection.flagged.values
        assert detection.flagged.values.sum() == 3
        assert detection.scores.values[detection.flagged.values].min() >= detection.scores.values[kept].max()
        assert detection.judges_passages


def test_influence_judges_sentences_and_abstains_with_them():
    """Every row is a sentence; sums −9 of four tokens, −7 of three, −13 of five."""
    sentence = LABELS.with_values(np.where(LABELS.values, LABELS.row_of_value(), -1))

    def influence(cut: float) -> Detection:
        judged = judge_groups(LOSSES.map_values(np.negative), sentence, SumNull(0.0, 1.0, 0.0, cut, 1000))
        detection = DETECTORS["influence"](replace(columns(), influence=judged))
        assert detection is not None
        return detection

    detection = influence(-4.2)
    for row, (total, tokens) in enumerate([(9, 4), (7, 3), (13, 5)]):
        np.testing.assert_allclose(detection.scores[row][LABELS[row]], total / math.sqrt(tokens))
    assert not detection.scores.values[~LABELS.values].any()
    assert detection.flagged is not None
    assert on_response(detection.flagged) == [[True] * 4, [False] * 3, [True] * 5]
    assert detection.estimated_rate == 9 / 12
    nothing = influence(-9)
    assert nothing.flagged is not None
    assert (nothing.flagged.values.any(), nothing.estimated_rate) == (False, 0.0)
    assert DETECTORS["influence"](columns()) is None


def labels_of(*rows: str) -> TruthLabels:
    """Of each response token: ``o`` onset, ``n`` later noise, ``.`` clean."""
    text = [f"-{row}" for row in rows]

    def column(wanted: str) -> Ragged:
        return Ragged.from_rows([[mark in wanted for mark in row] for row in text], np.bool_)

    return TruthLabels(column("on."), column("on"), column("o"))


TRUTH = labels_of(".on.", "...", "o....")


def test_quality_by_hand():
    flagged = Ragged.from_rows([[0, 0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0, 0, 0]], np.bool_)
    quality = measure_detection(Detection(LOSSES, flagged, 0.25), TRUTH)
    # Onsets have losses 5 and 0, the later token 2; clean ones 1 1 / 3 3 1 / 9 1 1 2.
    assert quality.onset == Separation((8 + 0) / 18, (1 / 2 + 2 / 11) / 2, 2 / 11)
    assert quality.later == Separation((5 + 0.5) / 9, 1 / 5, 1 / 10)
    assert quality.whole.auroc == (8 + 0 + 5.5) / 27
    assert quality.whole.rate == 3 / 12
    assert (quality.flagged_share, quality.precision, quality.recall) == (3 / 12, 2 / 3, 2 / 3)
    assert (quality.estimated_rate, quality.calibration_error) == (0.25, None)
    assert TRUTH.rate == 0.25


def test_without_a_line_of_its_own_and_without_noise():
    quality = measure_detection(Detection(LOSSES), labels_of("....", "...", "....."))
    assert math.isnan(quality.onset.auroc)
    assert math.isnan(quality.whole.average_precision)
    assert (quality.flagged_share, quality.precision, quality.recall) == (None, None, None)


def test_nothing_flagged_has_no_precision():
    quality = measure_detection(Detection(LOSSES, LABELS.map_values(np.zeros_like)), TRUTH)
    assert quality.precision is not None
    assert math.isnan(quality.precision)
    assert quality.recall == 0.0


def test_probabilities_have_a_calibration_error():
    probabilities = TRUTH.is_noise.map_values(lambda noise: np.where(noise, 0.95, 0.05))
    quality = measure_detection(Detection(probabilities, is_probability=True), TRUTH)
    assert quality.calibration_error == pytest.approx(0.05)


def test_faults():
    with pytest.raises(NonFiniteError, match="scores are NaN"):
        measure_detection(Detection(LOSSES.map_values(lambda v: np.where(v == 9, NAN, v))), TRUTH)
    with pytest.raises(ValueError, match="row"):
        measure_detection(Detection(LOSSES.take([0, 1])), TRUTH)


# --- what needs further columns, by hand ---------------------------------------------------------------------------


def on_labels(*rows: list[float]) -> Ragged:
    return Ragged.from_rows([[NAN, *row] for row in rows], np.float32)


ENTROPY = on_labels([0, 1.5, 3, 6], [0, 0, 0], [3, 3, 3, 3, 0])
COLLISION = on_labels([0.9, 0.9, 0.2, 0.5], [0.9, 0.05, 0.5], [1, 0.26, 0.9, 0.9, 0.2])
UNCONDITIONAL = on_labels([2, 2, 2, 1], [3, 6, 1], [1, 4, 1, 1, 2.5])
PASSAGES = Passages(
    sentence=Ragged.from_rows([[-1, 0, 0, 0, 0], [-1, 1, 1, 1], [-1, 2, 2, 2, 3, 3]], np.int64),
    clause=Ragged.from_rows([[-1, 0, 0, 1, 1], [-1, 2, 2, 2], [-1, 3, 3, 4, 5, 5]], np.int64),
    begins_content_word=LABELS,
)
WHOLE = replace(columns(), entropy=ENTROPY, collision=COLLISION, unconditional_loss=UNCONDITIONAL, passages=PASSAGES)


def found_in(given: Columns, name: str) -> Detection:
    detection = DETECTORS[name](given)
    assert detection is not None
    return detection


def test_the_excess_and_the_error_norm_follow_from_collision_and_loss():
    probability = [math.exp(-loss) for row in on_response(LOSSES) for loss in row]
    collision = COLLISION.values[LABELS.values].tolist()
    excess = found_in(WHOLE, "excess").scores.values[LABELS.values]
    np.testing.assert_allclose(excess, [s2 - p for s2, p in zip(collision, probability, strict=True)], rtol=1e-6)
    ent = found_in(WHOLE, "ent")
    # The second token of the first row has p = e^−5 where S2 = 0.9: √(1 − 2 e^−5 + 0.9).
    assert ent.scores[0][2] == pytest.approx(math.sqrt(1.9 - 2 * math.exp(-5)))
    assert ent.flagged is not None
    # A quarter of twelve: squared norms 1.89, 1 − 2 e^−3 + 0.9 = 1.80 and 1.26; the next is 1 − 2 e^−1 + 0.9 = 1.16.
    assert on_response(ent.flagged) == [[0, 1, 0, 0], [1, 0, 0], [0, 1, 0, 0, 0]]
    assert (ent.estimated_rate, ent.is_probability) == (None, False)


def test_the_error_norm_is_the_distance_to_the_label():
    shares = np.array([0.7, 0.2, 0.1])
    for label, share in enumerate(shares):
        one = replace(
            WHOLE,
            base_loss=LOSSES.map_values(lambda v, share=share: np.full(len(v), -math.log(share))),
            collision=LOSSES.map_values(lambda v: np.full(len(v), float((shares**2).sum()))),
        )
        expected = np.linalg.norm(shares - np.eye(3)[label])
        np.testing.assert_allclose(found_in(one, "ent").scores.values, expected, rtol=1e-6)


def test_conflict_believes_the_mixture_only_where_another_token_is_sure():
    # Losses of 8 nats and frequent tokens: noise to the mixture. S2 − p is 0.05, 0.9 and 0.24, 0.26 (p = e^−8 ≈ 0).
    ids = Ragged.from_rows([[1] * 5], np.int64)
    losses = Ragged.from_rows([[NAN, 8, 8, 8, 8]], np.float32)
    labels = Ragged.from_rows([[False, True, True, True, True]], np.bool_)
    collision = Ragged.from_rows([[NAN, 0.05, 0.9, 0.24, 0.26]], np.float32)
    given = Columns(ids, labels, losses, None, ("s",), SETTINGS, 10, collision=collision)
    mixture, detection = found_in(given, "noise_mixture"), found_in(given, "conflict")
    noise = mixture.scores[0][1]
    assert noise > 0.9
    assert detection.scores[0].tolist() == [0, 0, noise, 0, noise]
    assert detection.flagged is not None
    assert detection.flagged[0].tolist() == [False, False, True, False, True]
    assert detection.estimated_rate == pytest.approx(noise / 2)
    assert detection.is_probability


def test_weights_of_eaft_and_lines_of_stm():
    scores = on_response(found_in(WHOLE, "eaft").scores)
    assert scores == [[1, 0.5, 0, 0], [1, 1, 1], [0, 0, 0, 0, 1]]
    flagged = found("stm").flagged
    assert flagged is not None
    assert on_response(flagged) == [[1, 1, 1, 1], [1, 1, 1], [0, 1, 1, 1, 1]]  # ln 2.5 = 0.92
    low = replace(columns(), base_loss=LOSSES.map_values(lambda loss: np.where(loss == 1, 0.9, loss)))
    flagged = found_in(low, "stm").flagged
    assert flagged is not None
    assert on_response(flagged) == [[0, 1, 1, 0], [1, 1, 0], [0, 1, 0, 0, 1]]


def test_what_the_prompt_changes():
    assert on_response(found_in(WHOLE, "pmi").scores) == [[-1, 3, 0, 0], [0, -3, 0], [-1, 5, 0, 0, -0.5]]
    detection = found_in(WHOLE, "t_shirt")
    assert on_response(detection.scores) == [[-1, -3, 0, 0], [0, -3, 0], [-1, -5, 0, 0, -0.5]]
    assert detection.flagged is not None
    flagged = detection.flagged.values[LABELS.values]
    assert flagged.sum() == 3
    assert (detection.scores.values[LABELS.values][flagged] == 0).all()


def test_mismatch_of_rows_and_of_sentences():
    """Foreign prompts cost the first row 2 nats a token and the second sentence of the third row too; nothing else
    changes, and all foreign prompts are alike, so the null is 0."""
    more = on_labels([2, 2, 2, 2], [0, 0, 0], [0, 0, 0, 2, 2])
    foreign = LOSSES.map_values(lambda losses: losses + more.values)
    given = replace(WHOLE, foreign_losses=(foreign,) * 4)
    rows = found_in(given, "mismatch")
    # The third row's mean is 0.8. p is 1/13 (12 zeros in the null) for rows 1 and 3, 1 for row 2: a share of 2/3. The
    # density is 2/3 / (1/13) up to 1/13 and then 1/3 / (12/13).
    assert [row[0] for row in on_response(rows.scores)] == pytest.approx([1 / 13, 1, 1 / 13])
    assert rows.estimated_rate == pytest.approx((4 / 13 + 3 + 5 / 13) / 12)
    assert rows.flagged is not None
    assert on_response(rows.flagged) == [[0] * 4, [1] * 3, [0] * 5]
    sentences = found_in(given, "mismatch_by_sentence")
    # Four sentences, 16 zeros in the null: p is 1/17, 1, 1, 1/17; the share is 2·2/4 = 1; the density 1/2 / (1/17).
    expected = [[2 / 17] * 4, [1] * 3, [1, 1, 1, 2 / 17, 2 / 17]]
    for got, wanted in zip(on_response(sentences.scores), expected, strict=True):
        assert got == pytest.approx(wanted)
    assert rows.judges_passages
    assert sentences.judges_passages


def test_fill_carries_flags_and_estimates_the_rate_anew():
    scores = Ragged.from_rows([[0, 0.1, 0.9, 0, 0], [0, 0, 0, 0], [0, 0.6, 0, 0, 0, 0]])
    flagged = scores.map_values(lambda score: score > 0.5)
    detection = Detection(scores, flagged, 0.1, is_probability=True)
    whole = fill(detection, WHOLE, "sentence")
    assert whole is not None
    assert on_response(whole.scores) == [[0.1, 0.9, 0.9, 0.9], [0, 0, 0], [0.6, 0.6, 0.6, 0, 0]]
    assert whole.estimated_rate == pytest.approx((0.1 + 3 * 0.9 + 3 * 0.6) / 12)
    clause = fill(detection, WHOLE, "clause")
    assert clause is not None
    assert on_response(clause.scores) == [[0.1, 0.9, 0, 0], [0, 0, 0], [0.6, 0.6, 0, 0, 0]]
    shares = fill(replace(detection, is_probability=False), WHOLE, "clause")
    assert shares is not None
    assert shares.estimated_rate == 3 / 12
    silent = fill(replace(detection, estimated_rate=None), WHOLE, "clause")
    assert silent is not None
    assert silent.estimated_rate is None
    for other in (Detection(scores), replace(detection, judges_passages=True)):
        assert fill(other, WHOLE, "sentence") is None
    assert fill(detection, columns(), "sentence") is None


def test_detectors_whose_columns_were_not_computed_are_left_out():
    missing = {name for name, detector in DETECTORS.items() if detector(columns()) is None}
    assert missing == {
        *("excess", "conflict", "ent", "eaft"),
        *("mismatch", "mismatch_by_sentence", "pmi", "t_shirt", "influence"),
        *("fixed_model", "fixed_model_by_sentence", "fixed_model_by_row", "rho"),
    }


# --- for any columns -----------------------------------------------------------------------------------------------


def simulated(seed: int, rows: int, noisy: float) -> tuple[Columns, np.ndarray]:
    """Rows of 40 tokens drawn from known distributions over 50 ids, some sure and some open; a share ``noisy`` of them
    are drawn from the pool's unigrams instead. Returns the columns and which tokens are noise."""
    random = np.random.default_rng(seed)
    count = rows * 40
    shares = random.dirichlet(np.full(50, 0.02), size=count)
    shares = 0.999 * shares + 0.001 / 50
    ids = np.array([random.choice(50, p=share) for share in shares])
    is_noise = random.random(count) < noisy
    ids[is_noise] = random.permutation(ids)[is_noise]
    offsets = np.arange(rows + 1) * 40
    loss = -np.log(shares[np.arange(count), ids])
    given = Columns(
        Ragged(ids, offsets),
        Ragged(np.ones(count, bool), offsets),
        Ragged(loss.astype(np.float32), offsets),
        None,
        ("s",) * rows,
        SETTINGS,
        50,
        entropy=Ragged(-(shares * np.log(shares)).sum(1), offsets),
        collision=Ragged((shares**2).sum(1).astype(np.float32), offsets),
        unconditional_loss=Ragged(random.exponential(3, count).astype(np.float32), offsets),
        foreign_losses=tuple(Ragged(loss + random.exponential(1, count), offsets) for _ in range(4)),
        passages=Passages(
            Ragged(np.arange(count) // 10, offsets),
            Ragged(np.arange(count) // 5, offsets),
            Ragged(random.random(count) < 0.5, offsets),
        ),
    )
    return given, is_noise


@hypothesis_settings(max_examples=10, deadline=None)
@draws(st.integers(0, 1000))
def test_on_clean_data_nobody_claims_noise(seed):
    given, _ = simulated(seed, 30, 0.0)
    for name in ("noise_mixture", "conflict", "mismatch"):
        rate = found_in(given, name).estimated_rate
        assert rate is not None
        assert rate < 0.015, name


@hypothesis_settings(max_examples=10, deadline=None)
@draws(st.integers(0, 1000))
def test_conflict_claims_less_than_the_mixture_and_finds_planted_noise(seed):
    given, is_noise = simulated(seed, 30, 0.15)
    mixture, detection = found_in(given, "noise_mixture"), found_in(given, "conflict")
    assert (detection.scores.values <= mixture.scores.values).all()
    assert detection.flagged is not None
    assert is_noise[detection.flagged.values].mean() > 0.9
    assert detection.estimated_rate == pytest.approx(0.15, abs=0.08)


@hypothesis_settings(max_examples=10, deadline=None)
@draws(st.integers(0, 1000), st.sampled_from([0.0, 0.3]))
def test_every_detector_gives_probabilities_where_it_says_so_and_no_order_of_rows_matters(seed, noisy):
    given, _ = simulated(seed, 8, noisy)
    order = np.random.default_rng(seed).permutation(8)
    shuffled = replace(
        given,
        **{
            name: getattr(given, name).take(order)
            for name in ("input_ids", "is_response", "base_loss", "entropy", "collision", "unconditional_loss")
        },
        foreign_losses=tuple(column.take(order) for column in given.foreign_losses or ()),
        passages=Passages(*(column.take(order) for column in vars(given.passages).values())),
    )
    for name, detector in DETECTORS.items():
        detection, other = detector(given), detector(shuffled)
        if detection is None or other is None:
            assert name in ("influence", "fixed_model", "fixed_model_by_sentence", "fixed_model_by_row", "rho")
            continue
        for one, two in ((detection, other), (fill(detection, given, "clause"), fill(other, shuffled, "clause"))):
            if one is None or two is None:
                assert detection.flagged is None or detection.judges_passages
                continue
            np.testing.assert_allclose(one.scores.take(order).values, two.scores.values, atol=1e-6, err_msg=name)
            if one.estimated_rate is not None:
                assert 0 <= one.estimated_rate <= 1
                assert one.estimated_rate == pytest.approx(two.estimated_rate)
            if one.is_probability:
                assert one.scores.values.min() >= 0
                assert one.scores.values.max() <= 1


@hypothesis_settings(max_examples=20, deadline=None)
@draws(st.integers(0, 1000), st.floats(0.1, 5))
def test_a_higher_loss_of_a_token_never_makes_it_less_noisy(seed, more):
    given, _ = simulated(seed, 4, 0.1)
    place = seed % len(given.base_loss.values)
    losses = given.base_loss.values.copy()
    losses[place] += more
    worse = replace(given, base_loss=given.base_loss.with_values(losses))
    for name in ("base_loss", "loss_minus_surprisal", "noise_mixture", "excess", "conflict", "ent", "stm", "pmi"):
        assert found_in(worse, name).scores.values[place] >= found_in(given, name).scores.values[place] - 1e-6, name
