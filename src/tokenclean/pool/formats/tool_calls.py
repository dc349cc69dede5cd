"""Tools on offer and the calls an assistant makes of them, as JSON text."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tokenclean.pool.conversation import ToolCall, Turn
from tokenclean.pool.formats.context import RowContext
from tokenclean.pool.formats.field_types import (
    Row,
    RowError,
    check_object,
    check_text,
    encode_json,
    holds_nothing,
    name_type,
    quote,
    read_optional_text,
    read_text,
)
from tokenclean.pool.formats.unread_keys import shown_key

# OpenAI's, Llama 3's, LangChain's, Anthropic's, and others'.
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "kwargs", "params")
_CALL_KEYS = frozenset(("type", "function", "id", "index", "name", *_ARGUMENT_KEYS))
_NO_ARGUMENTS = "call without arguments taken as a call with none, {}"
_SCHEMA_NULLS = ("default", "const", "example")  # keys of a JSON schema that may mean null


def read_tools(row: Row, context: RowContext) -> str:
    """The row's ``tools``, a list of objects or its JSON text, as compact JSON text; empty where there are none.

    OpenAI's older ``functions`` are read as tools of type ``function``.
    """
    key = "tools"
    tools = _list_of_tools(row, key, context)
    if not tools and (functions := _list_of_tools(row, "functions", context)):
        key, tools = "functions", [{"type": "function", "function": function} for function in functions]
        context.note("functions read as tools")
    elif tools and _list_of_tools(row, "functions", context):
        raise RowError("functions: given, and so is tools; expected one of them", "--ignore functions")
    for index, tool in enumerate(tools):
        check_object(tool if key == "tools" else tool["function"], f"{key}[{index}]")
    encoded = encode_json(tools, key, (",", ":")) if tools else ""
    if isinstance(row.get(key), str):
        context.as_text.add(encoded)
    return encoded


def _list_of_tools(row: Row, key: str, context: RowContext) -> list[Any]:
    """The list under ``key``, whose items may be JSON texts, or the one tool there."""
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        value = context.decode(value, key)
    tools = [value] if isinstance(value, dict) else context.read_list({key: value}, key)
    return [context.decode(tool, f"{key}[{n}]") if isinstance(tool, str) else tool for n, tool in enumerate(tools)]


def read_tool_calls(message: Row, where: str, context: RowContext) -> tuple[ToolCall, ...]:
    """The message's ``tool_calls``, each ``{id, type: function, function: {name, arguments}}`` or that function alone.

    ``arguments``: an object or its JSON text; none at all count as an empty object. ``where``: place of the message.
    Raises RowError.
    """
    value = message["tool_calls"]
    calls = [value] if isinstance(value, dict) else context.read_list(message, "tool_calls", f"{where}.")
    return tuple(_parse_call(call, f"{where}.tool_calls[{index}]", context) for index, call in enumerate(calls))


def parse_function_call(value: object, where: str, context: RowContext) -> tuple[ToolCall, ...]:
    """The calls of a ``function_call``, whose value at ``where`` is a call or a list of calls, or the JSON of these."""
    if isinstance(value, str):
        value = context.decode(check_text(value, where), where)
    if isinstance(value, dict):
        return (_parse_call(value, where, context),)
    if not isinstance(value, list):
        raise RowError(f"{where}: expected a call (name, arguments) or a list of calls, found {name_type(value)}")
    if not value:
        raise RowError(f"{where}: no call in the list")
    return tuple(_parse_call(call, f"{where}[{index}]", context) for index, call in enumerate(value))


def _parse_call(call: object, where: str, context: RowContext) -> ToolCall:
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
    for part in (call, function):
        unknown = (key for key, value in part.items() if key not in _CALL_KEYS and not holds_nothing(value))
        context.unread.update((f"tool_calls[].{shown_key(key)}", None) for key in unknown)
    given = {
        f"{path}.{key}": part[key]
        for path, part in {where: call, place: function}.items()
        for key in _ARGUMENT_KEYS
        if not holds_nothing(part.get(key))
    }
    if len(given) > 1:
        raise RowError(f"{' and '.join(given)} are given; expected one of them")
    path, value = next(iter(given.items()), (f"{place}.arguments", function.get("arguments")))
    arguments = _encode_arguments(value, path, context)
    return ToolCall(name, arguments, read_optional_text(call, "id", f"{where}."))


def _encode_arguments(arguments: Any, where: str, context: RowContext) -> str:
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        context.note(_NO_ARGUMENTS)
        return "{}"
    is_text = isinstance(arguments, str)
    if is_text:
        arguments = context.decode(arguments, where)
    encoded = encode_json(check_object(arguments, where), where)
    if is_text and context.is_padded:
        context.as_text.add(encoded)
    return encoded


def drop_padding(turns: Sequence[Turn], tools: str, context: RowContext) -> tuple[tuple[Turn, ...], str]:
    """Turns and tools without the nulls that an Arrow table writes where another row has a key and this one has not.

    A null of a tool's schema is padding where a schema cannot hold it (all but ``default``, ``const`` and
    ``example``), and everywhere once such a one is found or the row comes from a table. A null argument is padding
    where the schema of the tool that is called does not name the argument, and in a row from a table unless the schema
    requires it; without a schema it counts as padding in a row from a table alone.
    """
    is_called = any("null" in call.arguments for turn in turns for call in turn.tool_calls)
    if "null" not in tools and not is_called:
        return tuple(turns), tools
    offered = json.loads(tools) if tools else []
    is_padded = (context.is_padded and tools not in context.as_text) or _drop_nulls(offered, _SCHEMA_NULLS) != offered
    cleaned = _drop_nulls(offered, () if is_padded else _SCHEMA_NULLS)
    schemas = {name: schema for tool in cleaned for name, schema in _schema_of(tool)}
    found = tuple(
        replace(
            turn, tool_calls=tuple(_drop_arguments(call, schemas.get(call.name), context) for call in turn.tool_calls)
        )
        if turn.tool_calls
        else turn
        for turn in turns
    )
    if any(call.name not in schemas and "null" in call.arguments for turn in found for call in turn.tool_calls):
        context.note("null arguments of calls whose tools are not on offer kept as they are")
    if cleaned != offered or any(turn is not other and turn != other for turn, other in zip(turns, found, strict=True)):
        context.note("nulls that pad objects in an Arrow table left out of tools and calls")
    return found, encode_json(cleaned, "tools", (",", ":")) if cleaned else ""


def _schema_of(tool: Any) -> Iterator[tuple[str, Any]]:
    """Name and schema of the parameters of a tool on offer, where it has them."""
    function = tool.get("function") if isinstance(tool.get("function"), dict) else tool
    if isinstance(function.get("name"), str):
        yield function["name"], function.get("parameters")


def _drop_arguments(call: ToolCall, schema: Any, context: RowContext) -> ToolCall:
    if "null" not in call.arguments:
        return call
    arguments = json.loads(call.arguments)
    is_table = context.is_padded and call.arguments not in context.as_text
    kept = _keep_arguments(arguments, schema, is_table=is_table)
    return call if kept == arguments else replace(call, arguments=encode_json(kept, "arguments"))


def _keep_arguments(value: Any, schema: Any, *, is_table: bool) -> Any:
    if isinstance(value, list):
        items = schema.get("items") if isinstance(schema, dict) else None
        return [_keep_arguments(item, items, is_table=is_table) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties") if isinstance(schema, dict) else None
    known = properties if isinstance(properties, dict) else None
    required = schema.get("required") if isinstance(schema, dict) else None
    kept = {}
    for key, item in value.items():
        if item is None:
            is_padding = is_table if known is None else key not in known
            is_padding |= is_table and not (isinstance(required, list) and key in required)
            if is_padding:
                continue
        kept[key] = _keep_arguments(item, known.get(key) if known else None, is_table=is_table)
    return kept


def _drop_nulls(value: Any, save: Collection[str]) -> Any:
    """The value without keys that hold null, save those of these names; lists keep their nulls."""
    if isinstance(value, list):
        return [_drop_nulls(item, save) for item in value]
    if isinstance(value, dict):
        return {k: _drop_nulls(item, save) for k, item in value.items() if item is not None or k in save}
    return value
