"""The form of Megatron-Bridge: packed sequences with a loss mask that is shifted already."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.configuration import fill
from tokenclean.models.packing import plan_packs
from tokenclean.ragged import Ragged
from tokenclean.store import atomic_path

_ROWS_A_GROUP = 500

_DATASET = '''\
"""These token labels for a Megatron-Bridge recipe: set `config.dataset = dataset()` in it.

Written by tokenclean. The ids and labels are final. A sequence has at most {max_length} tokens (the longest row has
{longest}); set the model's `seq_length` to it too. A micro batch of packed sequences is one.
"""

from pathlib import Path

from megatron.bridge.data.datasets.packed_sequence import PackedSequenceSpecs
from megatron.bridge.training.config import FinetuningDatasetConfig

FOLDER = Path(__file__).parent


def dataset() -> FinetuningDatasetConfig:
    return FinetuningDatasetConfig(
        dataset_root=FOLDER,
        seq_length={max_length},
        packed_sequence_specs=PackedSequenceSpecs(
            packed_sequence_size={max_length}, packed_train_data_path=str(FOLDER / "train.idx.parquet")
        ),
        do_validation=False,
        do_test=False,
    )


if __name__ == "__main__":
    print(dataset())
'''


def write_megatron_bridge(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``train.idx.parquet`` with ``input_ids`` (int32), ``seq_start_id`` (int32) and ``loss_mask`` (int8), and
    ``dataset.py``.

    A line is a pack of whole rows, of at most as many tokens as the longest row, rounded up. Megatron-Bridge takes
    ids [start, end − 1) of each row as input and ids [start + 1, end) as labels, so ``loss_mask[t]`` is about token
    t + 1, and the one on a row's last token is never read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, labels = cleaned.column("input_ids"), cleaned.column("completion_mask")
    mask = np.zeros(len(labels.values), np.int8)
    mask[:-1] = labels.values[1:]
    mask[ids.offsets[1:] - 1] = 0
    packs = plan_packs(ids.lengths, cleaned.max_length, np.arange(len(ids)))
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "seq_start_id": [], "loss_mask": []}
    for rows in packs:
        taken = ids.take(rows)
        columns["input_ids"].append(taken.values.astype(np.int32))
        columns["seq_start_id"].append(taken.offsets[:-1].astype(np.int32))
        columns["loss_mask"].append(Ragged(mask, ids.offsets).take(rows).values)
    types = {"input_ids": pa.int32(), "seq_start_id": pa.int32(), "loss_mask": pa.int8()}
    table = pa.table({name: pa.array(values, pa.list_(types[name])) for name, values in columns.items()})
    with atomic_path(folder / "train.idx.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=_ROWS_A_GROUP)
    fill(_DATASET, folder / "dataset.py", card, cleaned.longest_row_tokens, quote=repr)
    return "python dataset.py"
