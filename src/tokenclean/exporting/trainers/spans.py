"""The exchange form: conversations with the weights of their characters, for any tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.writer import Written, describe_changes
from tokenclean.exporting.weighted_texts import WeightedTexts
from tokenclean.pool.formats.row_parser import write_row
from tokenclean.pool.formats.spans import KEY, write_spans
from tokenclean.pool.intake import write_lines

_WHY = (
    "single tokens of thoughts and tool calls, and those that share a character with a token of a smaller weight, "
    "cannot be named by characters of a message"
)


def write_spans_form(texts: WeightedTexts, folder: Path, card: Card) -> Written:
    """``spans.jsonl``: each row's messages, ids, source and ``spans`` of ``{message, start, end, weight}``.

    A row that came tokenized has no text; it is written with ``input_ids``, ``labels`` and ``token_weight``, which the
    pool reads too. Weights above 1 are scaled, all by one factor. What the file trains is found by reading it as a
    pool would and tokenizing it once more; tokens with another weight are counted.
    """
    largest = float(texts.weights.values.max(initial=1.0))
    scaled = texts.with_weights(texts.weights.map_values(lambda values: (values / largest).astype(np.float32)))
    conversations = scaled.weighted_conversations()
    rows = []
    for conversation in conversations:
        plain = replace(conversation, turns=tuple(replace(turn, spans=()) for turn in conversation.turns))
        row = write_row(plain)
        rows.append(row | ({} if conversation.tokens is not None else {KEY: write_spans(conversation.turns)}))
    write_lines(rows, folder / "spans.jsonl")
    changes = []
    if largest > 1:
        changes.append(
            f"weights are divided by {largest:.6g}, so that none is above 1; the loss Σ w·ℓ / Σ |w| is the same"
        )
    changes += describe_changes(scaled.weights.values, scaled.weights_read_from(conversations).values, _WHY)
    return Written("tokenclean look spans.jsonl", len(rows), tuple(changes))
