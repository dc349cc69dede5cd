"""WeightedTrainer, transformers' own Trainer with weights, against tokenclean's own step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_step import STEP, as_dicts, assert_same, run_step

from tokenclean.errors import RecipeError, TableError

datasets = pytest.importorskip("datasets")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
]


@pytest.fixture
def make_trainer(make_model, tmp_path: Path) -> Callable[..., Any]:
    """A function that makes a trainer of rows, with options of TrainingArguments."""

    def make(rows: list[dict[str, Any]], *, collator: Any = None, loss: Any = None, **options: Any) -> Any:
        from transformers import TrainingArguments

        from tokenclean.integrations.transformers import WeightedCollator, WeightedTrainer

        dataset = datasets.Dataset.from_list(rows)
        return WeightedTrainer(
            model=make_model(),
            args=TrainingArguments(str(tmp_path / "model"), **(STEP | options)),
            train_dataset=dataset,
            eval_dataset=dataset,
            data_collator=collator or WeightedCollator(pad_token_id=0, pad_to_multiple_of=8),
            compute_loss_func=loss,
        )

    return make


@pytest.mark.parametrize(("batch_size", "accumulated"), [(9, 1), (3, 3), (1, 9)])
@pytest.mark.parametrize("removes", [True, False])
def test_a_step_is_ours(make_trainer, own_step, weighted_rows, batch_size, accumulated, removes):
    trainer = make_trainer(
        as_dicts(*weighted_rows),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulated,
        remove_unused_columns=removes,
    )
    assert_same(run_step(trainer), own_step(*weighted_rows))


def test_an_evaluation_is_the_weighted_loss(make_trainer, own_step, weighted_rows):
    trainer = make_trainer(as_dicts(*weighted_rows), per_device_eval_batch_size=9)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own_step(*weighted_rows).loss, rel=1e-4)


def test_padding_has_no_weight_and_an_end_that_is_the_padding_id_keeps_its_own(weighted_rows):
    from tokenclean.integrations.transformers import WeightedCollator

    rows = as_dicts(*weighted_rows)[:2]
    batch = WeightedCollator(pad_token_id=0, pad_to_multiple_of=16)(rows)
    assert {name: tuple(column.shape) for name, column in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels", "token_weight"), (2, 32)
    )
    assert batch["attention_mask"].sum(1).tolist() == [23, 9]
    assert (batch["labels"][1, 8], batch["token_weight"][1, 8]) == (0, 0.5)
    assert torch.equal(batch["labels"] != -100, batch["token_weight"] != 0)
    assert not batch["token_weight"][batch["attention_mask"] == 0].any()


def test_what_would_change_the_loss_is_refused(make_trainer, weighted_rows):
    from transformers import default_data_collator

    rows = as_dicts(*weighted_rows)
    with pytest.raises(RecipeError, match="data_collator must be a WeightedCollator"):
        make_trainer(rows, collator=default_data_collator)
    with pytest.raises(RecipeError, match="label_smoothing_factor must be 0"):
        make_trainer(rows, label_smoothing_factor=0.1)
    with pytest.raises(RecipeError, match="compute_loss_func must be None"):
        make_trainer(rows, loss=lambda *_: None)


def test_a_plain_trainer_that_drops_the_weights_says_so(make_model, weighted_rows, tmp_path):
    from transformers import Trainer, TrainingArguments

    from tokenclean.integrations.transformers import WeightedCollator

    trainer = Trainer(
        model=make_model(),
        args=TrainingArguments(str(tmp_path / "model"), **STEP),
        train_dataset=datasets.Dataset.from_list(as_dicts(*weighted_rows)),
        data_collator=WeightedCollator(pad_token_id=0),
    )
    with pytest.raises(TableError, match="drops token_weight where remove_unused_columns is true"):
        trainer.train()
