"""Turns from a list of chat messages.

A message is ``{role, content}`` or ShareGPT's ``{from, value}``; case does not matter in role names. A key whose value
is ``null`` counts as missing. Keys that are not named here are counted as unread, and refused where they would change
what is trained (``unread_keys``).

``content`` is text, or a list of parts that are joined unchanged: a text, or ``{type: text, text}`` (LLaMA-Factory v1:
``value`` for ``text``). An assistant's may hold parts of type ``reasoning`` and ``tool_call`` too. A part of another
type makes the row unusable, and no path or address in a row is ever opened.

An assistant's message may further hold

- ``tool_calls`` (or OpenAI's older ``function_call``): what it calls; ``content`` may then be missing or blank;
- ``reasoning_content`` (or ``reasoning``, or ``thinking``): its reasoning;
- a loss weight of the message, or of a part, which replaces the message's (``weights``).

A tool's message may name the tool (``name``) and the call it answers (``tool_call_id``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenclean.pool.conversation import Role, Turn
from tokenclean.pool.formats.field_types import (
    Row,
    RowError,
    check_object,
    check_text,
    describe_keys,
    encode_json,
    holds_nothing,
    is_blank,
    lone_tag,
    name_type,
    quote,
    read_text,
    says_nothing,
    thought_of,
)
from tokenclean.pool.formats.loss_weights import WEIGHT_KEYS, read_details, read_weight
from tokenclean.pool.formats.row_options import MESSAGE_KEYS, MISSING, REASONING_KEYS, RowContext, find_column
from tokenclean.pool.formats.tool_calls import read_calls, read_function_call
from tokenclean.pool.formats.unread_keys import MEDIA, check_unread, meaning_of, shown_key

_SPELLINGS = (("role", "content"), ("from", "value"))
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")
_CALL_PARTS = ("tool_call", "tool_calls", "function_call")
_PART_KEYS = frozenset(("type", "text", "value", "content", *_REASONING_PARTS, *WEIGHT_KEYS))
_KNOWN_KEYS = frozenset(MESSAGE_KEYS)
_PLAIN_KEYS = frozenset(("role", "content", "from", "value"))

_SWITCHES = ("on", "off", "true", "false", "enabled", "disabled", "none")
_RENDERED = re.compile(
    r"\A\s*(?:<s>\s*)?(?:\[INST\]|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant|system)\|>)"
    r"|(?:</s>|\[/INST\]|<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<end_of_turn>|<\|endoftext\|>|<\|end_of_text\|>)\s*\Z"
)
_PLACEHOLDER = re.compile(
    r"<(?:image|video|audio|img)>|<\|(?:image|video|audio|vision_start|image_pad|video_pad|audio_pad)\|>"
    r"|!\[[^\]]*\]\(data:image"
)


def parse_messages(messages: Sequence[object], key: str, context: RowContext) -> tuple[Turn, ...]:
    """The turns of a list of messages. ``key``: where the list is in the row. Raises RowError.

    A blank system or tool turn is allowed, a blank user turn is not. A blank answer that calls no tool stays as
    context and is not trained. A turn that only calls, directly after another of the assistant's, is joined to that
    one: two turns would teach to stop before the call.
    """
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        turn = _parse_message(message, f"{key}[{index}]", context)
        if turn.tool_calls and turns and _may_join(turns[-1], turn):
            context.note("calls of consecutive turns joined in one turn")
            turn = replace(turns[-1], tool_calls=turns.pop().tool_calls + turn.tool_calls)
        turns.append(turn)
    return tuple(turns)


def check_turns(turns: Sequence[Turn], key: str, context: RowContext) -> None:
    """RowError unless an assistant turn is left to train and tools speak after an assistant."""
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise RowError(f"{key}: no assistant turn, so there is no response to train on")
    if not any(turn.is_trained for turn in turns if turn.role == "assistant"):
        if context.blank_answers:
            raise RowError(f"{context.blank_answers[0]}: blank response")
        raise RowError(f"{key}: every assistant turn is marked as not trained, so there is no response to train on")
    if "tool" in roles and roles.index("tool") < roles.index("assistant"):
        raise RowError(f"{key}: a tool turn is before the first assistant turn; expected a call before its result")
    if "user" not in roles:
        context.note("chat without a user turn")
    elif roles.index("assistant") < roles.index("user"):
        context.note("chat that begins with the assistant")


def _may_join(before: Turn, turn: Turn) -> bool:
    return (
        before.role == "assistant"
        and (bool(before.tool_calls) or not is_blank(before.content))
        and is_blank(turn.content)
        and not turn.reasoning
        and before.is_trained == turn.is_trained
        and before.weight == turn.weight
    )


def _parse_message(message: object, where: str, context: RowContext) -> Turn:
    row = check_object(message, where)
    options = context.options
    if options.message_columns:
        row = _rename_keys(row, where, options.message_columns)
    if not options.ignored.isdisjoint(row):
        context.add_unread((shown_key(key) for key in row if key in options.ignored), "messages[].")
        row = {key: value for key, value in row.items() if key not in options.ignored}
    role_key, content_key, other = _find_spelling(row, where)
    role_name = read_text(row, role_key, f"{where}.").strip().lower()
    role = options.role_of.get(role_name)
    if role is None:
        raise RowError(
            f"{where}.{role_key}: unknown role {quote(row[role_key])}; known are {', '.join(options.role_of)}",
            f"--role {shlex.quote(f'{role_name}={_likely_role(role_name)}')} (or user, assistant, system, tool)",
        )
    content = row.get(content_key)
    if not (holds_nothing(row.get(other)) or holds_nothing(content) or row[other] == content):
        raise RowError(f"{where}: {content_key} and {other} are given and differ; expected one of them")
    if not _KNOWN_KEYS.issuperset(row):
        texts = [content] if isinstance(content, str) else []
        unread = check_unread(row, _KNOWN_KEYS, options.ignored, texts, prefix=f"{where}.")
        context.add_unread(unread, "messages[].")
    is_call = role_name in ("function_call", "tool_call")
    place = f"{where}.{content_key}"
    if len(row) == 2 and _PLAIN_KEYS.issuperset(row) and isinstance(content, str) and not is_call:
        return _parse_plain(role, content, place, context)  # most messages
    used = {"assistant": ("train_detail",), "tool": ("name", "tool_call_id")}.get(role, ())
    of_one_role = ("name", "tool_call_id", "train_detail")
    context.add_unread((k for k in of_one_role if k not in used and not holds_nothing(row.get(k))), "messages[].")
    if role == "assistant":
        return _parse_assistant(row, is_call, content_key, where, context)
    if read_weight(row, where):
        stated = next(key for key in WEIGHT_KEYS if not holds_nothing(row.get(key)))
        raise RowError(
            f"{where}: marked as trained; only an assistant's turn can be (tokens.targets: all trains all)",
            f"--ignore {stated} (trains every turn of the assistant's)",
        )
    _check_only_speaks(row, role, where)
    if role == "tool" and not isinstance(content, str | list):
        row = {**row, content_key: "" if content is None else encode_json(content, place)}
    text = _read_content(row, content_key, where, context).content
    note_tags(text, context)
    if role == "tool":
        name, call_id = (read_text(row, key, f"{where}.", may_lack=True) for key in ("name", "tool_call_id"))
        return Turn(role, text, name=name, call_id=call_id)
    return _not_blank(Turn(role, text), place)


def _parse_plain(role: Role, text: str, where: str, context: RowContext) -> Turn:
    """A message that is its text alone."""
    check_text(text, where)
    if "<" in text or "[" in text:
        note_tags(text, context)
    if role != "assistant":
        return _not_blank(Turn(role, text), where)
    if says_nothing(text):
        return _keep_blank(Turn(role, text), where, context)
    return with_thoughts(Turn(role, text), context)


def _not_blank(turn: Turn, where: str) -> Turn:
    """The turn; RowError for a blank question, which has lost its text.

    A blank system turn says the same as none, and a tool may return nothing.
    """
    if turn.role == "user" and is_blank(turn.content):
        raise RowError(f"{where}: blank user turn")
    return turn


def _keep_blank(turn: Turn, where: str, context: RowContext) -> Turn:
    context.blank_answers.append(where)
    context.note("blank answer kept as context, not trained")
    return untrained(turn)


def untrained(turn: Turn) -> Turn:
    """The turn as context, without its weights."""
    return replace(turn, is_trained=False, weight=1.0, spans=())


def _parse_assistant(row: Row, is_call: bool, content_key: str, where: str, context: RowContext) -> Turn:
    stated = read_weight(row, where)
    weight = 1.0 if stated is None else stated
    calls = () if row.get("tool_calls") is None else read_calls(row["tool_calls"], f"{where}.tool_calls", context)
    if row.get("function_call") is not None:
        if calls:
            raise RowError(f"{where}.function_call: given, and so is tool_calls; expected one of them")
        calls = read_function_call(row["function_call"], f"{where}.function_call", context)
    turn = Turn("assistant", "")
    if is_call:
        if calls:
            raise RowError(f"{where}.tool_calls: given, and the content of a function_call turn is a call too")
        calls = read_function_call(row.get(content_key), f"{where}.{content_key}", context)
    elif not calls or row.get(content_key) is not None:
        turn = _read_content(row, content_key, where, context, weight)
    reasoning = read_reasoning(row, where, context)
    if turn.reasoning and reasoning and turn.reasoning != reasoning:
        raise RowError(f"{where}: reasoning is given under a key of the message and in a part of its content")
    details = read_details(row, len(turn.content), weight or 1.0, where, context)
    if details and turn.spans:
        raise RowError(f"{where}: parts of the content have weights, and so have spans of it; expected one of them")
    spans = tuple(span for span in details or turn.spans if span[0] < span[1] and span[2] != weight)
    turn = replace(turn, reasoning=reasoning or turn.reasoning, tool_calls=calls + turn.tool_calls)
    is_trained = weight != 0 or any(span[2] != 0 for span in spans)
    turn = replace(turn, weight=weight, spans=spans) if is_trained else untrained(turn)
    is_empty = not turn.tool_calls and says_nothing(turn.content)
    turn = with_thoughts(_with_one_thought(turn, where, context), context)
    note_tags(turn.content, context)
    return _keep_blank(turn, f"{where}.{content_key}", context) if is_empty else turn


def _with_one_thought(turn: Turn, where: str, context: RowContext) -> Turn:
    """The turn with its thought in its content or in its reasoning, not in both. RowError where both differ."""
    if not turn.reasoning:
        return turn
    if (lone := lone_tag(turn.reasoning)) or "</think>" in turn.reasoning:
        raise RowError(f"{where}: the reasoning holds the tag {lone or '</think>'}, which templates write; remove it")
    inside = thought_of(turn.content)
    if inside is None or is_blank(inside):
        return turn
    if inside.strip() != turn.reasoning.strip():
        raise RowError(f"{where}: a thought in the content and another one as reasoning; expected one of them")
    context.note("thought given in the content and as reasoning, taken once")
    return replace(turn, reasoning="")


def with_thoughts(turn: Turn, context: RowContext) -> Turn:
    """The turn, a lone ``</think>`` in it repaired where the source asks for it, else noted."""
    lone = lone_tag(turn.content)
    opening = lone.replace("/", "")
    if lone == opening:
        if lone:
            context.note(f"answer with {lone} that never ends")
        return turn
    if not context.options.repair_thoughts:
        context.note(f"answer with {lone} but no {opening} in front of it (--repair-thoughts adds it)")
        return turn
    context.note(f"{opening} put in front of thoughts that only ended")
    added = opening + "\n"
    spans = tuple((start + len(added), end + len(added), weight) for start, end, weight in turn.spans)
    return replace(turn, content=added + turn.content, spans=spans)


def note_tags(text: str, context: RowContext) -> None:
    """Note a text that a template has rendered already, or one with a placeholder for a picture."""
    if _RENDERED.search(text):
        context.note("text with the tags of a chat template: is it rendered already?")
    if _PLACEHOLDER.search(text):
        context.note("text with a placeholder for an image, a sound or a video")


def _likely_role(name: str) -> str:
    if any(word in name for word in ("tool", "function", "result", "observation", "api")):
        return "tool"
    is_answer = any(word in name for word in ("assist", "bot", "model", "ai", "answer", "agent", "gpt"))
    return "assistant" if is_answer else "user"


def _find_spelling(row: Row, where: str) -> tuple[str, str, str]:
    """The keys of the role and the content in this message, and the other spelling's key of the content."""
    has_role, has_from = row.get("role") is not None, row.get("from") is not None
    if has_role and has_from:
        raise RowError(f"{where}.role: given, and so is from; expected one of them")
    if not has_role and not has_from:
        raise RowError(f"{where}.role: missing, and so is from; found {describe_keys(row)}")
    return ("role", "content", "value") if has_role else ("from", "value", "content")


