"""The rows that a trainer would feed its model, made from a file by the trainer's own data code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenclean.errors import PoolError, RecipeError, needs_extra

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 8
_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True, eq=False)
class TokenRow:
    """``input_ids`` and ``labels``, int64 (L,), −100 for a token that is not trained."""

    input_ids: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class TrainerRows:
    """What a trainer makes of a file.

    ``trainer``: its name and version. ``whole``: every row of the file as it tokenizes and labels it, before anything
    is cut. ``fed``: the rows that reach the model, out of their batches and packs, without padding. ``max_length``:
    tokens at which it cuts, None for no cut. ``joins_rows``: rows of one pack see each other, and ``fed`` are packs.
    """

    trainer: str
    whole: tuple[TokenRow, ...]
    fed: tuple[TokenRow, ...]
    max_length: int | None
    joins_rows: bool = False


def read_trl(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, packing: str | None, max_rows: int | None
) -> TrainerRows:
    """As TRL's SFTTrainer with its default options: ``max_length`` is its own default (1,024) for None; ``packing``:
    ``bfd``, ``wrapped``, or None for none. Raises MissingExtraError, PoolError, RecipeError."""
    with needs_extra("trl>=1.16", "trl", "--trainer trl"):
        import trl
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer
    dataset = _load(path, max_rows)
    if packing not in (None, "bfd", "wrapped"):
        raise RecipeError(f"packing: found {packing!r}, expected TRL's bfd or wrapped", "options")

    def prepare(folder: str, **options: Any) -> tuple[SFTTrainer, Any]:
        config = SFTConfig(folder, report_to="none", use_cpu=True, bf16=False, **options)
        model: Any = _smallest_model(tokenizer)
        trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
        return trainer, trainer.train_dataset

    with TemporaryDirectory() as folder:
        whole = prepare(folder, max_length=None)[1]
        options: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        if packing is not None:
            options |= {"packing": True, "packing_strategy": packing}
        trainer, rows = prepare(folder, **options)
        fed = tuple(_fed_rows(trainer.data_collator, rows))
    arguments: Any = trainer.args
    whole_rows = tuple(map(_token_row, whole))
    return TrainerRows(f"trl {trl.__version__}", whole_rows, fed, arguments.max_length, packing == "wrapped")


def read_transformers(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, packing: str | None, max_rows: int | None
) -> TrainerRows:
    """As transformers' Trainer with the collators for causal models: DataCollatorForSeq2Seq for rows with ``labels``,
    else DataCollatorForLanguageModeling, on ``input_ids``, on ``text``, or on ``messages`` under the tokenizer's chat
    template. Raises PoolError for rows without any of them, RecipeError for ``packing``, which it has none of."""
    import transformers
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

    if packing is not None:
        raise RecipeError("packing: transformers' Trainer has none; leave the option out", "options")
    dataset = _load(path, max_rows)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # without it the collators refuse, so everybody sets it so
    names = dataset.column_names
    if "labels" in names:
        collator: Callable[..., Any] = DataCollatorForSeq2Seq(tokenizer)
    else:
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows: list[dict[str, Any]] = dataset.to_list()
    whole = [_encode(row, tokenizer, f"{path}: row {number}") for number, row in enumerate(rows)]
    columns = ("input_ids", "labels")
    cut = [{name: row[name][:max_length] for name in columns if name in row} for row in whole]
    return TrainerRows(
        f"transformers {transformers.__version__}",
        tuple(map(_token_row, whole)),
        tuple(_fed_rows(collator, cut)),
        max_length,
    )


TRAINERS: dict[str, Callable[..., TrainerRows]] = {"trl": read_trl, "transformers": read_transformers}


def _load(path: Path, max_rows: int | None) -> Dataset:
    """The file as these trainers' users load it."""
    with needs_extra("datasets", "datasets", "--trainer"):
        from datasets import disable_progress_bars, load_dataset
    disable_progress_bars()
    if path.suffix not in _KINDS or not path.is_file():
        raise PoolError(f"{path}: --trainer takes one file, {', '.join(_KINDS)}, as `datasets.load_dataset` loads it")
    split = "train" if max_rows is None else f"train[:{max_rows}]"
    with TemporaryDirectory() as cache:
        loaded: Any = load_dataset(_KINDS[path.suffix], data_files=str(path), split=split, cache_dir=cache)
        rows = loaded.to_list()
    if not rows:
        raise PoolError(f"{path}: holds no row")
    return type(loaded).from_list(rows, features=loaded.features)


def _encode(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, name: str) -> dict[str, list[int]]:
    if row.get("input_ids") is not None:
        return {key: list(row[key]) for key in ("input_ids", "labels") if row.get(key) is not None}
    if row.get("messages") is not None:
        made: Any = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)
        return {"input_ids": list(made["input_ids"])}
    if isinstance(row.get("text"), str):
        return {"input_ids": list(tokenizer(row["text"])["input_ids"])}
    raise PoolError(f"{name}: found {', '.join(row)}; expected input_ids, messages or text")


def _token_row(row: Mapping[str, Any]) -> TokenRow:
    ids = np.asarray(row["input_ids"], np.int64)
    return TokenRow(ids, np.asarray(row.get("labels", ids), np.int64))


def _fed_rows(collator: Callable[..., Any], rows: Sequence[Any]) -> Iterator[TokenRow]:
    """The rows of the collator's batches. Positions that begin at 0 again show the rows of a pack."""
    listed = list(rows)
    for start in range(0, len(listed), _BATCH_ROWS):
        batch = collator(listed[start : start + _BATCH_ROWS])
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        for number in range(len(ids)):
            length = int(batch["attention_mask"][number].sum()) if "attention_mask" in batch else len(ids[number])
            positions = batch["position_ids"][number].numpy() if "position_ids" in batch else np.arange(length)
            begins = [*np.flatnonzero(positions[:length] == 0).tolist(), length]
            for first, last in pairwise(begins):
                yield TokenRow(ids[number, first:last].astype(np.int64), labels[number, first:last].astype(np.int64))


def _smallest_model(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A model of the tokenizer's vocabulary, since SFTTrainer is made with one; nothing is computed with it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes))
