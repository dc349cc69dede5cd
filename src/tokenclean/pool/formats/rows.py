"""The shapes a pool's row may have, and what each one gives.

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
how a message is read; each may be spelled either way under either key. ``tools`` is a list of objects. A key whose
value is ``null`` counts as missing. Any other key that holds something is returned as unread, and refused where
leaving it out would change what is trained (``unread_keys``). A list may stand as its JSON text (a CSV cell), save
under ``prompt`` and ``completion``, where a text is a text. Texts are kept as they stand.

A pool with other names maps them: ``columns`` (our key -> the row's column, a dot leading into an object; then only
mapped keys of the row are read) and ``roles`` (role name -> ``system``, ``user``, ``assistant`` or ``tool``, going
before the names that are known anyway).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np

from tokenclean.pool.conversation import Kind, LabelledTokens, Role, Turn
from tokenclean.pool.formats.columns import (
    COMMON_KEYS,
    MESSAGE_KEYS,
    REQUIRED_KEYS,
    ROW_KEYS,
    ROW_WEIGHT_KEYS,
    check_columns,
    describe_groups,
    map_columns,
    maps_rows,
    read_column,
)
from tokenclean.pool.formats.context import ROLE_NAMES, Names, RowContext
from tokenclean.pool.formats.fields import (
    Row,
    RowError,
    check_text,
    describe_keys,
    holds_nothing,
    is_blank,
    name_type,
    read_optional_text,
    read_text,
)
from tokenclean.pool.formats.labelled_tokens import parse_labelled_tokens
from tokenclean.pool.formats.messages import check_turns, parse_messages, read_reasoning, with_thoughts
from tokenclean.pool.formats.preferences import refuse_preferences, take_chosen
from tokenclean.pool.formats.suggestions import suggest_columns
from tokenclean.pool.formats.thoughts import says_nothing
from tokenclean.pool.formats.tool_calls import drop_padding, read_tools
from tokenclean.pool.formats.unread_keys import (
    PREFERENCE,
    SECOND_TEXT,
    TOOLS,
    check_unread,
    meaning_of,
    preference_label,
)
from tokenclean.pool.formats.weights import read_weight

_TELLING_KEYS = tuple(dict.fromkeys(key for groups in REQUIRED_KEYS.values() for group in groups for key in group))
_WEIGHING_KEYS = frozenset((*ROW_WEIGHT_KEYS, "loss", "mask"))
SYSTEM_KEYS = ("system", "system_prompt", "system_message")


@dataclass(unsafe_hash=True)
class Parsed:
    """What a row holds: a Conversation without its place. ``tools``: compact JSON text of a list, or empty.
    ``original_id``, ``unread``, ``notes``: as a Conversation has them."""

    kind: Kind
    turns: tuple[Turn, ...] = ()
    tools: str = ""
    tokens: LabelledTokens | None = None
    original_id: str = ""
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowOptions:
    """How the rows of a source are read.

    ``format``: a name in FORMATS, or ``auto`` to go by the row's keys (``detect_format``). ``columns``, ``roles``: as
    the module says, as pairs. ``ignore``: keys, and types of parts of a content, that are left unread on purpose.
    ``preferences``: ``refuse``, or ``chosen`` to train the chosen answer of preference rows and rows labelled true.
    ``python_literals``: where a list or an object is expected, a text may hold it as Python writes it.
    ``repair_thoughts``: an answer with ``</think>`` alone gets the tag that opens the thoughts.

    Raises RecipeError for options that no row can fit.
    """

    format: str = "auto"
    columns: tuple[tuple[str, str], ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    ignore: tuple[str, ...] = ()
    preferences: str = "refuse"
    python_literals: bool = False
    repair_thoughts: bool = False

    def __post_init__(self) -> None:
        check_columns(self.format, dict(self.columns), dict(self.roles))

    @cached_property
    def names(self) -> Names:
        """The names and choices that messages are read with."""
        roles = cast("dict[str, Role]", {name.strip().lower(): role for name, role in self.roles})
        columns = {key: column for key, column in self.columns if key in MESSAGE_KEYS}
        return Names(
            {**ROLE_NAMES, **roles}, columns, frozenset(self.ignore), self.repair_thoughts, self.python_literals
        )

    @cached_property
    def column_of(self) -> dict[str, str]:
        """Our key -> the row's column."""
        return dict(self.columns)

    @cached_property
    def maps_rows(self) -> bool:
        """Whether only mapped keys of a row are read."""
        return maps_rows(self.column_of)


