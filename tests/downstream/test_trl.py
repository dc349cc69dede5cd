"""TRL's own SFTTrainer trains exactly the kept tokens of an export, each once."""

from __future__ import annotations

import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fed_rows import LENGTHS, Row, rows_fed, trained_tokens

from tokenclean.exporting import Card, export

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    # The trainer's own settings, which an export has no say in.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """The rows that reach the model in training, without padding and packing, as (input_ids, labels)."""
    from trl.trainer.sft_trainer import SFTTrainer

    rows: list[tuple[list[int], list[int]]] = []
    real = SFTTrainer.train

    def watch(_module: Any, _args: Any, batch: dict[str, Any]) -> None:
        if "position_ids" in batch:  # packed: rows one after another, positions from 0 in each
            starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
            ends = [*starts[1:], batch["input_ids"].shape[1]]
            spans = [(0, slice(start, end)) for start, end in zip(starts, ends, strict=True)]
        else:
            lengths = batch["attention_mask"].sum(1).tolist()
            spans = [(n, slice(0, length)) for n, length in enumerate(lengths)]
            assert all((batch["labels"][n, length:] == -100).all() for n, length in enumerate(lengths))
        rows.extend((batch["input_ids"][n, s].tolist(), batch["labels"][n, s].tolist()) for n, s in spans)

    def train(self: SFTTrainer) -> Any:
        self.args.num_train_epochs = 1
        assert self.model is not None
        self.model.register_forward_pre_hook(watch, with_kwargs=True)
        return real(self)

    monkeypatch.setattr(SFTTrainer, "train", train)
    return rows


@pytest.fixture
def run_script(
    cleaned_path: Path, card: Card, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Execute the exported script, changed by ``edit`` (old text, new text)."""

    def run(*options: str, edit: tuple[str, str] = ("", "")) -> None:
        export(cleaned_path, "trl", tmp_path / "export", card)
        script = tmp_path / "export" / "train.py"
        text = script.read_text(encoding="utf-8")
        assert edit[0] in text
        script.write_text(text.replace(*edit), encoding="utf-8")
        arguments = ["--model", str(tiny_model_folder), "--output", str(tmp_path / "model"), *options]
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        monkeypatch.setenv("TRACKIO_MODE", "disabled")
        runpy.run_path(str(script), run_name="__main__")

    return run


@pytest.mark.parametrize("options", [(), ("--packing",)])
def test_the_script_trains_every_kept_token_once_and_no_other(
    options: tuple[str, ...],
    run_script: Callable[..., None],
    fed: list[tuple[list[int], list[int]]],
    expected: Counter[Row],
) -> None:
    run_script(*options)
    assert rows_fed(fed) == expected


@pytest.mark.parametrize("options", [(), ("--packing",)])
def test_without_its_maximum_length_long_rows_lose_tokens(
    options: tuple[str, ...],
    run_script: Callable[..., None],
    fed: list[tuple[list[int], list[int]]],
    expected: Counter[Row],
) -> None:
    run_script(*options, edit=("    max_length=1384,\n", ""))
    found = rows_fed(fed)
    assert max(len(ids) for ids, _ in found) == 1024 < max(LENGTHS)
    assert 0 < trained_tokens(found) < trained_tokens(expected)
