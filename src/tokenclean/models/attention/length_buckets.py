"""Neighbouring conversations of a pack, padded to one length so that they share an attention call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch


@dataclass(frozen=True)
class LengthBucket:
    """Neighbouring conversations of these ``lengths``, each a row of ``width`` positions.

    Shorter rows are padded on the right, where causal attention never looks from the left, with copies of their own
    last token, so that no row holds anything of another conversation.
    """

    lengths: tuple[int, ...]

    @property
    def width(self) -> int:
        return max(self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def is_full(self) -> bool:
        """True when all rows have one length: the padded tensor is then a view of the flat pack."""
        return self.tokens == self.width * len(self.lengths)

    def pad(self, flat: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, d) as (rows, heads, width, d)."""
        if self.is_full:
            return flat[0].unflatten(1, (len(self.lengths), self.width)).transpose(0, 1)
        taken, _ = _padding_indices(self.lengths, flat.device)
        return flat[0].transpose(0, 1).index_select(0, taken).unflatten(0, (-1, self.width)).transpose(1, 2)

    def unpad(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, heads, width, d) as (1, tokens, heads, d)."""
        flat = rows.transpose(1, 2).flatten(0, 1)
        if not self.is_full:
            _, kept = _padding_indices(self.lengths, flat.device)
            flat = flat.index_select(0, kept)
        return flat[None]


@lru_cache(maxsize=32)
def plan_buckets(lengths: tuple[int, ...], padding: float) -> tuple[LengthBucket, ...]:
    """Group neighbours, from the first on, while at most this share of a bucket is padding.

    ``lengths``: tokens of each conversation in the pack's order, each at least 1. ``padding``: in [0, 1); at 0 only
    conversations of one length share a bucket. Packs sorted by length (``packing.plan_packs``) need few buckets.
    """
    groups: list[list[int]] = []
    width = tokens = 0
    for length in lengths:
        width, tokens = max(width, length), tokens + length
        if groups and tokens >= (1 - padding) * width * (len(groups[-1]) + 1):
            groups[-1].append(length)
        else:
            groups.append([length])
            width = tokens = length
    return tuple(LengthBucket(tuple(group)) for group in groups)


def starts_of(lengths: Sequence[int]) -> list[int]:
    """Where each conversation begins in the flat pack."""
    return list(accumulate(lengths, initial=0))[:-1]


@lru_cache(maxsize=64)
def _padding_indices(lengths: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(flat token at each position of the bucket, position of each flat token), int64."""
    starts, sizes = torch.tensor(starts_of(lengths))[:, None], torch.tensor(lengths)[:, None]
    columns = torch.arange(max(lengths))[None]
    taken = starts + columns.minimum(sizes - 1)
    kept = (columns < sizes).flatten().nonzero()[:, 0]
    return taken.flatten().to(device), kept.to(device)