def _read_content(row: Row, key: str, where: str, context: RowContext, weight: float | None = None) -> Turn:
    """The content as a turn, with the reasoning and calls in its parts, and the spans whose weight is not the
    message's.

    ``weight``: of an assistant's message; None for the others, which are not trained.
    """
    value = row.get(key)
    if not isinstance(value, list):
        return Turn("assistant", read_text(row, key, f"{where}."))
    text, reasoning, calls, spans = "", "", (), []
    for index, part in enumerate(value):
        place = f"{where}.{key}[{index}]"
        part = {"type": "text", "text": part} if isinstance(part, str) else check_object(part, place)
        kind = part.get("type")
        if isinstance(kind, str) and kind in context.options.ignored:
            context.note(f"parts of type {kind} left out")
            continue
        said = _read_part(part, place, is_assistant=weight is not None)
        unread = check_unread(part, _PART_KEYS, context.options.ignored, (said,), prefix=f"{place}.")
        context.add_unread(unread, "messages[].content[].")
        stated = read_weight(part, place)
        if stated and weight is None:
            raise RowError(f"{place}: marked as trained; only an assistant's turn can be")
        own = weight if stated is None else stated
        if kind in _TEXT_PARTS:
            if weight is not None and own != weight:
                spans.append((len(text), len(text) + len(said), own or 0.0))
            text += said
        elif own != weight:
            raise RowError(f"{place}: a weight of its own for {kind}; expected that of the whole message")
        elif kind in _CALL_PARTS:
            calls += read_function_call(said, place, context)
        else:
            reasoning += said
    return Turn("assistant", text, reasoning, calls, spans=tuple(spans))


