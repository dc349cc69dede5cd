"""Noise in the training pool: its repeated passages, and the noise mixture over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.selection import NoiseEstimate, Repetition, find_repetition, surprisal_table, token_posterior
from tokenclean.tokens import TokenizedPool
from tokenclean.training.online_mixture import OnlineMixture

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOTED_PASSAGES, _NOTED_CHARACTERS = 5, 80


@dataclass(frozen=True)
class PoolNoise:
    """Of the training rows ``tokens``, each part found when it is first asked for.

    ``note``: shows what was found. ``losses``: of the model to which the mixture is fitted offline, aligned
    with the tokens, computed when they are asked for.
    """

    recipe: Recipe
    tokens: TokenizedPool
    tokenizer: PreTrainedTokenizerBase
    note: Callable[[str], None]
    losses: Callable[[], Ragged]

    @cached_property
    def repetition(self) -> Repetition:
        """Passages of the responses that many rows share (``cleaning.repetition``)."""
        settings = self.recipe.cleaning.repetition
        found = find_repetition(self.tokens.input_ids, self.tokens.is_response, settings)
        tokens, total = int(found.is_repeated.values.sum()), int(self.tokens.is_response.values.sum())
        found_text = f"repetition: {tokens:,} of {total:,} response tokens ({tokens / total:.1%}) in passages of"
        self.note(f"{found_text} {found.needed_rows} or more rows{'; the most frequent:' if found.passages else ''}")
        for passage in found.passages[:_NOTED_PASSAGES]:
            text = " ".join(str(self.tokenizer.decode(list(passage.input_ids))).split())
            self.note(f"  {passage.rows} rows: {text[:_NOTED_CHARACTERS]}")
        return found

    @property
    def has_looked_for_repetition(self) -> bool:
        """Whether a strategy of this run has asked for ``repetition``."""
        return "repetition" in vars(self)

    @cached_property
    def mixture(self) -> OnlineMixture:
        """The noise mixture (``cleaning.noise_mixture``)."""
        vocabulary = max(len(self.tokenizer), int(self.tokens.input_ids.values.max(initial=0)) + 1)
        table = surprisal_table(self.tokens.input_ids, self.tokens.is_response, vocabulary)
        return OnlineMixture(table, self.recipe.cleaning.noise_mixture)

    @cached_property
    def estimate(self) -> NoiseEstimate:
        """The mixture fitted to ``losses``."""
        ids, mixture = self.tokens.input_ids, self.mixture
        surprisal = ids.with_values(mixture.surprisal[ids.values])
        return token_posterior(self.losses(), surprisal, self.tokens.is_response, mixture.prior)
