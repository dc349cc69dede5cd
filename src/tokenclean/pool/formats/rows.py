"""The shapes a pool's row may have, and what each one gives.

=====================  =======================================================  ============================
format                 keys                                                     kind
=====================  =======================================================  ============================
``messages``           ``messages``: list of ``{role, content}``;               ``chat``
                       optional ``system``, ``tools``
``sharegpt``           ``conversations``: list of ``{from, value}``;            ``chat``
                       optional ``system``, ``tools``
``alpaca``             ``instruction``, ``output`` or ``response``; optional    ``chat``
                       ``input`` or ``context``, ``system``, ``tools``,
                       ``history`` (list of ``[question, answer]``)
``prompt_completion``  ``prompt``, ``completion``: both texts, or both lists    ``completion``, and ``chat``
                       of messages (then optional ``tools``)                    for lists of messages
``tokens``             ``input_ids``, ``labels``: integers;                     ``tokens``
                       optional ``attention_mask``
``text``               ``text``                                                 ``text``
=====================  =======================================================  ============================

``messages.py`` says how a message is read; each may be spelled either way under either key. ``tools`` is a
list of objects. A key whose value is ``null`` counts as missing, and other keys are not read. A list may stand as its
JSON text (a CSV cell), save under ``prompt`` and ``completion``, where a text is a text. Texts are kept as they stand.

A pool with other names maps them: ``columns`` (our key -> the row's column, a dot leading into an object; then only
mapped keys of the row are read) and ``roles`` (role name -> ``system``, ``user``, ``assistant`` or ``tool``, going
before the names that are known anyway).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from tokenclean.pool.conversation import Kind, LabelledTokens, Role, Turn
from tokenclean.pool.formats.columns import (
    MESSAGE_KEYS,
    REQUIRED_KEYS,
    check_columns,
    describe_groups,
    map_columns,
)
from tokenclean.pool.formats.fields import (
    Row,
    RowError,
    check_text,
    describe_keys,
    name_type,
    read_list,
    read_optional_text,
    read_text,
)
from tokenclean.pool.formats.labelled_tokens import parse_labelled_tokens
from tokenclean.pool.formats.messages import ROLE_NAMES, MessageNames, check_turns, parse_messages
from tokenclean.pool.formats.tool_calls import read_tools

_OUR_NAMES = MessageNames()
_TELLING_KEYS = tuple(dict.fromkeys(key for groups in REQUIRED_KEYS.values() for group in groups for key in group))


@dataclass(frozen=True)
class Parsed:
    """What a row holds: a Conversation without its place. ``tools``: compact JSON text of a list, or empty."""

    kind: Kind
    turns: tuple[Turn, ...] = ()
    tools: str = ""
    tokens: LabelledTokens | None = None


def parse_row(
    row: Row,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
) -> Parsed:
    """Kind and content of one row.

    ``format``: a name in FORMATS, or ``auto`` to go by the row's keys (``detect_format``). ``columns``, ``roles``: as
    the module says. Of a chat, the first turn that is not a system turn is the user's, every assistant turn says
    something or calls a tool, and at least one of them is trained.

    Raises RowError where the row is at fault and RecipeError for an option that no row can fit (``check_columns``).
    """
    names = _OUR_NAMES
    if columns or roles or format not in _NAMES:
        columns, roles = columns or {}, roles or {}
        names = _check_names(format, tuple(columns.items()), tuple(roles.items()))
        row = map_columns(row, columns)
    return FORMATS[detect_format(row) if format == "auto" else format](row, names)


def detect_format(row: Row) -> str:
    """The one format whose required keys are all in the row with a value other than null.

    ``text`` counts only where no other format fits, since many pools carry the rendered text beside the messages.

    Raises RowError where no format fits, or more than one: which of two texts is meant is never guessed.
    """
    fitting = _list_fitting(frozenset(key for key in _TELLING_KEYS if row.get(key) is not None))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise RowError(f"keys fit {' and '.join(fitting)}: name the format, or remove the keys of the others")
    needs = "; ".join(f"{name} needs {describe_groups(groups)}" for name, groups in REQUIRED_KEYS.items())
    raise RowError(f"keys fit no format: found {describe_keys(row)}; {needs}")


@lru_cache
def _list_fitting(given: frozenset[str]) -> tuple[str, ...]:
    fitting = tuple(
        name for name, groups in REQUIRED_KEYS.items() if all(any(key in given for key in group) for group in groups)
    )
    return tuple(name for name in fitting if name != "text") or fitting


@lru_cache
def _check_names(format: str, columns: tuple[tuple[str, str], ...], roles: tuple[tuple[str, str], ...]) -> MessageNames:
    """The names to be read inside messages; RecipeError as ``check_columns`` raises it. Cached, as rows are many."""
    check_columns(format, dict(columns), dict(roles))
    merged = cast("dict[str, Role]", {**ROLE_NAMES, **dict(roles)})
    return MessageNames(merged, {key: column for key, column in columns if key in MESSAGE_KEYS})


def _parse_messages(row: Row, names: MessageNames) -> Parsed:
    return _parse_chat(row, "messages", names)


def _parse_sharegpt(row: Row, names: MessageNames) -> Parsed:
    return _parse_chat(row, "conversations", names)


def _parse_chat(row: Row, key: str, names: MessageNames) -> Parsed:
    if row.get(key) is None:
        raise RowError(f"{key}: missing")
    turns = parse_messages(read_list(row, key), key, names)
    check_turns(turns, key)
    system = _read_system(row)
    if system and turns[0].role == "system":
        raise RowError(f"system: given, and {key}[0] is a system turn too; expected one of them")
    return Parsed("chat", system + turns, read_tools(row))


def _parse_alpaca(row: Row, _names: MessageNames) -> Parsed:
    instruction = read_text(row, "instruction")
    context_key = _find_one(row, ("input", "context"))
    context = read_text(row, context_key) if context_key else ""
    if not instruction.strip() and not context.strip():
        raise RowError(f"instruction: blank, and there is no {context_key or 'input'} either")
    response_key = _find_one(row, ("output", "response"))
    if response_key is None:
        raise RowError("output: missing, and so is response; expected one of them")
    response = _read_response(row, response_key)
    question = "\n".join(text for text in (instruction, context) if text.strip())
    earlier = () if row.get("history") is None else _parse_history(read_list(row, "history"))
    turns = (*_read_system(row), *earlier, Turn("user", question), Turn("assistant", response))
    return Parsed("chat", turns, read_tools(row))


def _parse_history(pairs: Sequence[Any]) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for index, pair in enumerate(pairs):
        where = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"{len(pair)} entries" if isinstance(pair, list) else name_type(pair)
            raise RowError(f"{where}: expected a list of a question and its answer, found {found}")
        question, answer = (check_text(text, f"{where}[{side}]") for side, text in enumerate(pair))
        if not question.strip():
            raise RowError(f"{where}[0]: blank user turn")
        if not answer.strip():
            raise RowError(f"{where}[1]: blank response")
        turns += Turn("user", question), Turn("assistant", answer)
    return tuple(turns)


def _parse_prompt_completion(row: Row, names: MessageNames) -> Parsed:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list):
        if not isinstance(completion, list):
            raise RowError(f"completion: expected a list of messages as under prompt, found {name_type(completion)}")
        return _parse_prompt_messages(row, prompt, completion, names)
    # A blank prompt is plain text to continue from nothing, which is a sample; a blank completion is none.
    turns = Turn("user", read_text(row, "prompt")), Turn("assistant", _read_response(row, "completion"))
    return Parsed("completion", turns)


def _parse_prompt_messages(row: Row, prompt: list[Any], completion: list[Any], names: MessageNames) -> Parsed:
    asked, answered = parse_messages(prompt, "prompt", names), parse_messages(completion, "completion", names)
    # An assistant's turn of the prompt is context, whatever its flag says.
    asked = tuple(replace(turn, is_trained=False) if turn.role == "assistant" else turn for turn in asked)
    turns = asked + answered
    if not any(turn.role == "assistant" for turn in answered):
        raise RowError("completion: no assistant turn, so there is no response to train on")

    def place(index: int) -> str:
        return f"prompt[{index}]" if index < len(asked) else f"completion[{index - len(asked)}]"

    check_turns(turns, "completion", place)
    return Parsed("chat", turns, read_tools(row))


def _parse_tokens(row: Row, _names: MessageNames) -> Parsed:
    return Parsed("tokens", tokens=parse_labelled_tokens(row))


def _parse_text(row: Row, _names: MessageNames) -> Parsed:
    text = read_text(row, "text")
    if not text.strip():
        raise RowError("text: blank")
    return Parsed("text", (Turn("assistant", text),))


FORMATS: dict[str, Callable[[Row, MessageNames], Parsed]] = {
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "prompt_completion": _parse_prompt_completion,
    "tokens": _parse_tokens,
    "text": _parse_text,
}
_NAMES = frozenset(("auto", *FORMATS))


def _find_one(row: Row, keys: tuple[str, str]) -> str | None:
    """The one key of the two that is given, None where neither is; RowError where both are."""
    given = [key for key in keys if row.get(key) is not None]
    if len(given) == 2:
        raise RowError(f"{keys[0]}: given, and so is {keys[1]}; expected one of them")
    return given[0] if given else None


def _read_system(row: Row) -> tuple[Turn, ...]:
    """The row's own system text as a turn; none where it is blank."""
    text = read_optional_text(row, "system")
    return (Turn("system", text),) if text.strip() else ()


def _read_response(row: Row, key: str) -> str:
    response = read_text(row, key)
    if not response.strip():
        raise RowError(f"{key}: blank response")
    return response
