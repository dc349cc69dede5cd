"""The columns that the laboratory's detectors read: every pass that they take, and where sentences and words are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.influence import NULLS, measure_influence
from tokenclean.cleaning.open_run import OpenRun
from tokenclean.cleaning.strategy_result import weights_of
from tokenclean.cleaning.token_passages import find_passages
from tokenclean.cleaning.trainings import TrainingJob
from tokenclean.experiment.laboratory import Laboratory
from tokenclean.lab.detectors import Columns
from tokenclean.lab.prompt_mismatch import FOREIGN_PROMPTS
from tokenclean.pool import load_sources
from tokenclean.ragged import Ragged
from tokenclean.tokens import TokenizedPool, tokenize_pool
from tokenclean.tokens.other_prompts import foreign_prompts, replace_prompts, without_prompts


@dataclass(frozen=True)
class LabPass:
    """A pass that the laboratory took, computed or found in the run folder: ``what`` was scored, how many rows, and how
    many tokens with their prompts."""

    what: str
    rows: int
    tokens: int


@dataclass(frozen=True)
class LabColumns:
    """``columns``: what the detectors read. ``passes``: those that gave them, in their order."""

    columns: Columns
    passes: tuple[LabPass, ...]


def score_columns(laboratory: Laboratory, *, with_prompt_passes: bool, with_influence: bool = True) -> LabColumns:
    """The columns of the laboratory's rows: losses, entropy and collision of the base; losses of a given reference, or
    with ``cleaning.trusted`` of one warmed up on these rows, and ``with_influence`` that of a step on them; with
    ``with_prompt_passes`` the base's losses without the prompt and under foreign prompts, five further passes.

    Rows for which there are too few foreign prompts are counted in a note.
    """
    opened, context, tokens = laboratory.opened, laboratory.context, laboratory.context.tokens
    passes = [LabPass("rows", len(tokens), len(tokens.input_ids.values))]
    measured = laboratory.base_columns
    score, judged, trusted = None, None, _trusted_rows(context)
    reference = context.given_reference
    if trusted is not None and with_influence:
        found = measure_influence(context, trusted)
        judged = found.judged
        passes.append(LabPass("rows, for the step on trusted rows", 2 * len(tokens), 2 * passes[0].tokens))
        null_tokens = int(tokens.input_ids.lengths[found.null_rows].sum())
        passes.append(LabPass("its null", 2 * NULLS * len(found.null_rows), 2 * NULLS * null_tokens))
    if trusted is not None:
        job = TrainingJob("warm-up", context.base, trusted, weights_of(trusted.is_response))
        reference = context.trainings.train(job)
    if reference is not None:
        base_loss, reference_loss = context.pair_losses(context.base, reference)
        score = base_loss - reference_loss
        passes.append(LabPass("rows, for the score against the reference", 2 * len(tokens), 2 * passes[0].tokens))
    unconditional, foreign = None, None
    if with_prompt_passes:
        bos = context.data.tokenizer.bos_token_id
        unconditional = _losses_after(
            opened, without_prompts(tokens, bos if isinstance(bos, int) else None), "answers without prompt", passes
        )
        foreign = _losses_after_foreign_prompts(opened, passes)
    columns = Columns(
        tokens.input_ids,
        tokens.is_response,
        measured["loss"],
        score,
        tokens.sources,
        context.recipe.cleaning,
        max(len(context.data.tokenizer), int(tokens.input_ids.values.max(initial=0)) + 1),
        entropy=measured["entropy"],
        collision=measured["collision"],
        unconditional_loss=unconditional,
        foreign_losses=foreign,
        passages=find_passages(tokens, context.data.pool),
        influence=judged,
    )
    return LabColumns(columns, tuple(passes))


def _trusted_rows(context: RunContext) -> TokenizedPool | None:
    """The rows of ``cleaning.trusted`` in tokens; None where the recipe names none."""
    recipe = context.recipe
    if recipe.cleaning.trusted is None:
        return None
    return tokenize_pool(load_sources([recipe.cleaning.trusted]), context.data.tokenizer, **recipe.tokens.model_dump())


def _losses_after_foreign_prompts(opened: OpenRun, passes: list[LabPass]) -> tuple[Ragged, ...] | None:
    """A column for each foreign prompt; None where no row has enough of them."""
    tokens = opened.context.tokens
    chosen = foreign_prompts(tokens, FOREIGN_PROMPTS, opened.context.recipe.tokens.max_length)
    without = sum(row is None and labels.any() for row, labels in zip(chosen, tokens.is_response, strict=True))
    if without:
        opened.observer.note(
            f"mismatch: {without:,} of {len(tokens):,} rows not judged, since their source has fewer than "
            f"{FOREIGN_PROMPTS} other prompts that fit into tokens.max_length"
        )
    if all(row is None for row in chosen):
        return None
    return tuple(
        _losses_after(
            opened,
            [None if row is None else row[number] for row in chosen],
            f"answers after foreign prompt {number + 1}",
            passes,
        )
        for number in range(FOREIGN_PROMPTS)
    )


def _losses_after(opened: OpenRun, prompts: Sequence[np.ndarray | None], what: str, passes: list[LabPass]) -> Ragged:
    """Losses of the rows' targets after these prompts, on the places that they have in the rows; NaN in rows without
    one. The pass is added to ``passes``."""
    context, tokens = opened.context, opened.context.tokens
    rows = np.array([row for row, prompt in enumerate(prompts) if prompt is not None], dtype=np.int64)
    part = replace_prompts(tokens.take(rows), [prompt for prompt in prompts if prompt is not None])
    losses = opened.passes.losses(context.base, part, what)
    passes.append(LabPass(what, len(rows), len(part.input_ids.values)))
    is_scored = np.repeat(np.isin(np.arange(len(tokens)), rows), tokens.is_response.lengths)
    whole = np.full(len(is_scored), np.nan, dtype=np.float32)
    whole[is_scored & tokens.is_response.values] = losses.values[part.is_response.values]
    return tokens.input_ids.with_values(whole)
