"""Answers that exist in two versions, one with noise and one without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokenclean.errors import PoolError
from tokenclean.lab.truth import TruthPool, read_truth
from tokenclean.pool.conversation import Conversation, Pool
from tokenclean.pool.duplicates import exact_duplicates
from tokenclean.recipe import SourceSettings


@dataclass(frozen=True)
class Pairs:
    """Rows with noise whose clean version is known and differs. ``rows``: their numbers among the rows measured, int64.

    A row that states no noise is no pair, even where its ``clean`` differs: that is a change of style.
    """

    noisy: Pool
    clean: Pool
    rows: np.ndarray


def pairs_of(truth: TruthPool) -> Pairs:
    """The rows that are pairs."""
    has_noise = {span.row for span in truth.spans}
    versions = ((row, truth.clean[row]) for row in sorted(has_noise))
    found = [(row, clean) for row, clean in versions if clean is not None and clean != truth.pool[row]]
    rows, clean = [row for row, _ in found], [version for _, version in found]
    noisy = replace(truth.pool.take(rows), rejected=())
    return Pairs(noisy, Pool(tuple(clean)), np.array(rows, dtype=np.int64))


def read_pairs(place: str, trained: Sequence[Conversation], note: Callable[[str], None]) -> Pairs:
    """The pairs among the rows of a file that nothing is trained on: neither version is one of the ``trained`` rows.

    ``note``: says how many rows are left out and why. Raises PoolError as ``read_truth`` does, and where fewer than two
    pairs are left.
    """
    truth = read_truth([SourceSettings(path=place)])
    known = pairs_of(truth)
    repeats = exact_duplicates([*trained, *known.noisy, *known.clean])
    is_trained = {(d.row - len(trained)) % len(known.rows) for d in repeats if d.of < len(trained) <= d.row}
    left = [number for number in range(len(known.rows)) if number not in is_trained]
    text = f"evaluation.pairs: {len(left):,} pairs of a clean and a noisy version in {len(truth):,} rows"
    text += f", {len(is_trained):,} more are among the rows trained on" if is_trained else ""
    rejected = truth.pool.rejected
    text += f"; {len(rejected):,} rows set aside, the first: {rejected[0]}" if rejected else ""
    if len(left) < 2:
        raise PoolError(f"{text}; preference needs at least 2, so add rows to {place} that nothing is trained on")
    note(text)
    return Pairs(known.noisy.take(left), known.clean.take(left), known.rows[left])
