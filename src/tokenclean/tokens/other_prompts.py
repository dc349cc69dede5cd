"""Rows with another prompt, or with none, before the same answer: what prompt permutation scores.

A row's prompt is everything before its first target; what follows, later questions of a chat included, stays. Prompts
are exchanged as token ids, so an answer keeps exactly its tokens and only what stands before them differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.tokens.tokenize import TokenizedPool


def prompts_of(tokens: TokenizedPool) -> list[np.ndarray | None]:
    """Token ids of each row's prompt, int64, at least one; None for a row without a target."""
    return [
        ids[: int(labels.argmax())] if labels.any() else None
        for ids, labels in zip(tokens.input_ids, tokens.is_response, strict=True)
    ]


def replace_prompts(tokens: TokenizedPool, prompts: Sequence[np.ndarray]) -> TokenizedPool:
    """The rows, each with this prompt, int64, before its first target. They have targets; characters and contents are
    empty. Raises ValueError for another number of prompts, a row without a target and an empty prompt."""
    ids, labels = [], []
    for row, (own, prompt) in enumerate(zip(prompts_of(tokens), prompts, strict=True)):
        if own is None or not len(prompt):
            raise ValueError(f"row {row} has no {'target' if own is None else 'prompt'}; leave it out")
        ids.append(np.concatenate([prompt, tokens.input_ids[row][len(own) :]]))
        labels.append(np.concatenate([np.zeros(len(prompt), bool), tokens.is_response[row][len(own) :]]))
    input_ids = Ragged.from_rows(ids, np.int64)
    nothing = input_ids.with_values(np.zeros(len(input_ids.values), np.int32))
    return replace(
        tokens,
        input_ids=input_ids,
        is_response=Ragged.from_rows(labels, np.bool_),
        char_start=nothing,
        char_end=nothing,
        contents=((),) * len(tokens),
        weight=None,
    )


def without_prompts(tokens: TokenizedPool, bos: int | None) -> list[np.ndarray | None]:
    """What is left of each prompt when it is dropped: its last token, since the first target needs one before it, and
    ``bos`` where the prompt begins with it. None for a row without a target."""

    def left(prompt: np.ndarray) -> np.ndarray:
        begins = bos is not None and len(prompt) > 1 and int(prompt[0]) == bos
        return np.concatenate([prompt[:1], prompt[-1:]]) if begins else prompt[-1:]

    return [None if prompt is None else left(prompt) for prompt in prompts_of(tokens)]


def foreign_prompts(tokens: TokenizedPool, count: int, max_length: int) -> list[list[np.ndarray] | None]:
    """For each row ``count`` prompts of other rows of its source that differ from its own and from each other, those
    nearest to its own in length first; with them the row has at most ``max_length`` tokens.

    Equal distances are decided by length, then by token ids, so neither the order of the rows nor a seed matters. None
    for a row without a target, and where its source has too few such prompts.
    """
    prompts = prompts_of(tokens)
    known: dict[str, dict[bytes, np.ndarray]] = {}
    for source, prompt in zip(tokens.sources, prompts, strict=True):
        if prompt is not None:
            known.setdefault(source, {}).setdefault(prompt.tobytes(), prompt)
    ordered = {name: sorted(of.values(), key=lambda ids: (len(ids), ids.tolist())) for name, of in known.items()}
    lengths = {name: np.array([len(prompt) for prompt in of]) for name, of in ordered.items()}
    chosen: list[list[np.ndarray] | None] = []
    for source, prompt, row in zip(tokens.sources, prompts, tokens.input_ids, strict=True):
        if prompt is None:
            chosen.append(None)
            continue
        longest = max_length - (len(row) - len(prompt))
        nearest = np.argsort(np.abs(lengths[source] - len(prompt)), kind="stable")
        others = (other for place in nearest if len(other := ordered[source][place]) <= longest)
        found = list(islice((other for other in others if not np.array_equal(other, prompt)), count))
        chosen.append(found if len(found) == count else None)
    return chosen
