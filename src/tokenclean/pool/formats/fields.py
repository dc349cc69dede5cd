"""The fields of a row at hand: texts, lists and JSON, each read with a fault that names its key."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

_TYPE_NAMES: dict[type, str] = {str: "text", bool: "true or false", int: "number", float: "number"} | {
    list: "list",
    dict: "object",
    type(None): "null",
}


class RowError(ValueError):
    """A row cannot be used; the message names the key and becomes the reason of its RejectedRow."""


def check_text(value: object, where: str) -> str:
    """``value``, if it is a string that UTF-8 can hold; RowError naming ``where`` otherwise."""
    if not isinstance(value, str):
        raise RowError(f"{where}: expected text, found {name_type(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: lone surrogate at character {error.start + 1}") from None
    return value


def read_text(row: Row, key: str, prefix: str = "") -> str:
    """The text under ``key``; RowError where it is missing, null or no text. ``prefix``: what leads to the key."""
    value = row.get(key)
    if value is None:
        raise RowError(f"{prefix}{key}: missing")
    return check_text(value, f"{prefix}{key}")


def read_optional_text(row: Row, key: str, prefix: str = "") -> str:
    """The text under ``key``, empty where it is missing or null."""
    return "" if row.get(key) is None else read_text(row, key, prefix)


def read_list(row: Row, key: str, prefix: str = "") -> list[Any]:
    """The list under ``key``, or the one whose JSON text stands there (a CSV cell); empty for null or blank text."""
    value = row.get(key)
    if value is None:
        return []
    where = f"{prefix}{key}"
    if isinstance(value, str):
        value = decode_json(value, where) if value.strip() else []
    if not isinstance(value, list):
        raise RowError(f"{where}: expected a list, found {name_type(value)}")
    return value


def check_object(value: object, where: str) -> dict[str, Any]:
    """``value``, if it is an object; RowError naming ``where`` otherwise."""
    if not isinstance(value, dict):
        raise RowError(f"{where}: expected an object, found {name_type(value)}")
    return value


def decode_json(text: str, where: str) -> Any:
    """The value whose JSON text stands at ``where``; RowError where it is not JSON or Python cannot hold it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"{where}: text is not JSON at character {error.pos + 1}: {error.msg}") from None
    except RecursionError:
        raise RowError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise RowError(f"{where}: {error}") from None


def encode_json(value: object, where: str, separators: tuple[str, str] = (", ", ": ")) -> str:
    """JSON text of ``value``, keys in their order; RowError where JSON or UTF-8 cannot hold it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=separators)
    except RecursionError:
        raise RowError(f"{where}: nested too deeply") from None
    except (TypeError, ValueError) as error:  # a date, NaN, a number of too many digits
        raise RowError(f"{where}: cannot be written as JSON: {error}") from None
    return check_text(text, where)


def name_type(value: object) -> str:
    """The type in JSON's words."""
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def quote(value: object) -> str:
    """``value`` as a reason may show it: short and escaped, since a row at fault may hold anything."""
    if isinstance(value, str):
        return reprlib.repr(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    # Python refuses to write a number of thousands of digits.
    is_short = isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**18)
    return repr(value) if is_short else name_type(value)


def describe_keys(row: Row, most: int = 10) -> str:
    """The row's keys as a reason may show them."""
    if not row:
        return "no key"
    keys = [quote(key) + (" (null)" if value is None else "") for key, value in list(row.items())[:most]]
    more = f" and {len(row) - most} more" if len(row) > most else ""
    return ", ".join(keys) + more