_DEFAULT = RowOptions()


def parse_row(row: Row, options: RowOptions = _DEFAULT, *, is_padded: bool = False) -> Parsed:
    """Kind and content of one row.

    ``is_padded``: the row comes from an Arrow table, where keys that only other rows have hold null. Of a chat, at
    least one assistant turn says something or calls a tool, and is trained. Raises RowError where the row is at fault.
    """
    context = RowContext(options.names, is_padded)
    content = map_columns(row, options.column_of) if options.maps_rows else row
    if options.preferences == "chosen":
        content = take_chosen({**_labels(row), **content} if options.maps_rows else content, context)
    elif not options.maps_rows:
        refuse_preferences(row, context)
    format = detect_format(content, row) if options.format == "auto" else options.format
    parsed = FORMATS[format](content, context)
    if parsed.tools or any(turn.tool_calls for turn in parsed.turns):
        parsed.turns, parsed.tools = drop_padding(parsed.turns, parsed.tools, context)
    _weigh(parsed, row, context)
    column = options.column_of.get("id")
    parsed.original_id = _original_id(row if column is None else {"id": read_column(row, column, "id")}, context)
    parsed.unread = _unread(row, format, options, parsed, context)
    parsed.notes = tuple(context.notes)
    return parsed


def detect_format(row: Row, raw: Row | None = None) -> str:
    """The one format whose required keys are all in the row with a value other than null.

    ``text`` counts only where no other format fits, since many pools carry the rendered text beside the messages.
    ``raw``: the row before its columns were mapped, for the message.

    Raises RowError where no format fits, or more than one: which of two texts is meant is never guessed.
    """
    fitting = _list_fitting(frozenset(key for key in _TELLING_KEYS if row.get(key) is not None))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        reason = f"keys fit {' and '.join(fitting)}: name the format, or remove the keys of the others"
        raise RowError(reason, f"--format {fitting[0]}")
    if len(meant := _list_fitting(frozenset(key for key in _TELLING_KEYS if key in row))) == 1:
        return meant[0]  # a key that it needs holds null, which its reading tells
    raw = row if raw is None else raw
    reason, remedy = f"keys fit no format: found {describe_keys(raw)}", suggest_columns(raw)
    if not remedy:
        needs = "; ".join(f"{name} needs {describe_groups(groups)}" for name, groups in REQUIRED_KEYS.items())
        reason += f"; {needs}"
    raise RowError(reason, remedy)


@lru_cache
def _list_fitting(given: frozenset[str]) -> tuple[str, ...]:
    fitting = tuple(name for name in REQUIRED_KEYS if _fits(name, given))
    return tuple(name for name in fitting if name != "text") or fitting


def _fits(format: str, given: frozenset[str]) -> bool:
    return all(any(key in given for key in group) for group in REQUIRED_KEYS[format])


def _labels(row: Row) -> Row:
    """The preference labels of a row whose columns are mapped."""
    return {key: value for key, value in row.items() if preference_label(str(key), value) is not None}


@lru_cache
def _keys_of_others(given: frozenset[str], format: str) -> frozenset[str]:
    """Keys of the row's other formats, which naming one of them leaves out."""
    others = (name for name in REQUIRED_KEYS if name != format and _fits(name, given))
    return given.intersection(key for name in others for group in REQUIRED_KEYS[name] for key in group)


