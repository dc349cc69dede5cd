"""Token weights in the range that a trainer can use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from tokenclean.errors import TableError
from tokenclean.exporting.cleaned_file import UNTRAINED, CleanedDataset
from tokenclean.ragged import Ragged

if TYPE_CHECKING:
    import pyarrow as pa

WeightRange = Literal["labels", "positive", "signed"]
"""``labels``: 0 and 1. ``positive``: any number of at least 0. ``signed``: any number; one below 0 unlearns."""

LEAST_LABEL = 0.5
"""The least weight that counts as 1 where a trainer takes 0 and 1."""

WHY: dict[WeightRange, str] = {
    "labels": f"the trainer takes 0 and 1, so weights of at least {LEAST_LABEL} count as 1 and others as 0",
    "positive": "the trainer takes no weights below 0, so these tokens are not trained",
    "signed": "",
}


def limit_weights(weights: np.ndarray, takes: WeightRange) -> np.ndarray:
    """Weights of any shape in the range, float32."""
    if takes == "labels":
        return (weights >= LEAST_LABEL).astype(np.float32)
    return (np.maximum(weights, 0) if takes == "positive" else weights).astype(np.float32)


def limit_dataset(cleaned: CleanedDataset, takes: WeightRange) -> CleanedDataset:
    """The dataset with its weights in the range; a row without a weight other than 0 is left out and in
    ``dropped_ids``. Raises TableError where no row is left."""
    column = cleaned.column("token_weight")
    limited = column.with_values(limit_weights(column.values, takes))
    if np.array_equal(limited.values, column.values):
        return cleaned
    is_left = limited.map_values(lambda values: values != 0).row_sums() > 0
    if not is_left.any():
        raise TableError(f"{cleaned.path}: no row is left to export, since {WHY[takes]}; export with --to hf")
    chosen = np.flatnonzero(is_left)
    ids = cleaned.rows.column("id").to_pylist()
    left_out = [ids[row] for row in np.flatnonzero(~is_left)]
    rows = _with_weights(cleaned, limited).take(chosen)
    return replace(cleaned, rows=rows, dropped_ids=(*cleaned.dropped_ids, *left_out))


def _with_weights(cleaned: CleanedDataset, weights: Ragged) -> pa.Table:
    import pyarrow as pa

    is_kept = weights.values > 0
    ids = cleaned.column("input_ids").values
    columns = {
        "labels": np.where(is_kept, ids, UNTRAINED).astype(np.int64),
        "completion_mask": is_kept.astype(np.int8),
        "token_weight": weights.values,
    }
    offsets, rows = pa.array(weights.offsets.astype(np.int32)), cleaned.rows
    for name, values in columns.items():
        array = pa.ListArray.from_arrays(offsets, pa.array(values))
        rows = rows.set_column(rows.column_names.index(name), name, array)
    return rows
