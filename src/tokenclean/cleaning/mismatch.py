"""Rows whose answer does not belong to its prompt are dropped: by prompt permutation (``lab.prompt_mismatch``)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.noise_removal import result_of, train_without_noise
from tokenclean.cleaning.other_prompts import losses_after_foreign_prompts
from tokenclean.cleaning.strategy_result import StrategyResult
from tokenclean.lab.prompt_mismatch import MismatchEstimate, find_mismatches

LIKELIER_THAN_NOT = 0.5
"""The probability of being mismatched above which a row is dropped."""

_NOTED_ROWS, _NOTED_CHARACTERS = 5, 100


def mismatch(context: RunContext) -> StrategyResult:
    """Every response token but those of rows whose answer is likelier than not to belong to another prompt: it is no
    likelier after its own prompt than after four foreign ones of its source.

    Four further passes over the answers. Trusted rows, and rows of a source with too few other prompts, are kept.
    """
    tokens, data = context.tokens, context.data
    foreign = losses_after_foreign_prompts(context)
    labels = tokens.is_response
    rows = labels.row_of_value()
    losses = context.losses(context.base)
    noise = np.zeros(len(labels.values))
    if foreign:
        judged = labels.with_values(np.where(np.isin(rows, data.trusted), -1, rows))
        found = find_mismatches(losses, [one.losses for one in foreign], labels, judged)
        noise = found.noise.values
        if context.is_dry:  # its losses are made up; without a row the training is another one than on full tokens
            noise = (rows == 0).astype(np.float64)
        _note(context, found, noise)
    kept = labels.with_values(labels.values & (noise <= LIKELIER_THAN_NOT))
    trained = train_without_noise(context, "mismatch", context.base, kept)
    return replace(result_of(context, "mismatch", trained), losses={"base_loss": losses})


def _note(context: RunContext, found: MismatchEstimate, noise: np.ndarray) -> None:
    """How many rows are dropped, and those that are most probably mismatched."""
    tokens = context.tokens
    of_row = np.zeros(len(tokens))
    np.maximum.at(of_row, tokens.is_response.row_of_value(), noise)
    dropped = np.flatnonzero(of_row > LIKELIER_THAN_NOT)
    context.note(
        f"mismatch: {len(dropped):,} of {found.judged:,} rows dropped, whose answer is no likelier after its own "
        f"prompt than after others; estimated share of such rows {found.share:.1%}"
    )
    for row in dropped[np.argsort(-of_row[dropped], kind="stable")][:_NOTED_ROWS]:
        answer = tokens.input_ids[row][tokens.is_response[row]]
        text = " ".join(str(context.data.tokenizer.decode(answer.tolist(), skip_special_tokens=True)).split())
        context.note(f"  {tokens.ids[row]}: {text[:_NOTED_CHARACTERS]}")
