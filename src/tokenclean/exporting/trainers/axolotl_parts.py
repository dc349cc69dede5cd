"""The form of axolotl for chats: messages whose content is in parts that are trained or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.configuration import fill
from tokenclean.exporting.trainers.writer import Written, choose_chats, describe_changes
from tokenclean.exporting.weight_range import limit_weights
from tokenclean.exporting.weighted_texts import WeightedTexts
from tokenclean.pool.conversation import Conversation, Turn
from tokenclean.pool.formats.row_parser import write_row
from tokenclean.pool.intake import write_lines
from tokenclean.tokens.tulu import TULU_JINJA

_WHY = (
    "a part is trained or not, so weights of at least 0.5 count as 1 and others as 0, and a part is of the content "
    "alone, so thoughts, tool calls and the end token follow their message; use --to axolotl for every token's label"
)
_LEFT_OUT = "nothing with a weight of at least 0.5"
_NO_CHAT = "no chat: axolotl's chat templates take messages"

_CONFIG = """\
# Fine-tune on parts of these answers with axolotl, from inside this folder: axolotl train train.yaml
# Written by tokenclean; add adapter, learning rate, epochs and batch size of your own.
base_model: {model}
revision_of_model: {revision}
chat_template: {kind}
{jinja}datasets:
  - path: train.jsonl
    ds_type: json
    type: chat_template
    field_messages: messages
    field_tools: tools
    roles_to_train: [assistant]
    train_on_eos: turn
    message_field_training: train
    message_property_mappings:
      role: role
      content: content
# axolotl recognizes prepared rows by this file's path, not by its content, so they stay beside it.
dataset_prepared_path: prepared
val_set_size: 0
# The longest row had {longest} tokens. Longer rows are an error here; by default axolotl would drop them.
sequence_len: {max_length}
excess_length_strategy: raise
sample_packing: false  # true packs whole rows; set attn_implementation with it, or they may see each other
output_dir: model
"""


def write_axolotl_parts(texts: WeightedTexts, folder: Path, card: Card) -> Written:
    """``train.jsonl``, messages whose contents are lists of ``{type, text, train}``, and ``train.yaml``.

    axolotl renders and tokenizes them itself, with the template of the run. It masks a token that lies in two parts, so
    parts meet where tokens of the base do: a blank then belongs to the word behind it. Rows that are no chat, and rows
    with nothing left to train, are left out and listed. Raises TableError where none is left.
    """
    limited = texts.with_weights(texts.weights.map_values(lambda values: limit_weights(values, "labels")))
    weighed = limited.weighted_conversations()
    parts = [_in_parts(conversation) for conversation in weighed]
    is_trained = [any(turn.is_trained for turn in conversation.turns) for conversation in parts]
    chosen, left_out = choose_chats(texts, is_trained, no_chat=_NO_CHAT, untrained=_LEFT_OUT, otherwise="axolotl")
    written = [parts[row] for row in chosen]
    write_lines(map(_row, written), folder / "train.jsonl")
    kept = texts.take(chosen)
    is_tulu = card.template != "tokenizer"
    config = _CONFIG.replace("{jinja}", "chat_template_jinja: {jinja}\n" if is_tulu else "")
    further = {"kind": "jinja", "jinja": TULU_JINJA} if is_tulu else {"kind": "tokenizer_default"}
    fill(config, folder / "train.yaml", card, int(kept.tokens.input_ids.lengths.max()), further=further)
    changes = describe_changes(kept.weights.values, kept.weights_read_from(written).values, _WHY)
    return Written("axolotl train train.yaml", len(chosen), changes, left_out)


def _in_parts(conversation: Conversation) -> Conversation:
    """The conversation as axolotl can train it: weights of contents alone, each message trained or not."""
    return replace(conversation, turns=tuple(map(_turn_in_parts, conversation.turns)))


def _turn_in_parts(turn: Turn) -> Turn:
    """A turn whose weights are 0 and 1, without that of its end token."""
    length = len(turn.content)
    return replace(turn, spans=tuple((start, min(end, length), w) for start, end, w in turn.spans if start < length))


def _row(conversation: Conversation) -> dict[str, object]:
    row = write_row(conversation)
    messages = [_message(turn, message) for turn, message in zip(conversation.turns, row["messages"], strict=True)]
    return {"messages": messages, **({"tools": row["tools"]} if "tools" in row else {})}


def _message(turn: Turn, message: dict[str, object]) -> dict[str, object]:
    """The message with a content in parts where some of it is not trained."""
    if turn.role != "assistant" or not turn.is_trained:
        return message | ({"train": False} if turn.role == "assistant" else {})
    if not turn.spans:
        return message | {"train": True}
    parts, done = [], 0
    for start, end, _ in (*turn.spans, (len(turn.content), len(turn.content), 0.0)):
        for first, last, is_trained in ((done, start, True), (start, end, False)):
            if first < last:
                parts.append({"type": "text", "text": turn.content[first:last], "train": is_trained})
        done = end
    return message | {"content": parts, "train": True}
