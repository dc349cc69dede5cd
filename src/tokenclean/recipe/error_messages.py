"""A recipe's faults in words, each with what was expected and, for unknown keys, a did-you-mean."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def explain_all(error: ValidationError, root: type[BaseModel], above: str = "") -> list[str]:
    """Every fault of the ``root`` section's values, in words. ``above``: the path of the section in the recipe."""
    faults = error.errors()
    # Pydantic also calls a tuple too short when its items are at fault, which says nothing.
    blamed = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    return [
        _explain(fault, root, above) for fault in faults if fault["type"] != "too_short" or fault["loc"] not in blamed
    ]


def _explain(fault: ErrorDetails, root: type[BaseModel], above: str) -> str:
    location = [str(part) for part in fault["loc"]]
    where = ".".join([*filter(None, [above]), *location]) or "recipe"
    found, message = fault["input"], fault["msg"].removeprefix("Value error, ")
    match fault["type"]:
        case "extra_forbidden":
            if elsewhere := [f"{path}.{location[-1]}" for path in _sections_holding(location[-1], root)]:
                return f"{where}: unknown key; did you mean {' or '.join(elsewhere)}?"
            section = _section_at(location[:-1], root)
            return f"{where}: unknown key{did_you_mean(location[-1], section.model_fields if section else ())}"
        case "missing":
            return f"{where}: missing; set it in the file or with --set {where}=…"
        case "literal_error":
            allowed = [a.strip(" '") for a in str(fault.get("ctx", {})["expected"]).replace(" or ", ",").split(",")]
            return f"{where}: expected one of {', '.join(allowed)}, found {found!r}{did_you_mean(str(found), allowed)}"
        case "value_error":
            is_named = not location or message.startswith(f"{where}.")  # the message names the key itself
            return message if is_named else f"{where}: {message}"
    return f"{where}: {message[:1].lower()}{message[1:]}, found {found!r}"


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``; did you mean X?`` where a candidate is close, else nothing."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _section_at(location: list[str], root: type[BaseModel]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = root
    for part in location:
        if not part.isdecimal():
            known = section.model_fields if section else {}
            section = _section_type(known[part].annotation) if part in known else None
    return section


def _section_type(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_section_type(argument) for argument in typing.get_args(annotation))
    return next((section for section in found if section is not None), None)


def _sections_holding(key: str, section: type[BaseModel], path: str = "") -> Iterator[str]:
    """Paths of the sections below this one, at any depth, that have this key."""
    if path and key in section.model_fields:
        yield path
    for name, field in section.model_fields.items():
        if below := _section_type(field.annotation):
            yield from _sections_holding(key, below, f"{path}.{name}" if path else name)
