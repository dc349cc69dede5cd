"""The form of LLaMA-Factory v1: messages with a loss weight each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.configuration import fill
from tokenclean.exporting.trainers.writer import Written, choose_chats, describe_changes
from tokenclean.exporting.weight_range import limit_weights
from tokenclean.exporting.weighted_texts import WeightedTexts, answer_of_token
from tokenclean.pool.conversation import Turn
from tokenclean.pool.intake import write_lines
from tokenclean.ragged import Ragged

_NOT_TRAINED = 1e-6  # LLaMA-Factory trains no message of this weight or less
_WHY = (
    "a message has one weight, the mean of its tokens', and none below 0; use --to llamafactory for every token's label"
)
_LEFT_OUT = "no message with a weight above 0"
_NO_CHAT = "no chat: LLaMA-Factory v1 takes messages"

_DATASET = """\
# Written by tokenclean.
tokenclean:
  path: train.jsonl
  source: local
"""

_CONFIG = """\
# Fine-tune on these message weights with LLaMA-Factory v1, from inside this folder:
# USE_V1=1 llamafactory-cli sft train.yaml
# Written by tokenclean; add learning rate, epochs and batch size of your own.
model: {model}
# LLaMA-Factory renders the messages itself. The weights were found with the chat template {template}.
train_dataset: dataset.yaml
# The longest row had {longest} tokens.
cutoff_len: {max_length}
output_dir: model
"""


def write_llamafactory_v1(texts: WeightedTexts, folder: Path, card: Card) -> Written:
    """``train.jsonl``, messages with a ``loss_weight`` each, ``dataset.yaml`` and ``train.yaml``.

    LLaMA-Factory v1 takes no tokens. The weight of an answer is the mean of its response tokens' weights, those below 0
    counted as 0, so what single tokens lose is counted. It trains whole answers with their end tokens. Rows that are no
    chat, and rows without an answer to train, are left out and listed. Raises TableError where none is left.
    """
    means = _answer_means(texts)
    is_trained = means.map_values(lambda values: values > _NOT_TRAINED).row_sums() > 0
    chosen, left_out = choose_chats(
        texts, is_trained.tolist(), no_chat=_NO_CHAT, untrained=_LEFT_OUT, otherwise="llamafactory"
    )
    write_lines((_row(texts, row, means[row]) for row in chosen), folder / "train.jsonl")
    (folder / "dataset.yaml").write_text(_DATASET, encoding="utf-8")
    kept = texts.take(chosen)
    fill(_CONFIG, folder / "train.yaml", card, int(kept.tokens.input_ids.lengths.max()))
    changes = describe_changes(kept.weights.values, means.take(chosen).values, _WHY)
    return Written("USE_V1=1 llamafactory-cli sft train.yaml", len(chosen), changes, left_out)


def _answer_means(texts: WeightedTexts) -> Ragged:
    """Each trained token's weight as the mean over its answer's, float32; 0 for tokens that are not trained."""
    rows = []
    for row, conversation in enumerate(texts.conversations):
        is_trained = texts.tokens.is_trained[row]
        means = np.zeros(len(is_trained), np.float32)
        if conversation.kind == "chat":
            weights = limit_weights(texts.weights[row], "positive")
            answer = answer_of_token(texts.tokens, row)
            for number in np.unique(answer[is_trained]):
                own = is_trained & (answer == number)
                means[own] = weights[own].mean(dtype=np.float64)
        rows.append(means)
    return Ragged.from_rows(rows, np.float32)


def _row(texts: WeightedTexts, row: int, means: np.ndarray) -> dict[str, object]:
    conversation, contents = texts.conversations[row], texts.tokens.contents[row]
    answer, is_trained = answer_of_token(texts.tokens, row), texts.tokens.is_trained[row]
    weight_of = {
        contents[number].turn: float(str(means[is_trained & (answer == number)][0]))
        for number in np.unique(answer[is_trained])
    }
    messages = [_message(turn, weight_of.get(number, 0.0)) for number, turn in enumerate(conversation.turns)]
    return {"messages": messages, **({"tools": conversation.tools} if conversation.tools else {})}


def _message(turn: Turn, weight: float) -> dict[str, object]:
    parts = [{"type": "reasoning", "value": turn.reasoning}] if turn.reasoning else []
    parts += [{"type": "text", "value": turn.content}] if turn.content or not turn.tool_calls else []
    parts += [
        {"type": "tool_call", "value": json.dumps({"name": call.name, "arguments": json.loads(call.arguments)})}
        for call in turn.tool_calls
    ]
    return {"role": turn.role, "content": parts, "loss_weight": weight}
