"""LLaMA-Factory's and axolotl's way to tokenized rows, with the calls of their loaders, gives the kept tokens.

The trainers themselves cannot be installed beside this project's versions; ``make test-trainers`` runs them in
environments of their own.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from fed_rows import LENGTHS, Row, rows_fed

from tokenclean.exporting import Card, export

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.slow


def test_llamafactory_loads_exactly_three_columns_that_its_collator_can_pad(
    cleaned_path: Path, card: Card, tiny_model_folder: Path, expected: Counter[Row], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq

    folder = export(cleaned_path, "llamafactory", tmp_path / "out", card).folder
    config = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))
    stored = datasets.load_from_disk(str(folder / config["tokenized_path"]))
    assert list(stored) == ["train"]
    assert stored["train"].column_names == ["input_ids", "attention_mask", "labels"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.pad_token = tokenizer.eos_token
    # Its SFT collator is this one with more for images; it pads every column, and so a further one would fail.
    collator = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)
    batch = collator([dict(row) for row in stored["train"]])
    fed = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        assert (labels[length:] == -100).all()
        fed.append((ids[:length].tolist(), labels[:length].tolist()))
    assert rows_fed(fed) == expected


def test_axolotl_takes_the_rows_as_tokenized_and_drops_none(
    cleaned_path: Path, card: Card, expected: Counter[Row], tmp_path: Path
) -> None:
    folder = export(cleaned_path, "axolotl", tmp_path / "out", card).folder
    config = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))
    (source,) = config["datasets"]
    rows = datasets.load_dataset(source["ds_type"], data_files=str(folder / source["path"]), split="train")
    # These three names are its test for tokenized rows, which then skip the prompt strategy that `type` would name.
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    assert source["type"] is None
    assert rows_fed(zip(rows["input_ids"], rows["labels"], strict=True)) == expected
    assert config["sequence_len"] >= max(LENGTHS)
    assert min(map(len, rows["input_ids"])) >= 2  # it drops shorter rows


def test_the_hub_folder_loads_with_every_column(
    cleaned_path: Path, card: Card, expected: Counter[Row], tmp_path: Path
) -> None:
    folder = export(cleaned_path, "hf", tmp_path / "out", card).folder
    loaded = datasets.load_dataset(str(folder))
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert {"completion_mask", "token_weight", "id", "source"} < set(rows.column_names)
    assert rows_fed(zip(rows["input_ids"], rows["labels"], strict=True)) == expected
