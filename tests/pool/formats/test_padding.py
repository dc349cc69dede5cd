"""Nulls that Arrow writes for keys that only other rows have, in tools and in calls of them."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parsing import parse_row

from tokenclean.pool import load_pool


def tool(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, **more}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


def row(tools: list[Any], arguments: Any, name: str = "timer") -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Set it."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "Done."},
    ]
    return {"messages": messages, "tools": tools}


WIND = tool("wind", {"place": {"type": "string"}}, required=["place"])
TIMER = tool("timer", {"minutes": {"type": "integer"}, "label": {"type": "string"}}, required=["minutes", "label"])
ROWS = [row([WIND], {"place": "Oslo"}, "wind"), row([TIMER], {"minutes": 5, "label": None})]


def calls_of(parsed: Any) -> list[Any]:
    return [json.loads(call.arguments) for turn in parsed.turns for call in turn.tool_calls]


def test_a_table_gives_what_the_same_rows_give_as_json(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    lines = "".join(json.dumps(one) + "\n" for one in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    table, plain = load_pool(tmp_path / "a.parquet"), load_pool(tmp_path / "a.jsonl")
    assert [(c.turns, c.tools) for c in table] == [(c.turns, c.tools) for c in plain]
    assert [c.notes for c in table] == [("nulls that pad objects in an Arrow table left out of tools and calls",)] * 2
    assert calls_of(table[1]) == [{"minutes": 5, "label": None}]  # the schema requires it
    assert all(not c.notes for c in plain)


def test_json_written_from_such_a_table_gives_the_same_too(tmp_path):
    padded = pa.Table.from_pylist(ROWS).to_pylist()
    assert "null" in json.dumps(padded[0])
    for one, plain in zip(padded, ROWS, strict=True):
        parsed = parse_row(one)
        assert (parsed.turns, parsed.tools) == (parse_row(plain).turns, parse_row(plain).tools)


@pytest.mark.parametrize("arguments", ['{"minutes": 5, "label": null}', {"minutes": 5, "label": None}])
def test_nulls_that_are_meant_stay(arguments):
    optional = tool("timer", {"minutes": {"type": "integer"}, "label": {"type": "string", "default": None}})
    parsed = parse_row(row([optional], arguments), is_padded=isinstance(arguments, str))
    assert calls_of(parsed) == [{"minutes": 5, "label": None}]
    assert '"default":null' in parse_row(row([optional], arguments)).tools


def test_of_a_table_an_optional_null_is_padding_and_so_is_any_without_a_schema():
    optional = tool("timer", {"minutes": {"type": "integer"}, "label": {"type": "string"}})
    arguments = {"minutes": 5, "label": None, "at": {"h": 3, "m": None}}
    assert calls_of(parse_row(row([optional], arguments), is_padded=True)) == [{"minutes": 5, "at": {"h": 3}}]
    assert calls_of(parse_row(row([], arguments), is_padded=True)) == [{"minutes": 5, "at": {"h": 3}}]
    assert calls_of(parse_row(row([], arguments))) == [arguments]


@pytest.mark.parametrize("arguments", [None, "", " ", {}, "{}"])
def test_no_arguments_are_an_empty_object(arguments):
    parsed = parse_row(row([TIMER], arguments))
    assert calls_of(parsed) == [{}]
    assert bool(parsed.notes) == (arguments in (None, "", " "))