def _unread(row: Row, format: str, options: RowOptions, parsed: Parsed, context: RowContext) -> tuple[str, ...]:
    """Keys of the row, and of its messages, that hold something and were not used. Raises as ``check_unread``."""
    exempt: tuple[str, ...] = ()
    ignored = context.names.ignored
    if options.maps_rows:
        places = frozenset(options.column_of.values())
        read = {*COMMON_KEYS, *places, *(place.split(".", 1)[0] for place in places)}
        exempt = (SECOND_TEXT, *((PREFERENCE,) if any(meaning_of(place) == PREFERENCE for place in places) else ()))
    else:
        read = _read_keys(format, parsed.kind)
        if read.issuperset(row) and (row.get("source") is None or isinstance(row["source"], str)):
            return tuple(context.unread)
        if options.format != "auto":  # the user has chosen between the formats that the keys fit
            ignored |= _keys_of_others(frozenset(key for key in _TELLING_KEYS if row.get(key) is not None), format)
        if parsed.kind in ("text", "tokens"):
            exempt = (SECOND_TEXT, PREFERENCE, TOOLS)
    if parsed.kind == "completion" and not options.maps_rows:
        _refuse_in_completion(row, ignored)
    unread = check_unread(row, read | context.consumed, ignored, [turn.content for turn in parsed.turns], exempt=exempt)
    if not isinstance(row.get("source"), str) and not holds_nothing(row.get("source")):
        unread.append("source")
    return (*unread, *context.unread)


def _refuse_in_completion(row: Row, ignored: frozenset[str]) -> None:
    """Raise RowError where a prompt and completion of text, which are joined without tags, have what needs a chat."""
    further = [key for key in (*SYSTEM_KEYS, "tools") if key not in ignored and not holds_nothing(row.get(key))]
    if further:
        columns = {"instruction": "prompt", "output": "completion"} | {
            "tools" if key == "tools" else "system": key for key in further
        }
        options = " ".join(f"--column {ours}={theirs}" for ours, theirs in columns.items())
        reason = f"{further[0]}: given beside a prompt and a completion of text, which are joined without tags"
        raise RowError(reason, f"{options} (reads the row as a chat)")


@lru_cache
def _read_keys(format: str, kind: Kind) -> frozenset[str]:
    keys = {*ROW_KEYS[format], *COMMON_KEYS, *ROW_WEIGHT_KEYS}
    if kind == "completion":
        return frozenset(keys - {"tools", "system"})  # a completion has neither: refused where it is given
    return frozenset(keys | ({*SYSTEM_KEYS, "functions"} if kind == "chat" else set()))


def _original_id(row: Row, context: RowContext) -> str:
    """The row's own id as text; empty for none, and for one that is neither text nor a whole number."""
    key = next((key for key in ("original_id", "id") if not holds_nothing(row.get(key))), None)
    if key is None:
        return ""
    value = row[key]
    if isinstance(value, float) and value.is_integer():  # as pandas writes a column with gaps
        value = int(value)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            return check_text(str(value), key)
        except (RowError, ValueError):  # ValueError: of more digits than Python writes
            pass
    context.unread[key] = None
    return ""


def _weigh(parsed: Parsed, row: Row, context: RowContext) -> None:
    """Put the row's own loss weight on everything it trains. Raises RowError for a weight of 0."""
    if _WEIGHING_KEYS.isdisjoint(row):
        return
    stated = {key: row[key] for key in ROW_WEIGHT_KEYS if key in row and key not in context.names.ignored}
    if isinstance(row.get("loss"), bool):
        stated["loss"] = row["loss"]
        context.consumed.add("loss")
    if isinstance(mask := row.get("mask"), str) and context.names.roles.get(mask.strip().lower()) == "user":
        context.consumed.add("mask")  # NeMo's name of the role that is not trained
    if parsed.tokens is not None:
        stated = {key: value for key, value in stated.items() if not isinstance(value, list | np.ndarray)}
    weight = read_weight(stated, "")
    if weight is None or weight == 1:
        return
    if weight == 0:
        raise RowError(f"{' and '.join(stated)}: the row is marked as not trained", is_chosen=True)
    if parsed.tokens is not None:
        own = parsed.tokens.weight
        weights = np.full(len(parsed.tokens.input_ids), weight, dtype=np.float32)
        parsed.tokens = replace(parsed.tokens, weight=weights if own is None else own * weights)
    parsed.turns = tuple(
        replace(turn, weight=turn.weight * weight, spans=tuple((a, b, w * weight) for a, b, w in turn.spans))
        if turn.role == "assistant" and turn.is_trained
        else turn
        for turn in parsed.turns
    )


def _parse_messages(row: Row, context: RowContext) -> Parsed:
    return _parse_chat(row, "messages", context)


