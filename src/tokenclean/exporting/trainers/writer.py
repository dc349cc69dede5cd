"""What a trainer's writer is: from labelled tokens, or from texts with weights, to the trainer's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenclean.errors import TableError
from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.weight_range import WeightRange
from tokenclean.exporting.weighted_texts import WeightedTexts


@dataclass(frozen=True)
class Written:
    """``command``: uses the export, run from inside its folder. ``rows``: how many rows are in it. ``changes``: what
    the form cannot hold, a sentence each, with numbers. ``left_out``: (id, reason) of the rows that are not in it."""

    command: str
    rows: int
    changes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TokenWriter:
    """``write``: fills a folder with token ids and their labels or weights, and returns the command that uses them.
    ``takes``: the weights that the trainer can use; others are brought into the range before, and counted.
    ``lists_ids``: whether the rows' ids go into a file of their own, since the form has no place for them."""

    write: Callable[[CleanedDataset, Path, Card], str]
    takes: WeightRange = "labels"
    lists_ids: bool = True


@dataclass(frozen=True)
class TextWriter:
    """``write``: fills a folder with the rows' texts and their weights, for trainers that tokenize by themselves."""

    write: Callable[[WeightedTexts, Path, Card], Written]


def describe_changes(before: np.ndarray, after: np.ndarray, why: str) -> tuple[str, ...]:
    """The sentence on tokens whose weight is another one in the export, over aligned weights; none where none is."""
    difference, weights = np.abs(after.astype(np.float64) - before), np.abs(before.astype(np.float64))
    if not difference.any():
        return ()
    changed, trained = np.count_nonzero(difference), np.count_nonzero(weights)
    return (
        f"{changed:,} of {trained:,} trained tokens have another weight here ({difference.sum():.4g} of a total weight "
        f"of {weights.sum():.4g}): {why}",
    )


def choose_chats(
    texts: WeightedTexts, is_trained: Sequence[bool], *, no_chat: str, untrained: str, otherwise: str
) -> tuple[list[int], tuple[tuple[str, str], ...]]:
    """Rows for a trainer that takes messages: the chats that are trained, and (id, reason) of the rows left out.

    ``no_chat``, ``untrained``: the reasons. Raises TableError where none is left, which names the form ``otherwise``.
    """
    reasons = [
        no_chat if conversation.kind != "chat" else "" if trained else untrained
        for conversation, trained in zip(texts.conversations, is_trained, strict=True)
    ]
    if all(reasons):
        raise TableError(f"no row is left to export: {no_chat}, and {untrained}; export with --to {otherwise}")
    left_out = tuple((id, reason) for id, reason in zip(texts.tokens.ids, reasons, strict=True) if reason)
    return [row for row, reason in enumerate(reasons) if not reason], left_out
