"""The columns that the laboratory's detectors read: every pass that they take, and where sentences and words are."""

from __future__ import annotations

from dataclasses import dataclass

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.influence import NULLS, measure_influence
from tokenclean.cleaning.other_prompts import losses_after_foreign_prompts, losses_without_prompts
from tokenclean.cleaning.strategy_result import weights_of
from tokenclean.cleaning.token_passages import find_passages
from tokenclean.cleaning.trainings import TrainingJob
from tokenclean.experiment.laboratory import Laboratory
from tokenclean.lab.detectors import Columns
from tokenclean.pool import load_sources
from tokenclean.tokens import TokenizedPool, tokenize_pool


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
    context, tokens = laboratory.context, laboratory.context.tokens
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
        alone, *after_foreign = [losses_without_prompts(context), *losses_after_foreign_prompts(context)]
        unconditional = alone.losses
        foreign = tuple(one.losses for one in after_foreign) or None
        for one in (alone, *after_foreign):
            passes.append(LabPass(one.what, len(one.scored), len(one.scored.input_ids.values)))
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
