from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenclean.errors import NonFiniteError
from tokenclean.ragged import Ragged
from tokenclean.recipe.cleaning_settings import NoiseMixtureSettings
from tokenclean.selection import (
    NoiseRates,
    noise_mixture,
    surprisal_table,
    token_posterior,
)

VOCABULARY = 6
NATS = st.one_of(st.floats(0, 30, width=32), st.sampled_from([0.0, 1e-45, 1e4, 3e38]))


@st.composite
def pools(draw, nats=NATS):
    """(losses, surprisal, is_response), with NaN or inf on the tokens outside the response."""
    outside = st.sampled_from([math.nan, math.inf, 7.0])
    token = st.one_of(st.tuples(nats, nats, st.just(True)), st.tuples(outside, outside, st.just(False)))
    rows = draw(st.lists(st.lists(token, max_size=12), max_size=8))
    losses, surprisal = (Ragged.from_rows([[t[i] for t in row] for row in rows], dtype=np.float32) for i in (0, 1))
    return losses, surprisal, Ragged.from_rows([[t[2] for t in row] for row in rows], dtype=bool)


@st.composite
def priors(draw):
    rate = st.floats(0.001, 0.999)
    strength, iterations = draw(st.floats(0.01, 100)), draw(st.integers(1, 40))
    return NoiseMixtureSettings(mean=draw(rate), strength=strength, start=draw(rate), iterations=iterations)


def not_noise(rate, loss, surprisal):
    """σ(logit(1 - ε) + u - ℓ), one token."""
    argument = math.log1p(-rate) - math.log(rate) + (surprisal - loss)
    return 1 / (1 + math.exp(-argument)) if argument >= 0 else math.exp(argument) / (1 + math.exp(argument))


def em_by_loops(losses, surprisal, is_response, prior):
    """The definition, token by token: (weights of each row, ε_r of each row)."""
    all_weights, rates = [], []
    for row in range(len(losses)):
        where = [t for t, response in enumerate(is_response[row]) if response]
        rate = prior.start
        for _ in range(prior.iterations):
            noise = [1 - not_noise(rate, float(losses[row][t]), float(surprisal[row][t])) for t in where]
            rate = (sum(noise) + prior.strength * prior.mean) / (len(where) + prior.strength)
        weights = [0.0] * len(losses[row])
        for t in where:
            weights[t] = not_noise(rate, float(losses[row][t]), float(surprisal[row][t]))
        all_weights.append(weights)
        rates.append(rate if where else math.nan)
    return all_weights, rates


def bools(*rows):
    """A bool column from strings of 0 and 1."""
    return Ragged.from_rows([[c == "1" for c in row] for row in rows], dtype=bool)


def all_response(column):
    return column.with_values(np.ones(len(column.values), dtype=bool))


def random_pool(rows, longest, seed=0):
    """Losses (exponential, mean 2), surprisals (5 to 12 nats) and response masks of rows of 0 to ``longest`` tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest + 1, rows)
    is_response = Ragged.from_rows([random.random(length) < 0.7 for length in lengths], dtype=bool)
    tokens = len(is_response.values)
    losses = is_response.with_values(random.exponential(2.0, tokens).astype(np.float32))
    return losses, is_response.with_values(random.uniform(5, 12, tokens).astype(np.float32)), is_response


# --- unigram surprisal


def test_surprisal_by_hand():
    """Five response tokens: id 2 three times, id 0 and id 5 once; the prompt's id 1 does not count."""
    input_ids = Ragged.from_rows([[1, 2, 2], [], [1, 0, 2, 5]], dtype=np.int32)
    is_response = bools("011", "", "0111")
    table = surprisal_table(input_ids, is_response, VOCABULARY)
    counts = [1, 0, 3, 0, 0, 1]
    assert table.dtype == np.float32
    assert table.tolist() == pytest.approx([-math.log((count + 1) / (5 + VOCABULARY)) for count in counts])


