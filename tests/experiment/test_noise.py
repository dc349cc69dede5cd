"""Noise-mixture cleaning and repetition in whole runs on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_runs import recipe_of

from tokenclean.cleaning.open_run import OpenRun, open_run
from tokenclean.errors import RecipeError
from tokenclean.experiment.noise_tables import condition_table
from tokenclean.experiment.planning.plan import plan
from tokenclean.experiment.run import run
from tokenclean.exporting import read_cleaned
from tokenclean.observer import Observer
from tokenclean.selection import LabelNoise, find_repetition, surprisal_table, token_posterior
from tokenclean.token_table import read_table

BOILERPLATE = "As the humble assistant of this house I am glad to help you today."


@pytest.fixture(scope="module")
def noisy_pool(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pool with one stock phrase before every third answer."""
    rows = [json.loads(line) for line in small_pool.read_text(encoding="utf-8").splitlines()]
    for row in rows[::3]:
        row["messages"][-1]["content"] = f"{BOILERPLATE} {row['messages'][-1]['content']}"
    path = tmp_path_factory.mktemp("noisy") / "noisy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def opened_run(pool: Path, model: Path, output: Path, **sections) -> tuple[OpenRun, list[str]]:
    notes: list[str] = []
    sections.setdefault("evaluation", {"controls": ["full_tokens"]})
    return open_run(recipe_of(pool, model, output, **sections), Observer(note=notes.append)), notes


def outcome_of(result, strategy: str):
    return next(o for o in result.results if o.strategy == strategy)


@pytest.fixture(scope="module")
def online(noisy_pool, tiny_model_folder, tmp_path_factory):
    """noise_mixture with repetition, beside repetition alone and rho with repetition."""
    output = tmp_path_factory.mktemp("online")
    cleaning = {"strategy": "noise_mixture", "also": ["repetition"]}
    controls = {"controls": ["full_tokens", "random", "repetition", "rho", "self_evolving"]}
    opened, notes = opened_run(noisy_pool, tiny_model_folder, output, cleaning=cleaning, evaluation=controls)
    return opened, run(opened), notes


def test_repetition_drops_the_stock_phrase_and_says_so(online):
    opened, result, notes = online
    tokens, settings = opened.context.tokens, opened.context.recipe.cleaning.repetition
    found = find_repetition(tokens.input_ids, tokens.is_response, settings)
    assert found.is_repeated.values.any()
    labels = opened.context.tokens.is_response.values
    kept = outcome_of(result, "repetition").kept.values
    assert np.array_equal(kept, labels & ~found.is_repeated.values)
    assert np.array_equal(outcome_of(result, "noise_mixture").kept.values, kept)
    assert any("humble assistant of this house" in note for note in notes)
    assert any("repetition:" in note and "passages of" in note for note in notes)


def test_also_cleans_what_selecting_strategies_keep_and_leaves_baselines_alone(online):
    opened, result, _ = online
    repeated = opened.context.noise.repetition.is_repeated.values
    warmup = opened.context.data.indices(opened.context.data.splits[0])
    later = np.ones(len(repeated), dtype=bool)
    later[warmup] = False
    assert not np.any(outcome_of(result, "rho").kept.values & repeated)
    assert not np.any(outcome_of(result, "self_evolving").kept.values & repeated & later)
    for name in ("full_tokens", "random"):
        assert np.any(outcome_of(result, name).kept.values & repeated)


def test_the_noise_rates_are_told_stored_and_one_a_row(online):
    opened, result, _ = online
    noise = outcome_of(result, "noise_mixture").noise
    rates = noise.rows
    counted = ~np.isnan(rates)
    tokens = outcome_of(result, "noise_mixture").kept.row_sums()
    assert np.array_equal(counted, tokens > 0)
    assert np.all((rates[counted] > 0) & (rates[counted] < 1))
    assert noise.pool == pytest.approx((rates[counted] * tokens[counted]).sum() / tokens[counted].sum())
    assert outcome_of(result, "repetition").noise is None
    table = next(t for t in result.tables if t.title == "Noise found")
    assert table.rows[0][:2] == ("noise_mixture", "pool")
    document = json.loads((result.folder / "noise.json").read_text())
    assert document["noise_mixture"]["pool"] == pytest.approx(noise.pool)
    assert set(document["noise_mixture"]["rows"]) == set(opened.context.tokens.ids)
    assert any(BOILERPLATE[:30] in passage["text"] for passage in document["repetition"]["passages"])


@pytest.mark.slow
def test_repetition_may_go_with_the_mixture_alone(noisy_pool, tiny_model_folder, tmp_path):
    cleaning = {"strategy": "noise_mixture", "noise_mixture": {"with_repetition": True}}
    controls = {"controls": ["full_tokens", "rho"]}
    opened, _ = opened_run(noisy_pool, tiny_model_folder, tmp_path, cleaning=cleaning, evaluation=controls)
    result = run(opened)
    repeated = opened.context.noise.repetition.is_repeated.values
    assert not np.any(outcome_of(result, "noise_mixture").kept.values & repeated)
    assert np.any(outcome_of(result, "rho").kept.values & repeated)


