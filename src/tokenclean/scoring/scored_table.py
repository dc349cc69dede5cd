"""The table of a scored pool, written shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.scoring.scorer import SERVED_PRECISION, check_same_policy, merge_policies
from tokenclean.scoring.stored_losses import LossShard
from tokenclean.scoring.stored_tokens import TokenShard
from tokenclean.token_table import open_table


@dataclass(frozen=True)
class TableCounts:
    """Counts of a table. ``means``: of each loss column and of the score, nats a response token; NaN without any."""

    rows: int
    response_tokens: int
    means: Mapping[str, float]


def write_scored_table(
    shards: Iterable[tuple[TokenShard, Mapping[str, LossShard]]],
    further: Sequence[str],
    metadata: Mapping[str, object],
    output: Path,
    *,
    has_weights: bool = False,
) -> TableCounts:
    """Write the table in the memory of one shard; the file appears whole or not at all.

    ``shards``: each with its losses under ``base`` and optionally ``reference``. The columns are input_ids,
    is_response, ``loss_weight`` where the pool ``has_weights``, base_loss, then reference_loss and score = base_loss −
    reference_loss, then the ``further`` ones of each model. ``policy``, how the losses were computed, is added to the
    metadata, and ``served_policy`` of a server's. Raises PolicyMismatchError where the losses of the two models were
    not computed in the same way, RunFolderError where the file cannot be written.
    """
    rows = response_tokens = 0
    sums: dict[str, float] = {}
    policies: list[Mapping[str, object]] = []
    served: list[Mapping[str, object]] = []
    with open_table(output, metadata) as writer:
        for shard, losses in shards:
            table = shard.table()
            scores = _scores(losses)
            columns = {f"{name}_{column}": found.column(column) for name, found in losses.items() for column in further}
            tokens = {name: table[name] for name in ("input_ids", "is_response")}
            if has_weights:
                ones = table["is_response"].map_values(lambda labels: labels.astype(np.float32))
                tokens["loss_weight"] = table.columns.get("loss_weight", ones)
            writer.write(replace(table, columns={**tokens, **scores, **columns}))
            rows += len(table)
            response_tokens += int(np.count_nonzero(table["is_response"].values))
            for name, column in scores.items():
                sums[name] = sums.get(name, 0.0) + float(np.nansum(column.values, dtype=np.float64))
            for policy in (found.policy for found in losses.values()):
                known = served if policy["precision"] == SERVED_PRECISION else policies
                known += [policy] if policy not in known else []
        writer.metadata = {**metadata, "policy": merge_policies(policies)}
        writer.metadata |= {"served_policy": merge_policies(served)} if served else {}
    means = {name: total / response_tokens if response_tokens else float("nan") for name, total in sums.items()}
    return TableCounts(rows, response_tokens, means)


def _scores(losses: Mapping[str, LossShard]) -> dict[str, Ragged]:
    columns = {f"{name}_loss": found.column("loss") for name, found in losses.items()}
    if "reference" in losses:
        check_same_policy(losses["base"].policy, losses["reference"].policy)
        columns["score"] = columns["base_loss"] - columns["reference_loss"]
    return columns