def _parse_sharegpt(row: Row, context: RowContext) -> Parsed:
    return _parse_chat(row, "conversations", context)


def _parse_chat(row: Row, key: str, context: RowContext) -> Parsed:
    if row.get(key) is None:
        raise RowError(f"{key}: missing")
    messages = context.read_list(row, key)
    if messages and all(isinstance(message, str) for message in messages):  # LIMA's conversations
        context.note("list of texts read as user and assistant in turn")
        messages = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(messages)]
    turns = parse_messages(messages, key, context)
    check_turns(turns, key, context)
    return Parsed("chat", _read_system(row, turns, f"{key}[0]") + turns, read_tools(row, context))


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
    return Parsed("chat", _read_system(row, turns, "history") + turns, read_tools(row, context))


def _parse_history(pairs: Sequence[Any], context: RowContext) -> tuple[Turn, ...]:
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
    return tuple(turns)


def _parse_prompt_completion(row: Row, context: RowContext) -> Parsed:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        texts = _list_of_messages(prompt), _list_of_messages(completion)
        if texts[0] is not None and texts[1] is not None:  # cells of a CSV
            context.note("prompt and completion read as messages from their JSON text")
            prompt, completion = texts
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
    return Parsed("completion", (Turn("user", read_text(row, "prompt")), answer))


def _list_of_messages(text: str) -> list[Any] | None:
    """The messages whose JSON text this is; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_list = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return value if is_list and value and all("role" in item or "from" in item for item in value) else None


def _parse_prompt_messages(row: Row, prompt: list[Any], completion: list[Any], context: RowContext) -> Parsed:
    # An assistant's turn of the prompt is context, whatever its weight says.
    asked = tuple(
        replace(turn, is_trained=False, weight=1.0, spans=()) if turn.role == "assistant" else turn
        for turn in parse_messages(prompt, "prompt", context)
    )
    context.blank_answers.clear()
    answered = parse_messages(completion, "completion", context)
    if not any(turn.role == "assistant" for turn in answered):
        raise RowError("completion: no assistant turn, so there is no response to train on")
    turns = asked + answered
    check_turns(turns, "completion", context)
    return Parsed("chat", _read_system(row, turns, "prompt[0]") + turns, read_tools(row, context))


def _parse_tokens(row: Row, _context: RowContext) -> Parsed:
    return Parsed("tokens", tokens=parse_labelled_tokens(row))


def _parse_text(row: Row, _context: RowContext) -> Parsed:
    text = read_text(row, "text")
    if is_blank(text):
        raise RowError("text: blank")
    return Parsed("text", (Turn("assistant", text),))


FORMATS: dict[str, Callable[[Row, RowContext], Parsed]] = {
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "prompt_completion": _parse_prompt_completion,
    "tokens": _parse_tokens,
    "text": _parse_text,
}


def _find_one(row: Row, keys: Sequence[str]) -> str | None:
    """The one of the keys that is given, None where none is; RowError where two say something."""
    given = [key for key in keys if row.get(key) is not None]
    if len(given) > 1:
        raise RowError(f"{given[0]}: given, and so is {given[1]}; expected one of them")
    return given[0] if given else None


def _read_system(row: Row, turns: Sequence[Turn], where: str) -> tuple[Turn, ...]:
    """The row's own system text as a turn; none where it is blank or repeats the first turn, a system turn.

    ``where``: the place of the first turn. Raises RowError where both are given and differ.
    """
    texts = {key: text for key in SYSTEM_KEYS if not is_blank(text := read_optional_text(row, key))}
    if len(set(texts.values())) > 1:
        raise RowError(f"{' and '.join(texts)} differ; expected one of them")
    if not texts:
        return ()
    key, text = next(iter(texts.items()))
    if turns[0].role != "system":
        return (Turn("system", text),)
    if turns[0].content.strip() == text.strip():
        return ()
    raise RowError(f"{key}: given, and {where} is a system turn too; expected one of them", f"--ignore {key}")


def _read_response(row: Row, key: str) -> str:
    response = read_text(row, key)
    if says_nothing(response):
        raise RowError(f"{key}: blank response")
    return response
