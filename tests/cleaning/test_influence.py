"""One-step influence on a tiny model: what unlike rows lose, what like rows keep, and when it keeps everything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tokenclean.cleaning import run_strategy
from tokenclean.cleaning.influence import NULL_TOKENS, NULLS, null_sample
from tokenclean.cleaning.open_run import OpenRun, open_run
from tokenclean.errors import RecipeError
from tokenclean.models.loading.load import load_model
from tokenclean.observer import Observer
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.scoring import token_losses

GOOD = "The answer to that question is the number {n}. Please ask me again if you want to know more."
ODD = "Zqxj wvk {n} jjq xzv kqw vvx. Qjz xxk wqv zzj kvq jxw vqk."


def write_rows(path: Path, answers: list[str]) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"What is it, {n}?"}, {"role": "assistant", "content": text}]}
        for n, text in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def good(first: int, count: int) -> list[str]:
    return [GOOD.format(n=n) for n in range(first, first + count)]


def recipe_with(folder: Path, model: Path, pool: list[str], trusted: list[str] | None) -> Recipe:
    checked = None if trusted is None else str(write_rows(folder / "checked.jsonl", trusted))
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
    return open_run(recipe_with(folder, model, pool, good(500, 24)), Observer(note=notes.append))


@pytest.mark.usefixtures("one_thread")
def test_sentences_unlike_the_trusted_ones_are_dropped_and_a_second_run_computes_nothing(tmp_path, tiny_model_folder):
    notes: list[str] = []
    pool = [*good(0, 36), *(ODD.format(n=n) for n in range(12))]
    opened = opened_with(tmp_path, tiny_model_folder, pool, notes)
    context = opened.context
    result = run_strategy(context, "influence")
    labels, kept = context.tokens.is_response, result.kept
    texts = {row.id: row.turns[-1].content for row in context.data.pool}
    for row, id in enumerate(context.tokens.ids):
        is_odd = texts[id].startswith("Zqxj")
        share = kept[row].sum() / labels[row].sum()
        assert (share < 0.3) if is_odd else (share == 1.0), texts[id]
        if is_odd:  # the end token is in no sentence
            assert kept[row][labels[row]][-1]
    assert kept.take(context.data.trusted).values.sum() == labels.take(context.data.trusted).values.sum()

    step = next(stage for stage in opened.stages.computed if stage.startswith("one_step"))
    stepped = load_model(
        context.base.source.__class__(str(tiny_model_folder), str(opened.stages.store.root / "stages" / step / "step"))
    )
    others = np.setdiff1d(np.arange(len(context.tokens)), context.data.trusted)
    expected = token_losses(stepped, context.tokens.take(others), precision="exact")
    np.testing.assert_allclose(result.losses["reference_loss"].take(others).values, expected.values, atol=1e-5)
    assert np.isnan(result.losses["reference_loss"].take(context.data.trusted).values).all()

    text = "\n".join(notes)
    assert "of what the gradient predicts" in text
    assert "below the null's 1% quantile, which predicts" in text
    assert "deviations: Zqxj" in text or "deviations: Qjz" in text

    again = opened_with(tmp_path, tiny_model_folder, pool, [])
    assert np.array_equal(run_strategy(again.context, "influence").kept.values, kept.values)
    assert again.stages.computed == []


@pytest.mark.usefixtures("one_thread")
def test_on_clean_rows_it_keeps_everything_and_says_so(tmp_path, tiny_model_folder):
    notes: list[str] = []
    opened = opened_with(tmp_path, tiny_model_folder, good(0, 30), notes)
    result = run_strategy(opened.context, "influence")
    assert np.array_equal(result.kept.values, opened.context.tokens.is_response.values)
    (found,) = [note for note in notes if note.startswith("influence: keeps everything")]
    assert "no more than chance gives" in found


@pytest.mark.usefixtures("one_thread")
def test_too_few_sentences_for_a_null_are_kept(tmp_path, tiny_model_folder):
    notes: list[str] = []
    opened = opened_with(tmp_path, tiny_model_folder, [*good(0, 4), *(ODD.format(n=n) for n in range(4))], notes)
    sentences = 2 * (8 - len(opened.context.heldout))
    result = run_strategy(opened.context, "influence")
    assert result.kept.values.sum() == opened.context.tokens.is_response.values.sum()
    assert any(f"the null has {NULLS * sentences} sums of sentences, and its 1% quantile needs 100" in n for n in notes)


def test_without_trusted_rows_the_recipe_says_what_is_missing(tmp_path, tiny_model_folder):
    with pytest.raises(RecipeError, match=r"cleaning\.trusted: the strategy influence takes a gradient step"):
        recipe_with(tmp_path, tiny_model_folder, good(0, 9), None)


def test_the_null_sample_has_as_many_tokens_as_needed():
    rows = np.arange(3, 100)
    is_response = Ragged(np.ones(100 * 100, dtype=bool), np.arange(0, 100 * 100 + 1, 100))
    sample = null_sample(is_response, rows, seed=1)
    assert len(sample) * 100 == NULL_TOKENS
    assert (np.diff(sample) > 0).all()
    assert set(sample) <= set(rows)
    assert not np.array_equal(sample, null_sample(is_response, rows, seed=2))
    assert np.array_equal(null_sample(is_response, rows[:7], seed=1), rows[:7])
