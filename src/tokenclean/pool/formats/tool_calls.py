"""Tools on offer and the calls an assistant makes of them, as JSON text."""

from __future__ import annotations

from typing import Any

from tokenclean.pool.conversation import ToolCall
from tokenclean.pool.formats.fields import (
    Row,
    RowError,
    check_object,
    check_text,
    decode_json,
    encode_json,
    name_type,
    quote,
    read_list,
    read_optional_text,
    read_text,
)


def read_tools(row: Row) -> str:
    """The row's ``tools``, a list of objects or its JSON text, as compact JSON text; empty where there are none."""
    tools = read_list(row, "tools")
    for index, tool in enumerate(tools):
        check_object(tool, f"tools[{index}]")
    return encode_json(tools, "tools", (",", ":")) if tools else ""


def read_tool_calls(message: Row, where: str) -> tuple[ToolCall, ...]:
    """The message's ``tool_calls``, each ``{id, type: function, function: {name, arguments}}`` or that function alone.

    ``arguments``: an object or its JSON text. ``where``: place of the message. Raises RowError.
    """
    calls = read_list(message, "tool_calls", f"{where}.")
    return tuple(_parse_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls))


def parse_function_call(value: object, where: str) -> tuple[ToolCall, ...]:
    """The calls of a ``function_call``, whose value at ``where`` is a call or a list of calls, or the JSON of these."""
    if isinstance(value, str):
        value = decode_json(check_text(value, where), where)
    if isinstance(value, dict):
        return (_parse_call(value, where),)
    if not isinstance(value, list):
        raise RowError(f"{where}: expected a call (name, arguments) or a list of calls, found {name_type(value)}")
    if not value:
        raise RowError(f"{where}: no call in the list")
    return tuple(_parse_call(call, f"{where}[{index}]") for index, call in enumerate(value))


def _parse_call(call: object, where: str) -> ToolCall:
    call = check_object(call, where)
    kind = call.get("type")
    if kind is not None and not (isinstance(kind, str) and kind == "function"):
        raise RowError(f"{where}.type: expected 'function', found {quote(kind)}")
    function, place = call, where
    if call.get("function") is not None:
        place = f"{where}.function"
        function = check_object(call["function"], place)
    name = read_text(function, "name", f"{place}.")
    if not name.strip():
        raise RowError(f"{place}.name: blank")
    arguments = _encode_arguments(function.get("arguments"), f"{place}.arguments")
    return ToolCall(name, arguments, read_optional_text(call, "id", f"{where}."))


def _encode_arguments(arguments: Any, where: str) -> str:
    if arguments is None:
        raise RowError(f"{where}: missing; a call without arguments has an empty object")
    if isinstance(arguments, str):
        arguments = decode_json(arguments, where)
    return encode_json(check_object(arguments, where), where)
