"""The fields of a row at hand: texts, lists and JSON, each read with a fault that names its key."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import reprlib
import tokenize
import unicodedata
import warnings
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

Row = Mapping[str, Any]

_TYPE_NAMES: dict[type, str] = {str: "text", bool: "true or false", int: "number", float: "number"} | {
    list: "list",
    dict: "object",
    type(None): "null",
}


_VISIBLE_ASCII = re.compile(r"[!-~]")
_INVISIBLE = ("Cf", "Cc", "Zs", "Zl", "Zp")  # format and control characters, separators
_EMPTY_SIGNS = frozenset("\u2800\u3164\u115f\u1160\uffa0\u034f\ufffc" + "".join(map(chr, range(0xFE00, 0xFE10))))
_NOTHING = ("", "null", "none", "nan", "[]", "{}")
_LITERALS_LIMIT = 1 << 20


class RowError(ValueError):
    """A row cannot be used; the message names the key and becomes the reason of its RejectedRow.

    ``remedy``: the option that helps, or empty. ``is_chosen``: an option asks to leave such rows out.
    """

    def __init__(self, reason: str, remedy: str = "", *, is_chosen: bool = False) -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.is_chosen = is_chosen


def check_text(value: object, where: str) -> str:
    """``value``, if it is a string that UTF-8 can hold and without NUL; RowError naming ``where`` otherwise."""
    if not isinstance(value, str):
        raise RowError(f"{where}: expected text, found {name_type(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: lone surrogate at character {error.start + 1}") from None
    if "\0" in value:
        raise RowError(f"{where}: NUL (U+0000) at character {value.index(chr(0)) + 1}; remove it")
    return value


def is_blank(text: str) -> bool:
    """Whether nothing of the text can be seen: whitespace, zero-width and other format characters alone."""
    if _VISIBLE_ASCII.search(text):
        return False
    return all(sign.isspace() or sign in _EMPTY_SIGNS or unicodedata.category(sign) in _INVISIBLE for sign in text)


def holds_nothing(value: object) -> bool:
    """Whether a key with this value says as much as one that is missing: null, NaN, blank text, an empty list or
    object, and the text that a CSV has for these."""
    if isinstance(value, str):
        return not value or value.strip().lower() in _NOTHING
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, list | dict | tuple) and not value)


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
        remedy = "--python-literals" if looks_like_literal(text) else ""
        raise RowError(f"{where}: text is not JSON at character {error.pos + 1}: {error.msg}", remedy) from None
    except RecursionError:
        raise RowError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise RowError(f"{where}: {error}") from None


def looks_like_literal(text: str) -> bool:
    """Whether a text that is no JSON may be a list or an object as Python writes it: with single quotes, True, None."""
    text = text.strip()
    return text[:1] + text[-1:] in ("[]", "{}") and bool(re.search(r"'|\b(?:True|False|None)\b", text))


def decode_literal(text: str) -> Any:
    """The list or object that Python's ``repr`` wrote, or the text itself where it is none. Nothing is executed."""
    if len(text) > _LITERALS_LIMIT or not looks_like_literal(text):
        return text
    text = text.strip()
    for written in (text, None):  # then as numpy prints a list of objects, without commas
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of invalid escapes in somebody's text
                value = ast.literal_eval(_with_commas(text) if written is None else written)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError, tokenize.TokenError):
            continue
        if isinstance(value, list | dict):
            return value
    return text


def _with_commas(text: str) -> str:
    """The literal with a comma between objects that stand side by side."""
    lines = text.splitlines(keepends=True)
    starts = [0, *accumulate(map(len, lines))]
    places, before = [], None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string == "{" and before == "}":
            places.append(starts[token.start[0] - 1] + token.start[1])
        if token.type == tokenize.OP or token.string.strip():
            before = token.string
    for place in reversed(places):
        text = f"{text[:place]}, {text[place:]}"
    return text


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
