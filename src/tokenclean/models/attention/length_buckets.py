"""Neighbouring conversations of a pack, laid side by side in rectangles that share one attention call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Rectangle:
    """Neighbouring conversations of these ``lengths``, each a row of ``width`` places.

    Shorter rows are filled on the right, which causal attention never looks at from the left, with copies of their own
    last token, so that nothing of another conversation stands in them.
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
        """True when all rows are of one length: the rectangle is a view of the flat pack."""
        return self.tokens == self.width * len(self.lengths)

    def stand(self, flat: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, d) as (rows, heads, width, d)."""
        if self.is_full:
            return flat[0].unflatten(1, (len(self.lengths), self.width)).transpose(0, 1)
        taken, _ = _places(self.lengths, flat.device)
        return flat[0].transpose(0, 1).index_select(0, taken).unflatten(0, (-1, self.width)).transpose(1, 2)

    def lay_flat(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, heads, width, d) as (1, tokens, heads, d), without the filling."""
        flat = rows.transpose(1, 2).flatten(0, 1)
        if not self.is_full:
            _, kept = _places(self.lengths, flat.device)
            flat = flat.index_select(0, kept)
        return flat[None]


@lru_cache(maxsize=32)
def plan_rectangles(lengths: tuple[int, ...], padding: float) -> tuple[Rectangle, ...]:
    """Group neighbours, from the first on, while at most this share of a rectangle's places is filling.

    ``lengths``: tokens of each conversation in the pack's order, each at least 1. ``padding``: in [0, 1); at 0 only
    conversations of one length share a rectangle. Packs sorted by length (``packing.plan_packs``) need few rectangles.
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
    return tuple(Rectangle(tuple(group)) for group in groups)


def starts_of(lengths: Sequence[int]) -> list[int]:
    """Where each conversation begins in the flat pack."""
    return list(accumulate(lengths, initial=0))[:-1]


@lru_cache(maxsize=64)
def _places(lengths: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(flat token at each place of the rectangle, place of each flat token), int64."""
    starts, sizes = torch.tensor(starts_of(lengths))[:, None], torch.tensor(lengths)[:, None]
    columns = torch.arange(max(lengths))[None]
    taken = starts + columns.minimum(sizes - 1)
    kept = (columns < sizes).flatten().nonzero()[:, 0]
    return taken.flatten().to(device), kept.to(device)
