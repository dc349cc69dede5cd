"""Tools on offer and the assistant's calls of them, as JSON text."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from tokenclean.pool.conversation import ToolCall, Turn
from tokenclean.pool.formats.field_types import (
    Row,
    RowError,
    check_object,
    check_text,
    encode_json,
    holds_nothing,
    name_type,
    quote,
    read_text,
)
from tokenclean.pool.formats.row_options import RowContext
from tokenclean.pool.formats.unread_keys import shown_key

# OpenAI's, Llama 3's, LangChain's, Anthropic's, and others'.
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "kwargs", "params")
_CALL_KEYS = frozenset(("type", "function", "id", "index", "name", *_ARGUMENT_KEYS))
_SCHEMA_NULLS = ("default", "const", "example")  # keys of a JSON schema that may mean null


def read_tools(row: Row, context: RowContext) -> str:
    """The row's ``tools``, a list of objects or its JSON text, as compact JSON text; empty where there are none.

    OpenAI's older ``functions`` are read as tools of type ``function``.
    """
    tools, functions = (_list_of_tools(row, key, context) for key in ("tools", "functions"))
    if tools and functions:
        raise RowError("functions: given, and so is tools; expected one of them", "--ignore functions")
    key = "functions" if functions else "tools"
    for index, tool in enumerate(functions or tools):
        check_object(tool, f"{key}[{index}]")
    if functions:
        tools = [{"type": "function", "function": function} for function in functions]
        context.note("functions read as tools")
    encoded = encode_json(tools, key, (",", ":")) if tools else ""
    if isinstance(row.get(key), str):
        context.as_text.add(encoded)
    return encoded


def _list_of_tools(row: Row, key: str, context: RowContext) -> list[object]:
    """The list under ``key``, whose items may be JSON texts, or the one tool there."""
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        value = context.decode(value, key)
    tools = [value] if isinstance(value, dict) else context.read_list({key: value}, key)
    return [context.decode(tool, f"{key}[{n}]") if isinstance(tool, str) else tool for n, tool in enumerate(tools)]


def read_calls(value: object, where: str, context: RowContext) -> tuple[ToolCall, ...]:
    """The calls of a ``tool_calls`` or ``function_call`` at ``where``: a call, a list of calls, or the JSON of these.

    A call is ``{id, type: function, function: {name, arguments}}`` or that function alone. ``arguments``: an object or
    its JSON text; a call without any has an empty object. Raises RowError.
    """
    while isinstance(value, str):  # text encoded twice is decoded twice
        value = context.decode(check_text(value, where), where) if value.strip() else []
    if isinstance(value, dict):
        return (_read_call(value, where, context),)
    if not isinstance(value, list):
        raise RowError(f"{where}: expected a call (name, arguments) or a list of calls, found {name_type(value)}")
    return tuple(_read_call(call, f"{where}[{index}]", context) for index, call in enumerate(value))


def read_function_call(value: object, where: str, context: RowContext) -> tuple[ToolCall, ...]:
    """``read_calls`` of what must hold at least one."""
    calls = read_calls(value, where, context)
    if not calls:
        raise RowError(f"{where}: expected at least one call, found none")
    return calls


def _read_call(value: object, where: str, context: RowContext) -> ToolCall:
    call = check_object(value, where)
    if call.get("type") not in (None, "function"):
        raise RowError(f"{where}.type: expected 'function', found {quote(call['type'])}")
    function, place = call, where
    if call.get("function") is not None:
        place = f"{where}.function"
        function = check_object(call["function"], place)
    name = read_text(function, "name", f"{place}.")
    if not name.strip():
        raise RowError(f"{place}.name: blank")
    for part in (call, function):
        unknown = (shown_key(key) for key in part if key not in _CALL_KEYS and not holds_nothing(part[key]))
        context.add_unread(unknown, "tool_calls[].")
    given = {
        f"{path}.{key}": part[key]
        for path, part in {where: call, place: function}.items()
        for key in _ARGUMENT_KEYS
        if not holds_nothing(part.get(key))
    }
    if len(given) > 1:
        raise RowError(f"{' and '.join(given)} are given; expected one of them")
    path, arguments = next(iter(given.items()), (f"{place}.arguments", function.get("arguments")))
    return ToolCall(
        name, _encode_arguments(arguments, path, context), read_text(call, "id", f"{where}.", may_lack=True)
    )


def _encode_arguments(arguments: object, where: str, context: RowContext) -> str:
    is_text = isinstance(arguments, str)
    if arguments is None or (is_text and not arguments.strip()):
        context.note("call without arguments taken as a call with none, {}")
        return "{}"
    encoded = encode_json(check_object(context.decode(arguments, where) if is_text else arguments, where), where)
    if is_text and context.is_padded:
        context.as_text.add(encoded)
    return encoded


def drop_padding(turns: Sequence[Turn], tools: str, context: RowContext) -> tuple[tuple[Turn, ...], str]:
    """Turns and tools without the nulls that an Arrow table writes where another row has a key and this one has not.

    A null of a tool's schema is padding where a schema cannot hold it (all but ``default``, ``const`` and
    ``example``), and everywhere once such a null is found or the row comes from a table. A null argument is padding
    where the schema of the called tool does not name the argument, and in a row from a table unless the schema requires
    it; without a schema it counts as padding in a row from a table alone.
    """
    if "null" not in tools and not any("null" in call.arguments for turn in turns for call in turn.tool_calls):
        return tuple(turns), tools
    offered: list[dict[str, object]] = json.loads(tools) if tools else []
    is_padded = (context.is_padded and tools not in context.as_text) or _drop_nulls(offered, _SCHEMA_NULLS) != offered
    cleaned = [_drop_nulls(tool, () if is_padded else _SCHEMA_NULLS) for tool in offered]
    schemas: dict[str, object] = {}
    for tool in cleaned:
        function = tool["function"] if isinstance(tool.get("function"), dict) else tool
        if isinstance(function.get("name"), str):
            schemas[function["name"]] = function.get("parameters")
    found = tuple(
        replace(
            turn, tool_calls=tuple(_drop_arguments(call, schemas.get(call.name), context) for call in turn.tool_calls)
        )
        for turn in turns
    )
    if any(call.name not in schemas and "null" in call.arguments for turn in found for call in turn.tool_calls):
        context.note("null arguments of calls whose tools are not on offer kept as they are")
    if cleaned != offered or found != tuple(turns):
        context.note("nulls that pad objects in an Arrow table left out of tools and calls")
    return found, encode_json(cleaned, "tools", (",", ":")) if cleaned else ""


def _drop_arguments(call: ToolCall, schema: object, context: RowContext) -> ToolCall:
    if "null" not in call.arguments:
        return call
    arguments = json.loads(call.arguments)
    is_table = context.is_padded and call.arguments not in context.as_text
    kept = _keep_arguments(arguments, schema, is_table=is_table)
    return call if kept == arguments else replace(call, arguments=encode_json(kept, "arguments"))


def _keep_arguments(value: object, schema: object, *, is_table: bool) -> object:
    """A value of the arguments without padding. ``schema``: of the value, if there is one."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        return [_keep_arguments(item, schema.get("items"), is_table=is_table) for item in value]
    if not isinstance(value, dict):
        return value
    known, required = schema.get("properties"), schema.get("required")
    known = known if isinstance(known, dict) else None
    kept = {}
    for key, item in value.items():
        is_optional = is_table and not (isinstance(required, list) and key in required)
        if item is not None or not (is_table if known is None else is_optional or key not in known):
            kept[key] = _keep_arguments(item, known.get(key) if known else None, is_table=is_table)
    return kept


def _drop_nulls(value: object, save: Collection[str]) -> Any:
    """The value without keys that hold null, save those of these names; lists keep their nulls."""
    if isinstance(value, list):
        return [_drop_nulls(item, save) for item in value]
    if isinstance(value, dict):
        return {k: _drop_nulls(item, save) for k, item in value.items() if item is not None or k in save}
    return value