@given(st.lists(st.lists(st.tuples(st.integers(0, VOCABULARY - 1), st.booleans()), max_size=9), max_size=6))
def test_surprisal_is_that_of_counting(rows):
    input_ids = Ragged.from_rows([[token for token, _ in row] for row in rows], dtype=np.int64)
    is_response = Ragged.from_rows([[response for _, response in row] for row in rows], dtype=bool)
    response_ids = [token for row in rows for token, response in row if response]
    table = surprisal_table(input_ids, is_response, VOCABULARY)
    shares = [(response_ids.count(token) + 1) / (len(response_ids) + VOCABULARY) for token in range(VOCABULARY)]
    assert np.exp(-table.astype(float)).tolist() == pytest.approx(shares, rel=1e-5)
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_ids_of_any_integer_dtype(dtype):
    input_ids = Ragged.from_rows([[3, 3, 1]], dtype=dtype)
    expected = [-math.log(count / 9) for count in (1, 2, 1, 3, 1, 1)]
    assert surprisal_table(input_ids, bools("111"), 6).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("input_ids", "is_response", "vocabulary", "message"),
    [
        (
            Ragged.from_rows([[0], [], [1, 6]], dtype=int),
            bools("1", "", "11"),
            6,
            "row 2, position 1 has id 6, outside a voc.* 6",
        ),
        (Ragged.from_rows([[0], [], [-1, 2]], dtype=int), bools("1", "", "01"), 6, "row 2, position 0 has id -1"),
        (Ragged.from_rows([[0]]), bools("1"), 0, "row 0, position 0 has id 0, outside a voc.* 0"),
        (Ragged.from_rows([[0.0]]), bools("1"), 6, "integers, got float64"),
        (Ragged.from_rows([[0]]), bools("11"), 6, "differ in row 0"),
        (Ragged.from_rows([[0]]), Ragged.from_rows([[1]]), 6, "bool column, got int64"),
    ],
)
def test_surprisal_errors(input_ids, is_response, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        surprisal_table(input_ids, is_response, vocabulary)


# --- posterior


def test_posterior_by_hand():
    """One iteration of one token: ε from 1/2 to (3/4 + 1/2) / 2, with a loss ln 3 above the surprisal."""
    losses = Ragged.from_rows([[math.nan, math.log(12)]], dtype=np.float64)
    surprisal = Ragged.from_rows([[math.nan, math.log(4)]], dtype=np.float64)
    prior = NoiseMixtureSettings(mean=0.5, strength=1.0, start=0.5, iterations=1)
    estimate = token_posterior(losses, surprisal, bools("01"), prior)
    assert estimate.row_rates.dtype == np.float64
    assert estimate.row_rates.tolist() == pytest.approx([5 / 8])
    assert estimate.weights.values.dtype == np.float32
    assert estimate.weights.values.tolist() == pytest.approx([0.0, 3 / (3 + 5 * 3)])


@given(pool=pools(), prior=priors())
@example(pool=random_pool(6, 12), prior=NoiseMixtureSettings())
def test_posterior_is_that_of_loops(pool, prior):
    estimate = token_posterior(*pool, prior)
    weights, rates = em_by_loops(*pool, prior)
    estimate.weights.check_aligned(pool[2])
    assert [row.tolist() for row in estimate.weights] == [pytest.approx(row, abs=1e-6) for row in weights]
    assert estimate.row_rates.tolist() == pytest.approx(rates, nan_ok=True)


@given(pool=pools(), prior=priors())
def test_weights_and_rates_are_shares(pool, prior):
    estimate, is_response = token_posterior(*pool, prior), pool[2]
    weights = estimate.weights.values
    assert np.all((weights >= 0) & (weights <= 1))
    assert not weights[~is_response.values].any()
    has_response = np.array([row.any() for row in is_response], dtype=bool)
    assert np.array_equal(np.isnan(estimate.row_rates), ~has_response)
    rates = estimate.row_rates[has_response]
    assert np.all((rates > 0) & (rates < 1))
    lengths = np.array([row.sum() for row in is_response], dtype=float)[has_response]
    floor = prior.strength * prior.mean / (lengths + prior.strength)
    assert np.all(rates >= floor * (1 - 1e-9))


@given(pool=pools(), random=st.randoms(use_true_random=False))
def test_rows_do_not_bear_on_each_other(pool, random):
    order = list(range(len(pool[0])))
    random.shuffle(order)
    estimate = token_posterior(*pool)
    shuffled = token_posterior(*(column.take(order) for column in pool))
    assert np.array_equal(shuffled.weights.values, estimate.weights.take(order).values)
    assert np.array_equal(shuffled.row_rates, estimate.row_rates[order], equal_nan=True)


@pytest.mark.parametrize("block", [1, 7, 100, 10**9])
def test_blocks_of_rows_change_nothing(monkeypatch, block):
    pool = random_pool(50, 20)
    whole = token_posterior(*pool)
    monkeypatch.setattr(noise_mixture, "_BLOCK_TOKENS", block)
    blocked = token_posterior(*pool)
    assert np.array_equal(blocked.weights.values, whole.weights.values)
    assert np.array_equal(blocked.row_rates, whole.row_rates, equal_nan=True)


@given(pool=pools(st.floats(0, 30, width=32)), shift=st.floats(0, 5, width=32))
def test_a_higher_loss_never_raises_a_weight(pool, shift):
    losses, surprisal, is_response = pool
    before = token_posterior(losses, surprisal, is_response)
    after = token_posterior(losses.map_values(lambda values: values + np.float32(shift)), surprisal, is_response)
    assert np.all(after.weights.values <= before.weights.values + 1e-6)


@pytest.mark.parametrize("length", [1, 20, 500])
def test_a_clean_row_is_trained_on_whole(length):
    """Without a sign of noise the rate ends at n0·m / (n + n0): the prior's mean, thinned by the row's clean tokens."""
    losses = Ragged.from_rows([[0.5] * length])
    surprisal = losses.with_values(np.full(length, 20.5))
    estimate = token_posterior(losses, surprisal, all_response(losses))
    assert estimate.row_rates[0] == pytest.approx(20 * 0.005 / (length + 20), rel=1e-3)
    assert estimate.row_rates[0] <= 0.005
    assert estimate.weights.values.min() > 0.9999


def test_a_frequent_word_out_of_place_is_noise_and_a_rare_one_in_place_is_not():
    losses = Ragged.from_rows([[1.0] * 50 + [11.0, 11.0]])
    surprisal = losses.with_values(np.array([8.0] * 50 + [4.0, 14.0]))
    weights = token_posterior(losses, surprisal, all_response(losses)).weights.values
    assert weights[50] < 0.1
    assert weights[51] > 0.99


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_losses_and_surprisals(dtype):
    losses = Ragged.from_rows([[0.0, 1e4, 0.0, 1e4, 3e38], [1e4] * 3, [0.0] * 3], dtype=dtype)
    surprisal = Ragged.from_rows([[0.0, 0.0, 1e4, 1e4, 0.0], [0.0] * 3, [1e4] * 3], dtype=dtype)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        estimate = token_posterior(losses, surprisal, all_response(losses))
    even = 1 - estimate.row_rates[0]  # loss and surprisal are equal: the token says nothing
    assert estimate.weights[0].tolist() == pytest.approx([even, 0.0, 1.0, even, 0.0])
    assert estimate.weights[1].tolist() == [0.0] * 3
    assert estimate.weights[2].tolist() == [1.0] * 3
    assert estimate.row_rates[1:].tolist() == pytest.approx([(3 + 0.1) / 23, 0.1 / 23])


@pytest.mark.parametrize("prior", [{"strength": 1e-300}, {"mean": 1e-300}, {"start": 1 - 2**-53}])
def test_priors_at_the_end_of_floats(prior):
    losses = Ragged.from_rows([[1e4, 1e4], [0.0, 0.0], [1e4, 0.0]])
    surprisal = losses.with_values(np.array([0.0, 0.0, 1e4, 1e4, 0.0, 1e4]))
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        estimate = token_posterior(losses, surprisal, all_response(losses), NoiseMixtureSettings(**prior))
    assert np.all(np.isfinite(estimate.weights.values))
    assert estimate.weights.values.tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    "rows", [[], [[], []], [[math.nan, math.inf], []]], ids=["no row", "empty rows", "no response"]
)
def test_nothing_to_weigh(rows):
    losses = Ragged.from_rows(rows, dtype=np.float32)
    is_response = losses.map_values(lambda values: np.zeros(len(values), dtype=bool))
    estimate = token_posterior(losses, losses, is_response)
    estimate.weights.check_aligned(is_response)
    assert estimate.weights.values.dtype == np.float32
    assert not estimate.weights.values.any()
    assert np.array_equal(estimate.row_rates, [math.nan] * len(rows), equal_nan=True)
    found = NoiseRates(math.nan, {"a": math.nan}, estimate.row_rates)
    assert found.worst(5) == []
    assert found.as_document() == {"pool": None, "sources": {"a": None}, "worst_rows": []}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_number_names_its_row_and_position(bad):
    good = Ragged.from_rows([[], [math.nan, 1.0], [], [math.nan, 1.0, 2.0, 2.0]])
    wrong = Ragged.from_rows([[], [math.nan, 1.0], [], [math.nan, 1.0, bad, bad]])
    is_response = bools("", "01", "", "0111")
    with pytest.raises(NonFiniteError, match=rf"the loss of row 3, position 2 is {bad}; 2 of 4 response tokens"):
        token_posterior(wrong, good, is_response)
    with pytest.raises(NonFiniteError, match=rf"the unigram surprisal of row 3, position 2 is {bad}; 2 of 4"):
        token_posterior(good, wrong, is_response)


