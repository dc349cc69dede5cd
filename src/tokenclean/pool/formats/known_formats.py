"""The formats of a pool's rows, and what each one gives.

=====================  =======================================================  ============================
format                 keys                                                     kind
=====================  =======================================================  ============================
``messages``           ``messages``: list of ``{role, content}``;               ``chat``
                       optional ``system``, ``tools`` (or ``functions``)
``sharegpt``           ``conversations``: list of ``{from, value}``;            ``chat``
                       optional ``system``, ``tools``
``alpaca``             ``instruction``, ``output`` or ``response``; optional    ``chat``
                       ``input``, ``context`` or ``query``, ``system``,
                       ``tools``, ``reasoning_content``, ``history`` (list
                       of ``[question, answer]``)
``prompt_completion``  ``prompt``, ``completion``: both texts, or both lists    ``completion``, and ``chat``
                       of messages (then optional ``tools``, ``system``)        for lists of messages
``tokens``             ``input_ids``, ``labels``: integers; optional            ``tokens``
                       ``attention_mask``, masks and weights of tokens
``text``               ``text``                                                 ``text``
=====================  =======================================================  ============================

Every format may have ``source``, ``id`` and a loss weight of the row (``weight``, ``train``, …). ``messages.py`` says
how a message is read; each may have either spelling under either key. ``tools`` is a list of objects. A key whose value
is ``null`` counts as missing. Any other key that holds something is returned as unread, and refused where leaving it
out would change what is trained (``unread_keys``). A list may be given as its JSON text (a CSV cell), except under
``prompt`` and ``completion``, where a text is a text unless it holds messages. Texts are kept unchanged.

A pool with other names maps them: ``columns`` (our key -> the row's column, a dot leading into an object; then only
mapped keys of the row are read) and ``roles`` (role name -> ``system``, ``user``, ``assistant`` or ``tool``; they take
precedence over the names known already).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tokenclean.pool.conversation import Kind, LabelledTokens, Turn
from tokenclean.pool.formats.field_types import (
    Row,
    RowError,
    check_text,
    is_blank,
    name_type,
    read_text,
    says_nothing,
)
from tokenclean.pool.formats.labelled_tokens import parse_labelled_tokens
from tokenclean.pool.formats.messages import (
    check_turns,
    note_tags,
    parse_messages,
    read_reasoning,
    untrained,
    with_thoughts,
)
from tokenclean.pool.formats.row_options import RowContext
from tokenclean.pool.formats.tool_calls import drop_padding, read_tools
from tokenclean.pool.formats.unread_keys import SYSTEM_KEYS


@dataclass(frozen=True)
class Parsed:
    """The content of a row: the fields of a Conversation except its place and id."""

    kind: Kind
    turns: tuple[Turn, ...] = ()
    tools: str = ""
    tokens: LabelledTokens | None = None
    original_id: str = ""
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    format: str = field(default="", compare=False)


def _parse_list(key: str, row: Row, context: RowContext) -> Parsed:
    if row.get(key) is None:
        raise RowError(f"{key}: missing")
    messages = context.read_list(row, key)
    if messages and all(isinstance(message, str) for message in messages):  # LIMA's conversations
        context.note("list of texts read as user and assistant in turn")
        messages = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(messages)]
    turns = parse_messages(messages, key, context)
    check_turns(turns, key, context)
    return _chat(row, turns, f"{key}[0]", context)


def _parse_alpaca(row: Row, context: RowContext) -> Parsed:
    instruction = read_text(row, "instruction")
    context_key = _find_one(row, ("input", "context", "query"))
    further = read_text(row, context_key) if context_key else ""
    if is_blank(instruction) and is_blank(further):
        raise RowError(f"instruction: blank, and there is no {context_key or 'input'} either")
    response_key = _find_one(row, ("output", "response"))
    if response_key is None:
        raise RowError("output: missing, and so is response; expected one of them")
    answer = {"role": "assistant", "content": _read_response(row, response_key)}
    if reasoning := read_reasoning(row, "", context):
        answer["reasoning_content"] = reasoning
    question = "\n".join(text for text in (instruction, further) if not is_blank(text))
    earlier = _parse_history(context.read_list(row, "history"), context)
    turns = (*earlier, Turn("user", question), *parse_messages([answer], response_key, context))
    return _chat(row, turns, "history", context)


def _parse_history(pairs: Sequence[object], context: RowContext) -> list[Turn]:
    turns: list[Turn] = []
    for index, pair in enumerate(pairs):
        where = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"{len(pair)} entries" if isinstance(pair, list) else name_type(pair)
            raise RowError(f"{where}: expected a list of a question and its answer, found {found}")
        question, answer = (check_text(text, f"{where}[{side}]") for side, text in enumerate(pair))
        if is_blank(question):
            raise RowError(f"{where}[0]: blank user turn")
        if is_blank(answer):
            raise RowError(f"{where}[1]: blank response")
        answered = with_thoughts(Turn("assistant", answer, is_trained=not context.history_is_context), context)
        turns += Turn("user", question), answered
    return turns


def _parse_prompt_completion(row: Row, context: RowContext) -> Parsed:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        asked = _list_of_messages(prompt, context)
        if asked is not None:  # cells of a CSV
            context.note("prompt and completion read as messages from the text of a list")
            answered = _list_of_messages(completion, context)
            prompt, completion = asked, completion if answered is None else answered
    if isinstance(prompt, list) and isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    elif isinstance(completion, list) and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        if not isinstance(completion, list):
            raise RowError(f"completion: expected text or a list of messages, found {name_type(completion)}")
        return _parse_prompt_messages(row, prompt, completion, context)
    # A blank prompt is plain text to continue from nothing, which is a sample; a blank completion is none.
    answer = with_thoughts(Turn("assistant", _read_response(row, "completion")), context)
    question = Turn("user", read_text(row, "prompt"))
    for turn in (question, answer):
        note_tags(turn.content, context)
    return Parsed("completion", (question, answer))


def _list_of_messages(text: str, context: RowContext) -> list[object] | None:
    """The messages whose JSON text this is; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = context.decode(text, "prompt")
    except RowError:
        return None
    if not isinstance(value, list) or not value:
        return None
    return value if all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value) else None


