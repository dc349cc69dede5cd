"""Prompt permutation as a strategy, on a tiny model that has learned which answer belongs to which prompt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tokenclean import load_pool
from tokenclean.cleaning import run_strategy
from tokenclean.cleaning.open_run import OpenRun, open_run
from tokenclean.cleaning.strategy_result import weights_of
from tokenclean.models.loading.load import ModelSource, load_tokenizer
from tokenclean.observer import Observer
from tokenclean.recipe import TrainingSettings, recipe_from
from tokenclean.tokens import tokenize_pool
from tokenclean.training.fine_tune import train

WORDS = ("iron", "salt", "wool", "clay", "sand", "rope", "wood", "milk", "corn", "bone", "silk", "lead")


def write_rows(path: Path, words: list[tuple[str, str]], source: str = "") -> Path:
    """Rows of an asked and an answered word."""
    rows = [
        {
            "id": f"{path.stem}-{number}",
            "messages": [
                {"role": "user", "content": f"Say {asked} ({number:03})"},
                {"role": "assistant", "content": f"It is {' and '.join([said] * 4)}."},
            ],
        }
        for number, (asked, said) in enumerate(words)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def right(count: int) -> list[tuple[str, str]]:
    return [(WORDS[n % len(WORDS)],) * 2 for n in range(count)]


def wrong(count: int) -> list[tuple[str, str]]:
    return [(WORDS[n % len(WORDS)], WORDS[(n + 1 + n // len(WORDS)) % len(WORDS)]) for n in range(count)]


@pytest.fixture(scope="module")
def taught_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after a training on right answers."""
    folder = tmp_path_factory.mktemp("taught")
    pool = load_pool(write_rows(folder / "rows.jsonl", right(240)))
    tokens = tokenize_pool(pool, load_tokenizer(str(tiny_model_folder)))
    settings = TrainingSettings(
        method="full", learning_rate=1e-2, batch_size=20, epochs=24, max_grad_norm=1, precision="exact"
    )
    train(
        ModelSource(str(tiny_model_folder)),
        tokens.input_ids,
        weights_of(tokens.is_response),
        settings,
        folder / "m",
        seed=0,
    )
    return folder / "m"


def opened_with(
    folder: Path, model: Path, rows: list[tuple[str, str]], notes: list[str], trusted: Path | None = None
) -> OpenRun:
    recipe = recipe_from(
        {
            "output": str(folder / "runs"),
            "pool": {
                "sources": [{"path": str(write_rows(folder / "pool.jsonl", rows))}],
                "heldout": {"rows": 2, "max_share": 0.5},
            },
            "model": {"base": str(model)},
            "cleaning": {"strategy": "mismatch", "splits": 2, "trusted": trusted and str(trusted)},
            "scoring": {"precision": "exact"},
            "training": {"batch_size": 16, "lora": {"rank": 4}},
        }
    )
    return open_run(recipe, Observer(note=notes.append))


def dropped_rows(opened: OpenRun) -> list[bool]:
    """Of each training row whether it lost all its tokens; asserts that none lost some."""
    kept = run_strategy(opened.context, "mismatch").kept
    assert kept is not None
    counts = kept.row_sums()
    assert np.isin(counts, [0, *opened.context.tokens.is_response.row_sums()]).all()
    assert ((counts == 0) | (counts == opened.context.tokens.is_response.row_sums())).all()
    return (counts == 0).tolist()


@pytest.mark.usefixtures("one_thread")
def test_rows_with_the_answer_to_another_prompt_are_dropped_and_a_second_run_computes_nothing(tmp_path, taught_folder):
    notes: list[str] = []
    rows = [*right(72), *wrong(24)]
    opened = opened_with(tmp_path, taught_folder, rows, notes)
    dropped = dropped_rows(opened)
    texts = {row.id: [turn.content for turn in row.turns] for row in opened.context.data.pool}
    is_right = [texts[id][0].split()[1] in texts[id][1] for id in opened.context.tokens.ids]
    assert 20 <= is_right.count(False) <= 24  # but for those held out
    right_dropped = sum(drop and right for drop, right in zip(dropped, is_right, strict=True))
    wrong_dropped = sum(drop and not right for drop, right in zip(dropped, is_right, strict=True))
    assert wrong_dropped > 0.6 * is_right.count(False)
    assert right_dropped < 0.1 * is_right.count(True)  # the tiny model has not learned all words alike
    (found,) = [note for note in notes if note.startswith("mismatch: ")]
    assert found.startswith(f"mismatch: {right_dropped + wrong_dropped} of {len(dropped)} rows dropped")

    again = opened_with(tmp_path, taught_folder, rows, [])
    assert dropped_rows(again) == dropped
    assert again.stages.computed == []


@pytest.mark.usefixtures("one_thread")
def test_right_and_trusted_rows_are_kept(tmp_path, taught_folder):
    trusted = write_rows(tmp_path / "trusted.jsonl", wrong(12))
    notes: list[str] = []
    opened = opened_with(tmp_path, taught_folder, right(72), notes, trusted)
    assert len(opened.context.data.trusted) == 12
    assert not any(dropped_rows(opened))
    others = len(opened.context.tokens) - 12
    assert any(note.startswith(f"mismatch: 0 of {others} rows dropped") for note in notes)


def test_rows_with_too_few_other_prompts_are_kept_and_counted(tmp_path, tiny_model_folder):
    notes: list[str] = []
    opened = opened_with(tmp_path, tiny_model_folder, right(6), notes)
    assert not any(dropped_rows(opened))
    assert any(
        note.startswith("mismatch: 4 of 4 rows not judged, since their source has fewer than 4") for note in notes
    )