def test_columns_must_fit():
    one, two = Ragged.from_rows([[1.0]]), Ragged.from_rows([[1.0, 2.0]])
    for losses, surprisal in ((one, two), (two, one)):
        with pytest.raises(ValueError, match="differ in row 0"):
            token_posterior(losses, surprisal, bools("1"))
    with pytest.raises(ValueError, match="bool column, got float64"):
        token_posterior(one, one, one)


def test_inputs_are_left_as_they_were():
    pool = random_pool(5, 9)
    copies = [column.values.copy() for column in pool]
    token_posterior(*pool)
    assert all(np.array_equal(column.values, copy) for column, copy in zip(pool, copies, strict=True))


# --- what was found


def planted_pool(rates, length, seed=0, contexts=40, vocabulary=400):
    """Rows from a known model, in which a share of the tokens was drawn from the model's own unigram distribution.

    ``rates``: the chance of noise in each row. Returns (losses, surprisal, is_response, is_noise).
    """
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (contexts, vocabulary))
    model = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cumulated, cumulated_unigram = model.cumsum(axis=1), model.mean(axis=0).cumsum()
    rows = len(rates)
    context = random.integers(contexts, size=rows * length)
    is_noise = random.random(rows * length) < np.repeat(rates, length)
    chance = random.random(rows * length)
    as_noise = np.searchsorted(cumulated_unigram, chance).clip(max=vocabulary - 1)
    as_model = np.array([np.searchsorted(cumulated[c], p) for c, p in zip(context, chance, strict=True)])
    ids = np.where(is_noise, as_noise, as_model.clip(max=vocabulary - 1))
    offsets = np.arange(rows + 1) * length
    input_ids, losses = Ragged(ids, offsets), Ragged(-np.log(model[context, ids]), offsets)
    is_response = all_response(input_ids)
    table = surprisal_table(input_ids, is_response, vocabulary)
    return losses, input_ids.map_values(lambda ids: table[ids]), is_response, Ragged(is_noise, offsets)