def test_a_second_run_makes_nothing(online):
    opened, result, _ = online
    again = run(open_run(opened.context.recipe))
    assert again.stages_made == 0
    assert outcome_of(again, "noise_mixture").noise.pool == outcome_of(result, "noise_mixture").noise.pool


def test_offline_weights_are_the_posterior_under_the_base_and_reach_the_export(noisy_pool, tiny_model_folder, tmp_path):
    cleaning = {"strategy": "noise_mixture", "noise_mixture": {"mode": "offline", "mean": 0.2}}
    opened, _ = opened_run(noisy_pool, tiny_model_folder, tmp_path, cleaning=cleaning)
    result = run(opened)
    outcome, tokens = outcome_of(result, "noise_mixture"), opened.context.tokens
    table = surprisal_table(tokens.input_ids, tokens.is_response, len(opened.context.data.tokenizer))
    surprisal = tokens.input_ids.with_values(table[tokens.input_ids.values])
    estimate = token_posterior(
        opened.context.losses(opened.context.base), surprisal, tokens.is_response, opened.context.noise.mixture.prior
    )
    assert np.array_equal(outcome.weights.values, estimate.weights.values)
    assert 0 < outcome.weights.values[tokens.is_response.values].min() < 0.99
    assert outcome.model.training["selected_tokens"] == tokens.is_response.values.sum()
    assert not any(table.title.startswith("Overlap") for table in result.tables)  # nothing was dropped
    folder = result.folder / "noise_mixture"
    stored = read_table(folder / "kept.parquet")
    assert np.array_equal(stored["weight"].values, outcome.weights.values)
    exported = read_cleaned(folder / "cleaned.parquet").rows.column("token_weight").to_pylist()
    expected = [row.tolist() for row in outcome.weights if row.any()]
    assert [pytest.approx(row) for row in expected] == exported


@pytest.mark.slow
def test_a_mixture_on_top_of_a_selection(noisy_pool, tiny_model_folder, tmp_path):
    cleaning = {"strategy": "self_evolving", "also": ["noise_mixture"], "noise_mixture": {"mode": "offline"}}
    opened, _ = opened_run(noisy_pool, tiny_model_folder, tmp_path, cleaning=cleaning)
    outcome = outcome_of(run(opened), "self_evolving")
    warmup = opened.context.data.indices(opened.context.data.splits[0])
    assert np.array_equal(outcome.weights.values > 0, outcome.kept.values)
    assert set(outcome.weights.values[warmup].tolist()) == {0.0, 1.0}
    later = np.setdiff1d(np.arange(len(outcome.kept.values)), warmup)
    assert np.any((outcome.weights.values[later] > 0) & (outcome.weights.values[later] < 1))
    assert np.isnan(outcome.noise.rows[opened.context.data.splits[0]]).all()
    assert np.isfinite(outcome.noise.rows[opened.context.data.splits[1]]).any()


def test_a_plan_counts_the_passes(noisy_pool, tiny_model_folder, tmp_path):
    def passes(**cleaning):
        recipe = recipe_of(noisy_pool, tiny_model_folder, tmp_path, cleaning=cleaning, evaluation={"controls": []})
        return [step.name for step in plan(recipe, flop_per_second=1e9).steps]

    assert passes(strategy="noise_mixture")[0] == "train noise_mixture"
    offline = passes(strategy="noise_mixture", noise_mixture={"mode": "offline"})
    assert offline[:2] == ["score D0 to D2 under base", "train noise_mixture"]


def test_a_wrong_name_is_refused(noisy_pool, tiny_model_folder, tmp_path):
    with pytest.raises(RecipeError, match=r"cleaning\.also\.0: expected one of noise_mixture, repetition"):
        recipe_of(noisy_pool, tiny_model_folder, tmp_path, cleaning={"also": ["repetitions"]})


def test_planted_noise_against_the_condition_by_hand():
    """The price is 0.03035 · (sqrt(1/r̂) - 1), see test_theory; least M of the third: 2 log 100 / 0.02² = 23,026."""
    rates = {
        "full_tokens": (0.3, 0.3, 1.0),
        "random": (0.3, 0.5, 0.25),
        "rho": (0.4, 0.38, 0.25),
        "oracle": (0.3, 0.0, 0.7),
    }
    found = [(name, LabelNoise(*measured, np.nan, np.nan)) for name, measured in rates.items()]
    table = condition_table(found, response_tokens=10_000, delta=0.04)
    assert table.rows == (
        ("full_tokens", "30.0%", "30.0%", "100.0%", "+0.0000", "0.0000", "+0.0000", "yes", "1", "100.0%"),
        ("random", "30.0%", "50.0%", "25.0%", "-0.2000", "0.0303", "-0.2303", "no", "none", "none"),
        ("rho", "40.0%", "38.0%", "25.0%", "+0.0200", "0.0303", "-0.0103", "no", "23,026", "36.3%"),
        ("oracle", "30.0%", "0.0%", "70.0%", "+0.3000", "0.0059", "+0.2941", "yes", "4", "0.8%"),
    )
    assert "M = 10,000 response tokens (δ = 0.04)" in table.note
