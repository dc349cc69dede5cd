"""Which tokens of a row are training targets (ỹ = 1, §3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from tokenclean.pool.conversation import Conversation, LabelledTokens, Turn
from tokenclean.recipe import TokensSettings
from tokenclean.tokens.labelled_row import LabelledRow, empty_row
from tokenclean.tokens.rendered_text import Rendered
from tokenclean.tokens.truncation import cut_row
from tokenclean.tokens.weight_spans import place_tokens, weights_in_spans


def train_last_turn(conversation: Conversation) -> Conversation:
    """The conversation with every assistant turn but the last marked as not trained."""
    earlier = [index for index, turn in enumerate(conversation.turns) if turn.role == "assistant"][:-1]
    turns = (replace(t, is_trained=False) if i in earlier else t for i, t in enumerate(conversation.turns))
    return replace(conversation, turns=tuple(turns))


def label_text(
    input_ids: np.ndarray, spans: np.ndarray, rendered: Rendered, settings: TokensSettings, turns: Sequence[Turn]
) -> LabelledRow:
    """The tokens whose characters are all inside one target span of the text; under ``all`` every token.

    ``turns``: those of the conversation, if any of them has a loss weight; a token whose weight is not above 0 is
    no target, and one that touches texts of two weights takes the smaller.
    """
    if lost := _unplaced_span(rendered, turns):
        return empty_row(lost)
    labels = np.ones(len(input_ids), bool) if settings.targets == "all" else _inside(spans, rendered.targets)
    weight = _weights(spans, rendered, turns) if turns else None
    if weight is not None:
        weight[~labels] = 0
        labels = weight > 0
    return cut_row(LabelledRow(input_ids, labels, spans, rendered.contents, weight=weight), settings.max_length)


def _unplaced_span(rendered: Rendered, turns: Sequence[Turn]) -> str:
    """Why a span with a weight cannot be placed: it is in a thought that the template writes its own way. Empty if all
    can be."""
    for content in rendered.contents:
        if not 0 <= content.turn < len(turns):
            continue
        turn = turns[content.turn]
        if any(turn.content[start : min(end, content.skipped)].strip() for start, end, _ in turn.spans):
            return (
                f"turns[{content.turn}]: a loss weight is set on a thought in the content, which the chat template "
                "writes its own way; use template: tulu, or leave the weight out"
            )
    return ""


def _weights(spans: np.ndarray, rendered: Rendered, turns: Sequence[Turn]) -> np.ndarray:
    """float32 (L,), the loss weights of the trained turns; 1 for tokens outside of them."""
    weight = np.ones(len(spans), dtype=np.float32)
    trained = [index for index, turn in enumerate(turns) if turn.role == "assistant" and turn.is_trained]
    contents = {content.turn: content for content in rendered.contents}
    for index, target in zip(trained, rendered.targets, strict=True):
        turn, content = turns[index], contents[index]
        weight[_touching(spans, *target)] = turn.weight
        placed = place_tokens(content, spans)
        weight[placed.tokens] = weights_in_spans(placed, content.length, turn.spans, weight[placed.tokens])
    return weight


def _touching(spans: np.ndarray, start: int, end: int) -> np.ndarray:
    """bool (L,), the tokens that share a character with [start, end)."""
    return (spans[:, 0] < end) & (spans[:, 1] > start)


def label_tokens(tokens: LabelledTokens, largest_id: int, settings: TokensSettings) -> LabelledRow:
    """A row that came tokenized, by its own labels; ``last_turn`` takes the last run of them, ``all`` every token.

    Ids beyond the vocabulary, for which the model has no embedding, leave the row empty with the reason.
    """
    input_ids, labels, weight = tokens.input_ids, tokens.is_response.copy(), tokens.weight
    strange = np.flatnonzero((input_ids < 0) | (input_ids > largest_id))
    if len(strange):
        found = f"input_ids[{strange[0]}] is {input_ids[strange[0]]}"
        return empty_row(f"{found}, but the tokenizer's ids end at {largest_id}; was another tokenizer used?")
    is_unlearned = np.zeros(len(labels), bool) if weight is None else weight < 0
    if settings.targets == "all":
        weight = None if weight is None else np.where(labels | is_unlearned, weight, np.float32(1))
        labels = ~is_unlearned
    elif settings.targets == "last_turn":
        start = _last_run(labels | is_unlearned)
        labels[:start] = False
        weight = None if weight is None else np.where(np.arange(len(weight)) < start, np.float32(0), weight)
    no_text = np.zeros((len(input_ids), 2), np.int32)
    return cut_row(LabelledRow(input_ids, labels, no_text, weight=weight), settings.max_length)


def _last_run(labels: np.ndarray) -> int:
    """Where the last run of True begins; 0 if there is none."""
    places = np.flatnonzero(labels)
    gaps = np.flatnonzero(np.diff(places) > 1)
    return int(places[gaps[-1] + 1]) if len(gaps) else 0


def _inside(spans: np.ndarray, targets: Iterable[tuple[int, int]]) -> np.ndarray:
    start, end = spans[:, 0], spans[:, 1]
    labels = np.zeros(len(spans), dtype=bool)
    for first, last in targets:
        labels |= (start >= first) & (end <= last) & (end > start)
    return labels