def _parse_prompt_messages(
    row: Row, prompt: Sequence[object], completion: Sequence[object], context: RowContext
) -> Parsed:
    # Assistant turns in the prompt are context; their weights do not matter.
    asked = [
        untrained(turn) if turn.role == "assistant" else turn for turn in parse_messages(prompt, "prompt", context)
    ]
    context.blank_answers.clear()
    answered = parse_messages(completion, "completion", context)
    if not any(turn.role == "assistant" for turn in answered):
        raise RowError("completion: no assistant turn, so there is no response to train on")
    turns = (*asked, *answered)
    check_turns(turns, "completion", context)
    return _chat(row, turns, "prompt[0]", context)


def _parse_tokens(row: Row, _context: RowContext) -> Parsed:
    return Parsed("tokens", tokens=parse_labelled_tokens(row))


def _parse_text(row: Row, _context: RowContext) -> Parsed:
    text = read_text(row, "text")
    if is_blank(text):
        raise RowError("text: blank")
    return Parsed("text", (Turn("assistant", text),))


FORMATS: dict[str, Callable[[Row, RowContext], Parsed]] = {
    "messages": partial(_parse_list, "messages"),
    "sharegpt": partial(_parse_list, "conversations"),
    "alpaca": _parse_alpaca,
    "prompt_completion": _parse_prompt_completion,
    "tokens": _parse_tokens,
    "text": _parse_text,
}


def _find_one(row: Row, keys: Sequence[str]) -> str | None:
    """The one of the keys that is given, None where none is; RowError where two say something."""
    present = [key for key in keys if row.get(key) is not None]
    given = [key for key in present if not (isinstance(text := row[key], str) and is_blank(text))] or present[:1]
    if len(given) > 1:
        raise RowError(f"{given[0]}: given, and so is {given[1]}; expected one of them")
    return given[0] if given else None


def _chat(row: Row, turns: tuple[Turn, ...], where: str, context: RowContext) -> Parsed:
    """The turns, after the row's own system text, and its tools. ``where``: place of the first turn."""
    turns = _read_system(row, turns[0], where) + turns
    turns, tools = drop_padding(turns, read_tools(row, context), context)
    return Parsed("chat", turns, tools)


def _read_system(row: Row, first: Turn, where: str) -> tuple[Turn, ...]:
    """The row's own system text as a turn; none where it is blank or repeats the first turn, a system turn.

    Raises RowError where both are given and differ.
    """
    texts = {key: text for key in SYSTEM_KEYS if not is_blank(text := read_text(row, key, may_lack=True))}
    if len(set(texts.values())) > 1:
        raise RowError(f"{' and '.join(texts)} differ; expected one of them")
    if not texts:
        return ()
    key, text = next(iter(texts.items()))
    if first.role != "system":
        return (Turn("system", text),)
    if first.content.strip() == text.strip():
        return ()
    raise RowError(f"{key}: given, and {where} is a system turn too; expected one of them", f"--ignore {key}")


def _read_response(row: Row, key: str) -> str:
    response = read_text(row, key)
    if says_nothing(response):
        raise RowError(f"{key}: blank response")
    return response
