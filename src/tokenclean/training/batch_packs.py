"""From an optimizer batch of conversations to packs whose weighted losses add up to the batch's loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tokenclean.models.packing import plan_packs, trimmed_lengths
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged


@dataclass(frozen=True)
class Pack:
    """One forward and backward pass.

    ``input_ids``: int64 (T,), the conversations ``rows`` of ``lengths`` tokens one after another, each cut after its
    last selected token. ``positions``: int64 (P,), the selected tokens. ``coefficients``: float32 (P,); the pack's
    share of the batch's loss is Σ coefficient · ℓ.
    """

    input_ids: np.ndarray
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    positions: np.ndarray
    coefficients: np.ndarray

    @property
    def is_filler(self) -> bool:
        """Whether it changes no loss and no gradient (see ``batch_packs``)."""
        return not self.coefficients.any()

    @property
    def row_of_position(self) -> np.ndarray:
        """Index into ``rows`` of the row that each position belongs to: int64 (P,)."""
        return np.searchsorted(np.cumsum(self.lengths), self.positions, side="right")


def selected_lengths(weights: Ragged) -> np.ndarray:
    """Length of each row up to its last token of weight other than 0 (int64, (N,)); 0 where nothing is selected.

    Raises ValueError for a NaN or infinite weight, or one at the first token of a row, which has no loss.
    """
    values = weights.values
    if not np.all(np.isfinite(values)):
        raise ValueError("token weights must be finite")
    starts = weights.offsets[:-1][weights.lengths > 0]
    if np.any(values[starts]):
        raise ValueError("the first token of a row has nothing before it and so no loss; its weight must be 0")
    return trimmed_lengths(values != 0, weights.offsets)


def share_rows(lengths_N: np.ndarray, count: int) -> list[np.ndarray]:
    """Indices of the rows that each of ``count`` processes takes, rising; about as many tokens each.

    Longest first, each row to the process with the fewest tokens so far. It depends on the lengths alone.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for row in np.argsort(-lengths_N, kind="stable").tolist():
        least = tokens.index(min(tokens))
        shares[least].append(row)
        tokens[least] += int(lengths_N[row])
    return [np.array(sorted(share), dtype=np.int64) for share in shares]


def batch_packs(
    input_ids: Ragged,
    weights: Ragged,
    rows: Sequence[int],
    *,
    pack_tokens: int,
    loss_normalisation: Literal["token", "sample"],
    processes: Processes = SINGLE_PROCESS,
) -> list[Pack]:
    """Packs of one optimizer batch: their losses sum to the batch's loss.

    ``token``: Σ w ℓ / Σ |w| over all selected tokens of the batch (Eq. 1). ``sample``: the mean over samples of
    Σ_j w_j ℓ_j / Σ_j |w_j| (§5.1). Rows with nothing selected count in neither. ``weights``: float, aligned with
    ``input_ids``; a token of negative weight is unlearned.

    Among several ``processes`` these are this process's own, of about as many tokens as any other's: the sum over all
    processes is the batch's loss. All have the same number of packs, since processes may have to meet in each: one that
    has fewer gets fillers of two tokens, whose one coefficient is 0.
    """
    chosen = np.asarray(rows, dtype=np.int64)
    ids, weight = input_ids.take(chosen), weights.take(chosen)
    lengths = selected_lengths(weight)
    sums = weight.map_values(np.abs).row_sums()
    by_token = loss_normalisation == "token"
    divisors = np.full(len(chosen), sums.sum()) if by_token else sums * np.count_nonzero(lengths)
    plans = [plan_packs(lengths, pack_tokens, share) for share in share_rows(lengths, processes.count)]
    packs = []
    for members in plans[processes.rank]:
        tokens = np.concatenate([ids[row][: lengths[row]] for row in members]).astype(np.int64)
        shares = [weight[row][: lengths[row]].astype(np.float64) / divisors[row] for row in members]
        values = np.concatenate(shares)
        positions = np.flatnonzero(values)
        coefficients = values[positions].astype(np.float32)
        packs.append(
            Pack(tokens, tuple(chosen[members].tolist()), tuple(lengths[members].tolist()), positions, coefficients)
        )
    most = max(map(len, plans))
    if len(packs) < most:
        row = int(np.argmax(lengths))  # two tokens at least, since a first token is never selected
        two_tokens = ids[row][:2].astype(np.int64)
        filler = Pack(two_tokens, (int(chosen[row]),), (2,), np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.float32))
        packs += [filler] * (most - len(packs))
    return packs
