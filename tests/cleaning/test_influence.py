"""One-step influence on a tiny model: what unlike rows lose, what like rows keep, and when it keeps everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tokenclean import load_pool
from tokenclean.cleaning import run_strategy
from tokenclean.cleaning.influence import NULL_TOKENS, NULLS, null_sample
from tokenclean.cleaning.open_run import OpenRun, open_run
from tokenclean.cleaning.strategy_result import weights_of
from tokenclean.errors import RecipeError
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer
from tokenclean.observer import Observer
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe, TrainingSettings, recipe_from
from tokenclean.scoring import token_losses
from tokenclean.tokens import tokenize_pool
from tokenclean.training.fine_tune import train

WORDS = (
    *("iron", "salt", "wool", "clay", "sand", "rope", "wood", "milk", "corn", "rice"),
    *("silk", "lead", "coal", "wine", "snow", "leaf", "bone", "shell", "glass", "stone"),
)
BLUE = "It is blue, blue, blue, blue, blue, blue."


def write_rows(path: Path, answers: list[str], first: int = 0) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"What is it, {n}?"}, {"role": "assistant", "content": text}]}
        for n, text in enumerate(answers, first)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(count: int, words: Sequence[str], seed: int = 0) -> list[str]:
    """Answers of six words each, drawn at random."""
    return [f"It is {', '.join(row)}." for row in np.random.default_rng(seed).choice(words, (count, 6)).tolist()]


def good(count: int, seed: int = 0) -> list[str]:
    return answers(count, WORDS, seed)


def recipe_with(folder: Path, model: Path, pool: list[str], trusted: list[str] | None) -> Recipe:
    checked = None if trusted is None else str(write_rows(folder / "checked.jsonl", trusted, first=500))
    return recipe_from(
        {
            "output": str(folder / "runs"),
            "pool": {
                "sources": [{"path": str(write_rows(folder / "pool.jsonl", pool))}],
                "heldout": {"rows": 2, "max_share": 0.5},
            },
            "model": {"base": str(model)},
            "cleaning": {"strategy": "influence", "trusted": checked, "splits": 3},
            "scoring": {"precision": "exact"},
            "training": {"batch_size": 16, "lora": {"rank": 4, "dropout": 0.1}},
        }
    )


def opened_with(folder: Path, model: Path, pool: list[str], notes: list[str]) -> OpenRun:
    return open_run(recipe_with(folder, model, pool, good(40, seed=1)), Observer(note=notes.append))


@pytest.fixture(scope="module")
def taught_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after a training in which half of the words are blue, the others any of many."""
    folder = tmp_path_factory.mktemp("taught")
    pool = load_pool(write_rows(folder / "rows.jsonl", answers(120, [*WORDS, *["blue"] * len(WORDS)], seed=2)))
    tokens = tokenize_pool(pool, load_tokenizer(str(tiny_model_folder)))
    settings = TrainingSettings(
        method="full", learning_rate=1e-2, batch_size=20, epochs=12, max_grad_norm=1, precision="exact"
    )
    weights = weights_of(tokens.is_response)
    train(ModelSource(str(tiny_model_folder)), tokens.input_ids, weights, settings, folder / "model", seed=0)
    return folder / "model"


@pytest.mark.usefixtures("one_thread")
def test_what_checked_rows_contradict_is_dropped_and_a_second_run_computes_nothing(tmp_path, taught_folder):
    notes: list[str] = []
    pool = [*good(40), *[BLUE] * 20]
    opened = opened_with(tmp_path, taught_folder, pool, notes)
    context = opened.context
    result = run_strategy(context, "influence")
    labels, kept = context.tokens.is_response, result.kept
    assert kept is not None
    texts = {row.id: row.turns[-1].content for row in context.data.pool}
    for row, id in enumerate(context.tokens.ids):
        of_row = kept[row][labels[row]]
        if texts[id] == BLUE:  # its end token is in no sentence
            assert not of_row[:-1].any()
            assert of_row[-1]
        else:
            assert of_row.all(), texts[id]

    step = next(stage for stage in opened.stages.computed if stage.startswith("one_step"))
    stepped = load_model(ModelSource(str(taught_folder), str(opened.stages.store.root / "stages" / step / "step")))
    others = np.setdiff1d(np.arange(len(context.tokens)), context.data.trusted)
    expected = token_losses(stepped, context.tokens.take(others), precision="exact")
    losses = result.losses["reference_loss"]
    np.testing.assert_allclose(losses.take(others).values, expected.values, atol=1e-5)
    assert np.isnan(losses.take(context.data.trusted).values).all()

    text = "\n".join(notes)
    assert "of what the gradient predicts" in text
    assert "below the null's 1% quantile, which predicts" in text
    assert f"deviations: {BLUE}" in text

    again = opened_with(tmp_path, taught_folder, pool, [])
    found = run_strategy(again.context, "influence").kept
    assert found is not None
    assert np.array_equal(found.values, kept.values)
    assert again.stages.computed == []


@pytest.mark.usefixtures("one_thread")
def test_on_clean_rows_it_keeps_everything_and_says_so(tmp_path, taught_folder):
    notes: list[str] = []
    opened = opened_with(tmp_path, taught_folder, good(40), notes)
    result = run_strategy(opened.context, "influence")
    assert result.kept is not None
    assert np.array_equal(result.kept.values, opened.context.tokens.is_response.values)
    (found,) = [note for note in notes if note.startswith("influence: keeps everything")]
    assert "no more than chance gives" in found


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_too_few_sentences_for_a_null_are_kept(tmp_path, taught_folder):
    notes: list[str] = []
    opened = opened_with(tmp_path, taught_folder, [*good(4), *[BLUE] * 4], notes)
    sentences = 8 - len(opened.context.heldout)
    result = run_strategy(opened.context, "influence")
    assert result.kept is not None
    assert result.kept.values.sum() == opened.context.tokens.is_response.values.sum()
    assert any(f"the null has {NULLS * sentences} sums of sentences, and its 1% quantile needs 100" in n for n in notes)


def test_without_trusted_rows_the_recipe_says_what_is_missing(tmp_path, tiny_model_folder):
    with pytest.raises(RecipeError, match=r"cleaning\.trusted: the strategy influence takes a gradient step"):
        recipe_with(tmp_path, tiny_model_folder, good(9), None)


def test_the_null_sample_has_as_many_tokens_as_needed():
    rows = np.arange(3, 100)
    is_response = Ragged(np.ones(100 * 100, dtype=bool), np.arange(0, 100 * 100 + 1, 100))
    sample = null_sample(is_response, rows, seed=1)
    assert len(sample) * 100 == NULL_TOKENS
    assert (np.diff(sample) > 0).all()
    assert set(sample) <= set(rows)
    assert not np.array_equal(sample, null_sample(is_response, rows, seed=2))
    assert np.array_equal(null_sample(is_response, rows[:7], seed=1), rows[:7])
