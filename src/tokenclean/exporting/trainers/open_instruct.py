"""The form of open-instruct's trainings on OLMo-core: flat arrays of ids and label masks."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np

from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.configuration import fill

_TOKENS_A_PART = 1 << 28  # 1 GiB of ids

_DATASET = '''\
"""These token labels as a dataset of OLMo-core: `python dataset.py` prints how many sequences it packs them into.

Written by tokenclean. The ids and labels are final, and a label is that of its own token. Give `config()` the
training's sequence length; it must hold the longest row, {longest} tokens.
"""

from pathlib import Path

from olmo_core.data import NumpyPackedFSLDatasetConfig, TokenizerConfig

FOLDER = Path(__file__).parent


def config(sequence_length: int = {max_length}) -> NumpyPackedFSLDatasetConfig:
    return NumpyPackedFSLDatasetConfig.glob(
        str(FOLDER / "token_ids_part_*.npy"),
        label_mask_paths=[str(FOLDER / "labels_mask_part_*.npy")],
        tokenizer=TokenizerConfig.from_hf({model}),
        sequence_length=sequence_length,
        generate_doc_lengths=True,
        work_dir=str(FOLDER / "work"),
    )


if __name__ == "__main__":
    dataset = config().build()
    dataset.prepare()
    print(len(dataset), "sequences")
'''


def write_open_instruct(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``token_ids_part_*.npy`` (uint32), ``labels_mask_part_*.npy`` (bool), ``token_ids_part_*.csv.gz`` with the first
    and the last + 1 token of each row in its part, and ``dataset.py``.

    As open-instruct's own converter writes them, the arrays are flat and have no header, so ``np.load`` cannot read
    them; a mask belongs to its own token. No row is split over two parts.
    """
    ids, labels = cleaned.column("input_ids"), cleaned.column("completion_mask")
    number = start = 0
    while start < len(ids):
        reach = np.searchsorted(ids.offsets, ids.offsets[start] + _TOKENS_A_PART, side="right") - 1
        end = max(start + 1, int(reach))
        first, last = int(ids.offsets[start]), int(ids.offsets[end])
        part = f"part_{number:04d}"
        ids.values[first:last].astype(np.uint32).tofile(folder / f"token_ids_{part}.npy")
        labels.values[first:last].astype(np.bool_).tofile(folder / f"labels_mask_{part}.npy")
        borders = ids.offsets[start : end + 1] - first
        with gzip.open(folder / f"token_ids_{part}.csv.gz", "wt", encoding="utf-8") as file:
            file.writelines(f"{begin},{finish}\n" for begin, finish in pairwise(borders.tolist()))
        number, start = number + 1, end
    fill(_DATASET, folder / "dataset.py", card, cleaned.longest_row_tokens, quote=repr)
    return "python dataset.py"
