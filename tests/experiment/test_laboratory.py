"""The laboratory's trainings on a tiny model: held-out rows that are given, and corrected rows as a strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenclean import load_pool
from tokenclean.cleaning.token_passages import find_passages
from tokenclean.errors import PoolError
from tokenclean.experiment.known_noise import corrected
from tokenclean.experiment.laboratory import (
    Laboratory,
    hold_out,
    measure_detectors,
    measure_margins,
    open_laboratory,
    train_effects,
)
from tokenclean.experiment.laboratory_columns import score_columns
from tokenclean.lab import NoiseSettings, plant
from tokenclean.lab.edits import sentence_spans, word_spans
from tokenclean.lab.passages import FUNCTION_WORDS
from tokenclean.lab.truth import TruthPool, truth_of_planted
from tokenclean.models.loading.load import load_model
from tokenclean.observer import Observer
from tokenclean.pool import Pool
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.scoring.scorer import Scorer
from tokenclean.store import Store
from tokenclean.tokens.other_prompts import foreign_prompts, prompts_of, replace_prompts


def recipe_of(pool: Path, model: Path, output: Path) -> Recipe:
    return recipe_from(
        {
            "preset": "quick",
            "output": str(output),
            "pool": {"sources": [{"path": str(pool)}], "heldout": {"rows": 8}},
            "model": {"base": str(model)},
            "cleaning": {"strategy": "full_tokens"},
            "training": {"minimum_steps": 2, "lora": {"rank": 2}},
            "evaluation": {"controls": []},
        }
    )


@pytest.fixture(scope="module")
def truth(small_pool: Path) -> TruthPool:
    clean = load_pool(small_pool).take(range(40))
    return truth_of_planted(clean, plant(clean, {"corrupted": NoiseSettings(row_share=0.5)}, seed=1))


@pytest.fixture(scope="module")
def laboratory(
    truth: TruthPool, small_pool: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path_factory.mktemp("runs"))
    store = Store(recipe.folder)
    with store.lock():
        yield open_laboratory(recipe, *hold_out(truth, recipe), observer=Observer(), store=store)


def test_all_conditions_are_trained_and_their_margins_are_of_the_same_pairs(laboratory: Laboratory, truth: TruthPool):
    assert (len(laboratory.context.tokens), len(laboratory.context.heldout)) == (32, 8)
    measured, results = train_effects(laboratory)
    assert [result.strategy for result in results] == ["full_tokens", "oracle", "random_mask", "corrected"]
    assert [line.name for line in measured] == ["base", *(result.strategy for result in results)]
    margins = measure_margins(laboratory, {result.strategy: result.model for result in results})
    assert {len(of_model) for of_model in margins.values()} == {len(laboratory.pairs.rows)}
    assert not np.array_equal(margins["oracle"], margins["corrected"])


def test_corrected_rows_train_as_full_tokens_of_the_clean_pool(
    laboratory: Laboratory, truth: TruthPool, small_pool: Path, tiny_model_folder: Path, tmp_path: Path
):
    """The same training as on a pool that never had noise, but for the one row in which noise was left."""
    _, results = train_effects(laboratory)
    model = next(result.model for result in results if result.strategy == "corrected")
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path)
    training, heldout = hold_out(truth, recipe)
    conversations = tuple(row for row in training.clean if row is not None)
    row = training.spans[0].row
    noisy = replace(training.pool, conversations=(*conversations[:row], training.pool[row], *conversations[row + 1 :]))
    spans = tuple(span for span in training.spans if span.row == row)
    store = Store(recipe.folder)
    with store.lock():
        mostly_clean = TruthPool(noisy, spans, conversations)
        other = open_laboratory(recipe, mostly_clean, heldout, observer=Observer(), store=store)
        again = corrected(Pool(conversations))(other.context)
        assert again.kept is None
        assert again.model.identity == model.identity
        with pytest.raises(ValueError, match="a corrected row for each of 32 rows, got 31"):
            corrected(Pool(conversations[1:]))(other.context)


@pytest.fixture(scope="module")
def untrained(
    truth: TruthPool, small_pool: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """Eleven rows of one source and one of another."""
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path_factory.mktemp("runs"))
    store = Store(recipe.folder)
    part = truth.take(range(12))
    rows = tuple(replace(row, source="one" if number < 11 else "other") for number, row in enumerate(part.pool))
    with store.lock():
        yield open_laboratory(recipe, replace(part, pool=Pool(rows)), observer=Observer(), store=store)


def test_the_columns_are_those_of_rows_scored_alone(untrained: Laboratory, tiny_model_folder: Path):
    scored = score_columns(untrained, with_prompt_passes=True)
    columns, tokens = scored.columns, untrained.context.tokens
    scorer = Scorer(load_model(str(tiny_model_folder)), columns=("entropy", "collision"))

    def after(prompt: np.ndarray, row: int) -> dict[str, np.ndarray]:
        [own] = prompts_of(tokens.take([row]))
        assert own is not None
        found = scorer.score(replace_prompts(tokens.take([row]), [prompt]))
        return {name: column.values[-(tokens.input_ids.lengths[row] - len(own)) :] for name, column in found.items()}

    foreign = foreign_prompts(tokens, 4, untrained.context.recipe.tokens.max_length)
    assert columns.foreign_losses is not None
    for row, (prompt, others) in enumerate(zip(prompts_of(tokens), foreign, strict=True)):
        assert prompt is not None
        assert (others is None) == (row == 11)
        expected = {f"foreign {n}": after(other, row)["loss"] for n, other in enumerate(others or ())}
        expected |= after(prompt, row) | {"without": after(prompt[-1:], row)["loss"]}
        got = {f"foreign {n}": column for n, column in enumerate(columns.foreign_losses)}
        got |= {"loss": columns.base_loss, "without": columns.unconditional_loss}
        got |= {"entropy": columns.entropy, "collision": columns.collision}
        for name, values in expected.items():
            np.testing.assert_allclose(got[name][row][len(prompt) :], values, atol=2e-3, err_msg=name)
            assert np.isnan(got[name][row][: len(prompt)]).all()
    whats = ["rows", "answers without prompt", *(f"answers after foreign prompt {n}" for n in range(1, 5))]
    assert [one.what for one in scored.passes] == whats
    prompts = sum(len(prompt) for prompt in prompts_of(tokens) if prompt is not None)
    total = len(tokens.input_ids.values)
    assert [one.tokens for one in scored.passes[:2]] == [total, total - prompts + len(tokens)]
    assert [one.rows for one in scored.passes] == [12, 12, 11, 11, 11, 11]
    assert all(np.isnan(column[11]).all() for column in columns.foreign_losses)
    names = set(measure_detectors(columns, untrained.labels, "clause"))
    assert names >= {"conflict", "conflict + fill", "mismatch", "mismatch_by_sentence", "ent", "pmi", "t_shirt"}
    assert not any(name.startswith(("mismatch", "base_loss", "repetition")) and "fill" in name for name in names)


def test_without_prompt_passes_only_the_rows_are_scored(untrained: Laboratory):
    scored = score_columns(untrained, with_prompt_passes=False)
    assert [one.what for one in scored.passes] == ["rows"]
    names = set(measure_detectors(scored.columns, untrained.labels))
    assert {"conflict", "ent", "eaft", "stm"} <= names
    assert names.isdisjoint({"mismatch", "mismatch_by_sentence", "pmi", "t_shirt", "conflict + fill"})


def test_trusted_rows_give_their_influence_and_a_reference(small_pool: Path, tiny_model_folder: Path, tmp_path: Path):
    checked = tmp_path / "checked.jsonl"
    lines = small_pool.read_text(encoding="utf-8").splitlines(keepends=True)
    checked.write_text("".join(lines[40:56]), encoding="utf-8")
    values = recipe_of(small_pool, tiny_model_folder, tmp_path).model_dump(mode="json")
    values["cleaning"]["trusted"] = str(checked)
    recipe = recipe_from(values)
    clean = load_pool(small_pool).take(range(20))
    planted = truth_of_planted(clean, plant(clean, {"corrupted": NoiseSettings(row_share=0.5)}, seed=1))
    store, notes = Store(recipe.folder), []
    with store.lock():
        laboratory = open_laboratory(recipe, planted, observer=Observer(note=notes.append), store=store)
        scored = score_columns(laboratory, with_prompt_passes=False)
    columns, tokens = scored.columns, laboratory.context.tokens
    assert len(tokens) == 20  # the trusted rows are not among them
    assert columns.influence is not None
    assert columns.passages is not None
    is_judged = (columns.passages.sentence.values >= 0) & tokens.is_response.values
    assert np.array_equal(np.isfinite(columns.influence.standardized.values), is_judged)
    assert {"influence", "fixed_model", "rho"} <= set(measure_detectors(columns, laboratory.labels))
    total = len(tokens.input_ids.values)
    assert [(one.what, one.tokens) for one in scored.passes] == [
        ("rows", total),
        ("rows, for the step on trusted rows", 2 * total),
        ("its null", 16 * total),
        ("rows, for the score against the reference", 2 * total),
    ]
    assert any("of 16 rows lowers their loss" in note for note in notes)
    assert any(note.startswith("influence: ") and "below the null's 1% quantile" in note for note in notes)


def test_passages_are_those_of_the_text(untrained: Laboratory):
    tokens, pool = untrained.context.tokens, untrained.context.data.pool
    passages, decode = find_passages(tokens, pool), untrained.context.data.tokenizer.decode
    sentences = 0
    for row, conversation in enumerate(pool):
        ids, numbers = tokens.input_ids[row], passages.sentence[row]
        expected = [
            turn.content[start:end]
            for turn in conversation.turns
            if turn.role == "assistant"
            for start, end in sentence_spans(turn.content)
        ]
        found = [decode(ids[numbers == number]).strip() for number in np.unique(numbers[numbers >= 0])]
        assert found == expected
        sentences += len(expected)
        begins = np.flatnonzero(passages.begins_content_word[row])
        texts = [decode(ids[place : place + 12]) for place in begins]
        words = [text[slice(*word_spans(text)[0])].lower() for text in texts]
        assert words
        assert FUNCTION_WORDS.isdisjoint(words)
        assert (passages.sentence[row][passages.begins_content_word[row]] >= 0).all()
        clauses = passages.clause[row]
        assert not any(decode([token]).strip() for token in ids[(numbers >= 0) & (clauses < 0)])
        assert (np.diff(clauses[clauses >= 0]) >= 0).all()
    assert passages.sentence.values.max() + 1 == sentences < passages.clause.values.max() + 1


def test_without_a_clean_version_of_every_row_nothing_is_corrected(
    truth: TruthPool, small_pool: Path, tiny_model_folder: Path, tmp_path: Path
):
    recipe = recipe_of(small_pool, tiny_model_folder, tmp_path)
    training, heldout = hold_out(truth, recipe)
    row = training.spans[0].row
    unknown = replace(training, clean=(*training.clean[:row], None, *training.clean[row + 1 :]))
    store = Store(recipe.folder)
    with store.lock():
        found = open_laboratory(recipe, unknown, heldout, observer=Observer(), store=store)
        _, results = train_effects(found)
        assert [result.strategy for result in results] == ["full_tokens", "oracle", "random_mask"]
        with pytest.raises(PoolError, match="1 of 32 rows have no clean version"):
            open_laboratory(recipe, training, unknown, observer=Observer(), store=store)
