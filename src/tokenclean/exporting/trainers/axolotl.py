"""The form of axolotl for rows that are tokenized already."""

from __future__ import annotations

from pathlib import Path

from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.configuration import fill

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
sample_packing: false  # true packs whole rows; set attn_implementation with it, or they may see each other
output_dir: model
"""


def write_axolotl(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``train.parquet`` with ``input_ids``, ``attention_mask`` and ``labels``, and ``train.yaml``.

    axolotl takes the rows as tokenized already. By default it drops rows longer than ``sequence_len``; the
    configuration makes that an error.
    """
    cleaned.write_columns(("input_ids", "attention_mask", "labels"), folder / "train.parquet")
    fill(_AXOLOTL, folder / "train.yaml", card, cleaned.longest_row_tokens)
    return "axolotl train train.yaml"