def test_a_planted_mixture_is_recovered():
    """The pool's rate within .01, a source's within .015, a row of 1,000 tokens within .05 (and .015 on average)."""
    rates = np.tile([0.02, 0.1, 0.3], 20)
    losses, surprisal, is_response, is_noise = planted_pool(rates, 1000)
    estimate = token_posterior(losses, surprisal, is_response)
    noise_N = 1 - estimate.weights.row_sums() / 1000
    assert noise_N.mean() == pytest.approx(is_noise.values.mean(), abs=0.01)
    assert noise_N.reshape(20, 3).mean(axis=0).tolist() == pytest.approx([0.02, 0.1, 0.3], abs=0.015)
    errors = estimate.row_rates - is_noise.row_sums() / 1000
    assert np.abs(errors).max() < 0.05
    assert np.abs(errors).mean() < 0.015
    assert {row % 3 for row, _ in NoiseRates(0.0, {}, estimate.row_rates).worst(20)} == {2}


def test_weights_of_a_planted_mixture_are_chances():
    """Among tokens of about one weight, the share of clean ones is that weight."""
    losses, surprisal, is_response, is_noise = planted_pool(np.full(60, 0.2), 1000, seed=1)
    weights = token_posterior(losses, surprisal, is_response).weights.values
    for low in np.arange(0, 1, 0.2):
        inside = (weights >= low) & (weights < low + 0.2)
        assert (~is_noise.values[inside]).mean() == pytest.approx(weights[inside].mean(), abs=0.04)


def test_a_clean_pool_is_found_clean():
    losses, surprisal, is_response, _ = planted_pool(np.zeros(40), 1000, seed=2)
    assert 1 - token_posterior(losses, surprisal, is_response).weights.values.mean() < 0.01


def test_worst_rows_and_the_document_by_hand():
    sources = {"b": 1 / 6, "none": math.nan, "a": 0.75}
    found = NoiseRates(0.4, sources, np.array([0.1, math.nan, 0.5, 0.5, 0.2]))
    assert found.worst(3) == [(2, 0.5), (3, 0.5), (4, 0.2)]
    assert found.worst(99) == [(2, 0.5), (3, 0.5), (4, 0.2), (0, 0.1)]
    assert found.worst(0) == []
    assert json.loads(json.dumps(found.as_document(), allow_nan=False)) == {
        "pool": 0.4,
        "sources": {**sources, "none": None},
        "worst_rows": [{"row": row, "rate": rate} for row, rate in ((2, 0.5), (3, 0.5), (4, 0.2), (0, 0.1))],
    }
