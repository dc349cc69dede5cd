"""The cleaned data set in each trainer's own form: one template and one function a trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenclean.errors import MissingExtraError
from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card

_TRL = '''\
"""Fine-tune on these token labels with TRL: python train.py [--packing] [--model NAME] [--output FOLDER].

Written by tokenclean. The ids and labels are final: TRL adds no chat template and no token to them.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--model", default={model}, help="base model, with the tokenizer that made the ids")
parser.add_argument("--revision", default={revision}, help="the model's branch, tag or commit")
parser.add_argument("--output", default="model", help="folder of the trained model")
parser.add_argument("--packing", action="store_true", help="several whole rows in one sequence")
options = parser.parse_args()

rows = load_dataset("parquet", data_files=str(Path(__file__).with_name("train.parquet")), split="train")
config = SFTConfig(
    output_dir=options.output,
    # The longest row has {longest} tokens. TRL cuts longer rows at max_length without a word (default: 1024).
    max_length={max_length},
    packing=options.packing,
    packing_strategy="bfd",  # keeps rows whole; "wrapped" and "bfd_split" cut them
    completion_only_loss=True,  # TRL before 1.7 reads completion_mask, which marks the same tokens as labels
    bf16=is_torch_bf16_gpu_available(),  # TRL's default, where the machine can
    model_init_kwargs={{"revision": options.revision}},
)
trainer = SFTTrainer(model=options.model, args=config, train_dataset=rows)
trainer.train()
trainer.save_model()
'''

_LLAMAFACTORY = """\
# Fine-tune on these token labels with LLaMA-Factory, from inside this folder: llamafactory-cli train train.yaml
# Written by tokenclean. The ids and labels are final; add learning rate, epochs and batch size of your own.
model_name_or_path: {model}
model_revision: {revision}
stage: sft
do_train: true
finetuning_type: lora
tokenized_path: tokenized
# LLaMA-Factory asks for a name here and, having tokenized_path, reads nothing under it.
dataset: tokenclean
# The rows were rendered with the template {template}. Any template but `empty` may add tokens to the vocabulary.
template: empty
# The longest row has {longest} tokens. LLaMA-Factory itself cuts no tokenized row.
cutoff_len: {max_length}
output_dir: model
"""

_AXOLOTL = """\
# Fine-tune on these token labels with axolotl, from inside this folder: axolotl train train.yaml
# Written by tokenclean. The ids and labels are final; add adapter, learning rate, epochs and batch size of your own.
base_model: {model}
revision_of_model: {revision}
datasets:
  - path: train.parquet
    ds_type: parquet
    type:  # empty: the rows are tokenized already
# axolotl recognizes prepared rows by this file's path, not by its content, so they stay beside it.
dataset_prepared_path: prepared
val_set_size: 0
# The longest row has {longest} tokens. Longer rows are an error here; by default axolotl would drop them.
sequence_len: {max_length}
excess_length_strategy: raise
sample_packing: false  # true packs whole rows and needs flash attention
output_dir: model
"""


def write_trl(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``train.parquet`` (``input_ids``, ``labels``, ``completion_mask``) and ``train.py``, which trains on it.

    TRL's SFTTrainer (1.7 or later; 0.17 to 1.6 through ``completion_mask``) takes ``input_ids`` and ``labels`` as they
    are, adds neither template nor EOS, and ignores other columns. It cuts every row at ``max_length`` (default: 1,024),
    packing included.
    """
    cleaned.check_binary("TRL's SFTTrainer")
    cleaned.write_columns(("input_ids", "labels", "completion_mask"), folder / "train.parquet")
    _fill(_TRL, folder / "train.py", cleaned, card, quote=repr)
    return "python train.py"


def write_llamafactory(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``tokenized/`` (a DatasetDict with the split ``train``) and ``train.yaml``. Needs ``datasets``.

    LLaMA-Factory (0.9) reads the folder through ``tokenized_path``. Its collator pads every column it is given, so the
    columns are exactly ``input_ids``, ``attention_mask`` and ``labels``. It neither cuts nor packs tokenized rows,
    with any ``cutoff_len`` and ``packing``.
    """
    cleaned.check_binary("LLaMA-Factory")
    try:
        from datasets import Dataset, DatasetDict
        from datasets.table import InMemoryTable
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets", "the export for LLaMA-Factory") from error

    columns = cleaned.rows.select(["input_ids", "attention_mask", "labels"]).replace_schema_metadata(None)
    DatasetDict({"train": Dataset(InMemoryTable(columns))}).save_to_disk(str(folder / "tokenized"))
    _fill(_LLAMAFACTORY, folder / "train.yaml", cleaned, card)
    return "llamafactory-cli train train.yaml"


def write_axolotl(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``train.parquet`` with ``input_ids``, ``attention_mask`` and ``labels``, and ``train.yaml``.

    axolotl takes the rows as tokenized already. By default it drops rows longer than ``sequence_len``; the
    configuration makes that an error.
    """
    cleaned.check_binary("axolotl")
    cleaned.write_columns(("input_ids", "attention_mask", "labels"), folder / "train.parquet")
    _fill(_AXOLOTL, folder / "train.yaml", cleaned, card)
    return "axolotl train train.yaml"


def write_hf(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """A data-set repository of the Hub: one Parquet file, named as there, with every canonical column."""
    (folder / "data").mkdir()
    file = folder / "data" / "train-00000-of-00001.parquet"
    cleaned.write_columns(cleaned.rows.column_names, file, with_counts=True)
    return """python -c 'from datasets import load_dataset; print(load_dataset(".", split="train"))'"""


# A writer fills the folder and returns the command that trains on it, run from inside the folder.
WRITERS: dict[str, Callable[[CleanedDataset, Path, Card], str]] = {
    "trl": write_trl,
    "llamafactory": write_llamafactory,
    "axolotl": write_axolotl,
    "hf": write_hf,
}


def _fill(
    template: str, file: Path, cleaned: CleanedDataset, card: Card, *, quote: Callable[[str], str] = json.dumps
) -> None:
    """Write the template with its fields filled in: model and revision, chat template, longest row, maximum length.

    ``quote`` makes a string of the file's language, by default YAML, which reads JSON's strings.
    """
    filled = template.format(
        model=quote(card.base.seen_from(file.parent)),
        revision=quote(card.base.revision or "main"),
        template=quote(card.template),
        longest=cleaned.longest_row_tokens,
        max_length=cleaned.max_length,
    )
    file.write_text(filled, encoding="utf-8")
