"""The form of LLaMA-Factory 0.9: a tokenized dataset on disk."""

from __future__ import annotations

from pathlib import Path

from tokenclean.errors import MissingExtraError
from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.configuration import fill

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


def write_llamafactory(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``tokenized/`` (a DatasetDict with the split ``train``) and ``train.yaml``. Needs ``datasets``.

    LLaMA-Factory (0.9) reads the folder through ``tokenized_path``. Its collator pads every column it is given, so the
    columns are exactly ``input_ids``, ``attention_mask`` and ``labels``. It neither cuts nor packs tokenized rows,
    with any ``cutoff_len`` and ``packing``.
    """
    try:
        from datasets import Dataset, DatasetDict
        from datasets.table import InMemoryTable
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets", "the export for LLaMA-Factory") from error

    columns = cleaned.rows.select(["input_ids", "attention_mask", "labels"]).replace_schema_metadata(None)
    DatasetDict({"train": Dataset(InMemoryTable(columns))}).save_to_disk(str(folder / "tokenized"))
    fill(_LLAMAFACTORY, folder / "train.yaml", card, cleaned.longest_row_tokens)
    return "llamafactory-cli train train.yaml"