def _read_part(part: Row, where: str, *, is_assistant: bool) -> str:
    kind = part.get("type")
    kinds = (*_TEXT_PARTS, *_REASONING_PARTS, *_CALL_PARTS) if is_assistant else _TEXT_PARTS
    if kind not in kinds:
        is_media = isinstance(kind, str) and meaning_of(kind) == MEDIA
        remedy = f"--ignore {kind} (trains the text alone)" if is_media else ""
        raise RowError(f"{where}: expected a part of type 'text', found {quote(kind)}; only text is read", remedy)
    keys = ["text", "value", "content"] + [kind for kind in _REASONING_PARTS if kind == part["type"]]
    given = [key for key in keys if part.get(key) is not None]
    if len(given) > 1:
        raise RowError(f"{where}: {' and '.join(given)} are given; expected one of them")
    key = given[0] if given else "text"
    return check_text(part.get(key), f"{where}.{key}")


def read_reasoning(row: Row, where: str, context: RowContext) -> str:
    """The thoughts, under any of their keys; a switch (on, off) is none. ``where``: path to the keys, or empty."""
    prefix = f"{where}." if where else ""
    texts: dict[str, str] = {}
    for key in REASONING_KEYS:
        text = read_text(row, key, prefix, may_lack=True)
        if text.strip().lower() in _SWITCHES:
            context.add_unread([key], "messages[]." if where else "")
        elif not is_blank(text):
            texts[key] = text
    if len(set(texts.values())) > 1:
        raise RowError(f"{where or 'row'}: {' and '.join(texts)} differ; expected one of them")
    return next(iter(texts.values()), "")


