"""Token scores in a Ray Data pipeline: a callable class for ``ray.data.Dataset.map_batches``.

It takes and gives Arrow tables and imports nothing of Ray, so it serves any pipeline that works on them.
"""

from __future__ import annotations

import pyarrow as pa

from tokenclean.errors import TableError
from tokenclean.integrations.row_scores import RowScorer

_TYPES = {
    "input_ids": pa.list_(pa.int64()),
    "is_response": pa.list_(pa.bool_()),
    "base_loss": pa.list_(pa.float32()),
    "reference_loss": pa.list_(pa.float32()),
    "score": pa.list_(pa.float32()),
}


class TokenScorer:
    """Adds the columns of ``tokenclean score`` to batches of rows; models are loaded with the first batch.

    ``base``, ``reference``, ``template``, ``max_length``, ``precision``, ``device``: as of ``RowScorer``, with its
    errors. Give them as ``fn_constructor_kwargs``, so that each actor makes, and loads, one of its own.
    """

    def __init__(
        self,
        base: str,
        reference: str | None = None,
        *,
        template: str = "tulu",
        max_length: int = 2048,
        precision: str = "exact",
        device: str = "cpu",
    ) -> None:
        self._scorer = RowScorer(base, reference, template, max_length, precision, device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with ``input_ids``, ``is_response`` and ``base_loss``, with a reference also ``reference_loss`` and
        ``score`` = base_loss − reference_loss (lists; float32, nats, NaN off the response), then ``token_score``, the
        mean over the row's response tokens (float64). All are null in a row that cannot be read or has no response.

        Raises TableError where the batch has such a column already.
        """
        has_reference = self._scorer.reference is not None
        names = [name for name in _TYPES if has_reference or name not in ("reference_loss", "score")]
        if taken := [name for name in (*names, "token_score") if name in batch.column_names]:
            raise TableError(f"batch: has a column {taken[0]} already, which scoring adds; drop or rename it first")
        rows = self._scorer.score_tokens(batch.to_pylist())
        for name in names:
            lists = [None if row is None else row[name] for row in rows]
            batch = batch.append_column(name, pa.array(lists, _TYPES[name]))
        means = [None if row is None else row.mean(self._scorer.wanted) for row in rows]
        return batch.append_column("token_score", pa.array(means, pa.float64()))
