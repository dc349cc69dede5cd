"""Losses of the rows' answers after other prompts than their own, under the base: what prompt permutation reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.lab.prompt_mismatch import FOREIGN_PROMPTS
from tokenclean.ragged import Ragged
from tokenclean.tokens import TokenizedPool
from tokenclean.tokens.other_prompts import foreign_prompts, replace_prompts, without_prompts


@dataclass(frozen=True, eq=False)
class PromptPass:
    """``losses``: float32 nats, at the places that the answers' tokens have in the training rows; NaN outside the
    response and in rows that have no such prompt. ``what``: which prompts. ``scored``: the rows as they were scored."""

    what: str
    losses: Ragged
    scored: TokenizedPool


def losses_without_prompts(context: RunContext) -> PromptPass:
    """Of the answers alone."""
    bos = context.data.tokenizer.bos_token_id
    prompts = without_prompts(context.tokens, bos if isinstance(bos, int) else None)
    return _losses_after(context, prompts, "answers without prompt")


def losses_after_foreign_prompts(context: RunContext) -> list[PromptPass]:
    """``FOREIGN_PROMPTS`` passes, in each of which every row has another foreign prompt; none where no row has enough
    of them. Rows that have too few are counted in a note."""
    tokens, most = context.tokens, context.recipe.tokens.max_length
    chosen = foreign_prompts(tokens, FOREIGN_PROMPTS, most)
    without = sum(row is None and labels.any() for row, labels in zip(chosen, tokens.is_response, strict=True))
    if without:
        context.note(
            f"mismatch: {without:,} of {len(tokens):,} rows not judged, since their source has fewer than "
            f"{FOREIGN_PROMPTS} other prompts that fit into tokens.max_length"
        )
    if all(row is None for row in chosen):
        return []
    return [
        _losses_after(
            context,
            [None if row is None else row[number] for row in chosen],
            f"answers after foreign prompt {number + 1}",
        )
        for number in range(FOREIGN_PROMPTS)
    ]


def _losses_after(context: RunContext, prompts: Sequence[np.ndarray | None], what: str) -> PromptPass:
    """Of the rows that have one of these ``prompts``."""
    tokens = context.tokens
    rows = np.array([row for row, prompt in enumerate(prompts) if prompt is not None], dtype=np.int64)
    scored = replace_prompts(tokens.take(rows), [prompt for prompt in prompts if prompt is not None])
    losses = context.passes.losses(context.base, scored, what)
    is_scored = np.repeat(np.isin(np.arange(len(tokens)), rows), tokens.is_response.lengths)
    whole = np.full(len(is_scored), np.nan, dtype=np.float32)
    whole[is_scored & tokens.is_response.values] = losses.values[scored.is_response.values]
    return PromptPass(what, tokens.input_ids.with_values(whole), scored)
