"""Fields of a row (texts, lists, JSON), each read with an error that names its key, and what a text says."""

from __future__ import annotations

import ast
import json
import math
import re
import reprlib
import unicodedata
import warnings
from collections.abc import Mapping

Row = Mapping[str, object]

_TYPE_NAMES: dict[type, str] = {type(None): "null", bool: "true or false", int: "number", float: "number"}
_TYPE_NAMES |= {str: "text", list: "list", dict: "object"}

_VISIBLE_ASCII = re.compile(r"[!-~]")
_INVISIBLE = ("Cf", "Cc", "Zs", "Zl", "Zp")  # format and control characters, separators
_EMPTY_SIGNS = frozenset("\u2800\u3164\u115f\u1160\uffa0\u034f\ufffc" + "".join(map(chr, range(0xFE00, 0xFE10))))
_NOTHING = ("", "null", "none", "nan", "[]", "{}")
_LITERALS_LIMIT = 1 << 20
# A text, which may hold braces of its own, or the end of an object that another one follows without a comma.
_TEXT_OR_GAP = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\}(?=\s*\{)""", re.DOTALL)
# Thoughts inside a text.
_THOUGHT_TAG = re.compile(r"(?<!`)<(/?)(think|thinking|thought)>(?!`)", re.IGNORECASE)
_EMPTY_THOUGHT = re.compile(r"\A\s*<(think|thinking|thought)>\s*</\1>", re.IGNORECASE)
_WHOLE_THOUGHT = re.compile(r"\A\s*<(think|thinking|thought)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)


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


def lone_tag(text: str) -> str:
    """The first thought tag without a partner: one that closes what was not opened, or an opening one at the start of
    the text that never closes. Empty where there is none."""
    opened: set[str] = set()
    for match in _THOUGHT_TAG.finditer(text) if "<" in text else ():
        name = match[2].lower()
        if match[1]:
            return "" if name in opened else match[0]
        opened.add(name)
    first = _THOUGHT_TAG.match(text.lstrip()) if opened else None
    return first[0] if first else ""


def thought_of(text: str) -> str | None:
    """The thought in tags at the start of a text; None where there is none."""
    match = _WHOLE_THOUGHT.match(text) if "<" in text else None
    return None if match is None else match[2]


def says_nothing(text: str) -> bool:
    """Whether an answer says nothing: it is blank, or an empty thought alone."""
    return is_blank(text) or ("<" in text and is_blank(_EMPTY_THOUGHT.sub("", text)))


def holds_nothing(value: object) -> bool:
    """Whether a key with this value says as much as one that is missing: null, NaN, blank text, an empty list or
    object, and the text that a CSV has for these."""
    if isinstance(value, str):
        return not value or value.strip().lower() in _NOTHING
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, list | dict | tuple) and not value)


def read_text(row: Row, key: str, prefix: str = "", *, may_lack: bool = False) -> str:
    """The text under ``key``; RowError where it is no text. ``prefix``: what leads to the key.

    ``may_lack``: a key that is missing or null is an empty text, else a RowError too.
    """
    value = row.get(key)
    if value is None and may_lack:
        return ""
    if value is None:
        raise RowError(f"{prefix}{key}: missing")
    return check_text(value, f"{prefix}{key}")


def read_list(row: Row, key: str, prefix: str = "", *, literals: bool = False) -> list[object]:
    """The list under ``key``, or the one whose text is there (a CSV cell); empty for null or blank text.

    ``literals``: the text may be a Python literal too (see ``decode_text``).
    """
    value = row.get(key)
    while isinstance(value, str):  # text encoded twice is decoded twice
        value = decode_text(value, f"{prefix}{key}", literals=literals) if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(f"{prefix}{key}: expected a list, found {name_type(value)}")
    return value


def check_object(value: object, where: str) -> dict[str, object]:
    """``value``, if it is an object; RowError naming ``where`` otherwise."""
    if not isinstance(value, dict):
        raise RowError(f"{where}: expected an object, found {name_type(value)}")
    return value


def decode_text(text: str, where: str, *, literals: bool) -> object:
    """The value whose JSON text is at ``where``, or with ``literals`` the list or object that Python's ``repr`` wrote.

    Raises RowError where it is neither, or Python cannot hold it.
    """
    if literals and not isinstance(value := _decode_literal(text), str):
        return value
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        remedy = "--python-literals" if _looks_like_literal(text) else ""
        raise RowError(f"{where}: text is not JSON at character {error.pos + 1}: {error.msg}", remedy) from None
    except RecursionError:
        raise RowError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise RowError(f"{where}: {error}") from None


def _looks_like_literal(text: str) -> bool:
    """Whether a text that is not JSON may be a list or an object in Python's spelling: single quotes, True, None."""
    text = text.strip()
    return text[:1] + text[-1:] in ("[]", "{}") and bool(re.search(r"'|\b(?:True|False|None)\b", text))


def _decode_literal(text: str) -> object:
    """The list or object that Python's ``repr`` wrote, or else the text itself. Nothing is executed."""
    if len(text) > _LITERALS_LIMIT or not _looks_like_literal(text):
        return text
    for prepare in (str.strip, _with_commas):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in a row's text
                value = ast.literal_eval(prepare(text))
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if isinstance(value, list | dict):
            return value
    return text


def _with_commas(text: str) -> str:
    """The literal with commas between adjacent objects, which numpy prints without any."""
    return _TEXT_OR_GAP.sub(lambda match: "}," if match[0] == "}" else match[0], text.strip())


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
