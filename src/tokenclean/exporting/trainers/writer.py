"""What a trainer's writer is: from labelled tokens, or from texts with weights, to the trainer's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def describe_change(tokens: int, trained: int, weight: float, total: float, why: str) -> str:
    """The sentence on tokens whose weight is another one in the export. ``tokens`` of ``trained``; ``weight``: the sum
    of the differences, of a sum of weights ``total``, both without their signs."""
    return (
        f"{tokens:,} of {trained:,} trained tokens have another weight here ({weight:.4g} of a total weight of "
        f"{total:.4g}): {why}"
    )


def list_left_out(ids: Sequence[str], reason: str) -> tuple[tuple[str, str], ...]:
    """The rows that one reason leaves out."""
    return tuple((id, reason) for id in ids)
