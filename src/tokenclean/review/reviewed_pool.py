"""Decisions on the tokens of a pool: weights that hold in every strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tokenclean.pool.conversation import Conversation
from tokenclean.ragged import Ragged
from tokenclean.review.decisions import PhraseDecision, in_force
from tokenclean.review.placed import PlacedDecisions, place
from tokenclean.review.review_file import ReviewFile
from tokenclean.tokens import TokenizedPool
from tokenclean.tokens.weight_spans import WeightSpan, weights_of_spans


@dataclass(frozen=True)
class ReviewedPool:
    """The decisions of ``file`` on ``tokens``, aligned with the rows of ``conversations``; ``placed``: where they are.

    Only response tokens have a weight. A token that a span covers in part takes the smaller of the two weights.
    """

    file: ReviewFile
    tokens: TokenizedPool
    conversations: Sequence[Conversation]
    placed: PlacedDecisions

    @cached_property
    def spans(self) -> list[tuple[WeightSpan, ...]]:
        """Of each row, those in an answer that the text still has (``tokens.contents``)."""
        found = self.placed.spans(len(self.tokens))
        answers = [{content.turn for content in contents} for contents in self.tokens.contents]
        return [tuple(span for span in own if span.message in there) for own, there in zip(found, answers, strict=True)]

    @cached_property
    def decided(self) -> Ragged:
        """float32, aligned with the tokens: the weight of each response token that was decided as a whole, else NaN."""
        nothing = np.full(len(self.tokens.input_ids.values), np.nan, dtype=np.float32)
        return self.apply(self.tokens.input_ids.with_values(nothing))

    @property
    def is_dropped(self) -> Ragged:
        """Bool, aligned: tokens that people drop."""
        return self.decided.map_values(lambda weights: weights == 0)

    @property
    def is_trained(self) -> Ragged:
        """Bool, aligned: tokens that people keep, with weight 1 or less."""
        return self.decided.map_values(lambda weights: weights > 0)

    @property
    def is_fixed(self) -> Ragged:
        """Bool, aligned: tokens that people decided."""
        return self.decided.map_values(lambda weights: ~np.isnan(weights))

    def apply(self, weights: Ragged) -> Ragged:
        """Float token weights with those that people decided in their place, float32. Raises ValueError for weights
        that are not aligned with the tokens."""
        weights = weights_of_spans(self.tokens, self.spans, weights)
        values = weights.values.copy()
        for row in self.placed.rows:
            own = self.placed.tokens_of(row)
            if own is not None:
                there = values[weights.offsets[row] : weights.offsets[row + 1]]
                own = own[: len(there)]  # the row may be cut at its maximum length
                is_own = ~np.isnan(own) & self.tokens.is_response[row]
                there[is_own] = own[is_own]
        return weights.with_values(values)

    def fix_labels(self, kept: Ragged) -> Ragged:
        """Bool labels: what people drop is dropped, and what they keep is kept."""
        return self.apply(kept).map_values(lambda weights: weights > 0)

    def to_json(self) -> Mapping[str, object]:
        """For a run's record."""
        return {
            "file": str(self.file.path),
            "sha256": self.file.fingerprint,
            "decisions": self.placed.placed,
            "rows": len(self.placed.rows),
            "tokens_dropped": int(self.is_dropped.values.sum()),
            "tokens_kept": int(self.is_trained.values.sum()),
            "unplaced": [str(unplaced) for unplaced in self.placed.unplaced],
            "faults": list(self.file.faults),
        }

    def lines(self) -> list[str]:
        """For people: what is fixed, which decisions fit no row, which lines are no decisions."""
        dropped, kept = int(self.is_dropped.values.sum()), int(self.is_trained.values.sum())
        lines = [
            f"review: {self.file.path}: {self.placed.placed:,} decisions on {len(self.placed.rows):,} rows fix "
            f"{dropped + kept:,} response tokens, {dropped:,} dropped and {kept:,} trained"
        ]
        if self.placed.replaced:
            lines.append(f"review: at {self.placed.replaced:,} characters a later decision replaced an earlier one")
        if unplaced := self.placed.unplaced:
            lines.append(f"review: {len(unplaced):,} decisions fit no text here and are left out:")
            lines += (f"  {one}" for one in unplaced)
        return [*lines, *self.file.faults]


def review_pool(
    file: ReviewFile,
    tokens: TokenizedPool,
    conversations: Sequence[Conversation],
    heldout: frozenset[str] = frozenset(),
) -> ReviewedPool:
    """The decisions of a file on a pool. ``conversations``: the rows of ``tokens``, in the same order. ``heldout``: ids
    of rows on which nothing is trained; decisions on them are left out."""
    placed = place(in_force(file.decisions), conversations)
    unplaced = tuple(
        replace(one, reason="the row is held out, so nothing is trained on it")
        if not isinstance(one.decision, PhraseDecision) and one.decision.id in heldout
        else one
        for one in placed.unplaced
    )
    return ReviewedPool(file, tokens, conversations, replace(placed, unplaced=unplaced))