def _check_only_speaks(row: Row, role: Role, where: str) -> None:
    """RowError where a turn that is not the assistant's has what only an assistant's has."""
    for key in ("tool_calls", "function_call", *REASONING_KEYS):
        if not holds_nothing(value := row.get(key)):
            raise RowError(f"{where}.{key}: found {name_type(value)} in a {role} turn; only an assistant's turn has it")


def _rename_keys(message: Row, where: str, columns: Mapping[str, str]) -> dict[str, object]:
    """The message under our keys. Unmapped keys keep their names, except those of the other spelling, which go."""
    spelling: tuple[str, ...] = next((pair for pair in _SPELLINGS if not columns.keys().isdisjoint(pair)), ())
    dropped = {*columns, *columns.values()}
    if spelling:
        dropped.update(key for pair in _SPELLINGS if pair != spelling for key in pair)
    renamed = {key: value for key, value in message.items() if key not in dropped}
    found = {key: find_column(message, column) for key, column in columns.items()}
    renamed.update((key, value) for key, value in found.items() if value is not MISSING)
    for key in spelling:
        may_lack = key in ("content", "value") and renamed.get("tool_calls") is not None
        if found.get(key) is MISSING and not may_lack:
            raise RowError(f"{where}.{key}: no column {quote(columns[key])}; found {describe_keys(message)}")
    return renamed
