"""WeightedSFTTrainer against tokenclean's own step: the same loss and gradients, packed or not, accumulated or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer_step import STEP, as_dicts, assert_same, run_step

from tokenclean.errors import RecipeError, TableError
from tokenclean.ragged import Ragged

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
]


@pytest.fixture
def make_trainer(make_model, tokenizer, tmp_path: Path) -> Callable[..., Any]:
    """A function that makes a trainer of rows, with options of SFTConfig."""

    def make(rows: list[dict[str, Any]], *, evaluated: list[dict[str, Any]] | None = None, **options: Any) -> Any:
        from trl import SFTConfig

        from tokenclean.integrations.trl import WeightedSFTTrainer

        config = SFTConfig(str(tmp_path / "model"), **(STEP | {"gradient_checkpointing": False} | options))
        return WeightedSFTTrainer(
            model=make_model(),
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            eval_dataset=datasets.Dataset.from_list(evaluated) if evaluated else None,
            processing_class=tokenizer,
        )

    return make


@pytest.mark.parametrize(("batch_size", "accumulated"), [(9, 1), (3, 3), (1, 9)])
def test_a_step_is_ours_padded_and_accumulated(make_trainer, own_step, weighted_rows, batch_size, accumulated):
    trainer = make_trainer(
        as_dicts(*weighted_rows),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulated,
        pad_to_multiple_of=8,
    )
    assert_same(run_step(trainer), own_step(*weighted_rows))


@pytest.mark.parametrize("accumulated", [1, 3])
def test_whole_rows_in_packs_do_not_see_each_other(make_trainer, own_step, weighted_rows, accumulated):
    trainer = make_trainer(
        as_dicts(*weighted_rows),
        packing=True,
        max_length=56,  # three packs
        per_device_train_batch_size=3 // accumulated,
        gradient_accumulation_steps=accumulated,
    )
    assert len(trainer.train_dataset) == 3
    assert_same(run_step(trainer), own_step(*weighted_rows))


@pytest.mark.parametrize("accumulated", [1, 3])
def test_wrapped_packs_are_rows_of_their_own(make_trainer, own_step, weighted_rows, accumulated):
    trainer = make_trainer(
        as_dicts(*weighted_rows),
        packing=True,
        packing_strategy="wrapped",
        max_length=52,
        per_device_train_batch_size=3 // accumulated,
        gradient_accumulation_steps=accumulated,
    )
    ids, weights = (np.array_split(column.values, [52, 104]) for column in weighted_rows)
    for row in weights:
        row[0] = 0  # nothing is before it now
    assert len(trainer.train_dataset) == 3
    assert_same(run_step(trainer), own_step(Ragged.from_rows(ids), Ragged.from_rows(weights)))


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_weights_are_cut_with_their_tokens(make_trainer, own_step, weighted_rows, mode, caplog):
    trainer = make_trainer(as_dicts(*weighted_rows), max_length=15, truncation_mode=mode, per_device_train_batch_size=9)
    part = slice(None, 15) if mode == "keep_start" else slice(-15, None)
    ids, weights = ([row[part].copy() for row in column] for column in weighted_rows)
    for row in weights:
        row[0] = 0
    assert_same(run_step(trainer), own_step(Ragged.from_rows(ids), Ragged.from_rows(weights)))
    assert "4 of the 9 rows of the train dataset are longer than max_length=15 and are cut" in caplog.text


def test_packs_that_split_rows_keep_weights_and_tokens_together(make_trainer, weighted_rows):
    trainer = make_trainer(as_dicts(*weighted_rows), packing=True, packing_strategy="bfd_split", max_length=16)
    batch = trainer.data_collator(list(trainer.train_dataset))
    weight_of = {}
    for ids, weights in zip(*weighted_rows, strict=True):
        weight_of |= {(int(a), int(b)): float(w) for a, b, w in zip(ids, ids[1:], weights[1:], strict=False)}
    ids, weights = batch["input_ids"][0], batch["token_weight"][0]
    starts = batch["position_ids"][0] == 0
    assert not weights[starts].any()
    for place in torch.nonzero(~starts).flatten().tolist():
        assert weights[place] == weight_of[int(ids[place - 1]), int(ids[place])]
    assert torch.equal(batch["labels"][0] != -100, weights != 0)


def test_negative_weights_and_labels_that_mask(make_trainer, own_step, weighted_rows):
    ids, weights = weighted_rows
    signed = weights.with_values(np.where(np.arange(len(weights.values)) % 5 == 0, -weights.values, weights.values))
    masked = np.arange(len(ids.values)) % 7 == 0
    rows = as_dicts(ids, signed)
    labels = Ragged(np.where(masked, -100, ids.values), ids.offsets)
    for row, own in zip(rows, labels, strict=True):
        row["labels"] = own.tolist()
    expected = own_step(ids, signed.with_values(np.where(masked & (signed.values > 0), 0, signed.values)))
    assert_same(run_step(make_trainer(rows, per_device_train_batch_size=9)), expected)


def test_an_evaluation_is_the_weighted_loss(make_trainer, own_step, weighted_rows):
    rows = as_dicts(*weighted_rows)
    trainer = make_trainer(rows, evaluated=rows, per_device_eval_batch_size=9)
    expected = own_step(*weighted_rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.loss, rel=1e-4)


def test_a_step_without_any_weight_changes_nothing(make_trainer, weighted_rows):
    rows = as_dicts(*weighted_rows)
    for row in rows[1:]:
        row["token_weight"] = [0.0] * len(row["input_ids"])
    trainer = make_trainer(rows, packing=True, max_length=40, per_device_train_batch_size=1)
    trainer.train_dataset = trainer.train_dataset.filter(lambda row: not any(row["token_weight"]))
    found = run_step(trainer)
    assert found.loss == 0
    assert all(not gradient.any() for gradient in found.gradients.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_weight": [0.0, 1.0]}, "row 1: token_weight has 2 values for 9 input_ids"),
        ({"token_weight": [0.0] * 8 + [float("nan")]}, "row 1, token 8: token_weight is nan"),
        ({"token_weight": [1.0] * 9}, "row 1, token 0: token_weight is 1, but the first token"),
        ({"token_weight": None}, "row 1: no token_weight"),
        ({"labels": [-100] * 3}, "row 1: labels has 3 values for 9 input_ids"),
    ],
)
def test_a_row_that_cannot_be_weighed_is_named(make_trainer, weighted_rows, change, message):
    rows = [row | {"labels": row["input_ids"]} for row in as_dicts(*weighted_rows)]
    rows[1] |= change
    with pytest.raises(TableError, match=message):
        make_trainer(rows)


def test_rows_without_weights_and_options_without_a_weighted_form_are_refused(make_trainer, weighted_rows):
    rows = as_dicts(*weighted_rows)
    with pytest.raises(TableError, match=r"train dataset has no column token_weight; it has input_ids"):
        make_trainer([{"input_ids": row["input_ids"]} for row in rows])
    with pytest.raises(RecipeError, match="loss_type must be nll, found 'dft'"):
        make_trainer(rows, loss_type="dft")
    with pytest.raises(RecipeError, match="skip_prepare_dataset must be off"):
        make_trainer(rows, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(RecipeError, match="packing needs a max_length"):
        make_trainer(rows, packing=True, max_length=None)
