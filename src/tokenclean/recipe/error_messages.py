"""A recipe's faults in words, each with what was expected and a did-you-mean."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from tokenclean.recipe.settings import Recipe


def explain_all(error: ValidationError) -> list[str]:
    """Every fault, in words; pydantic also calls a tuple too short when its items are at fault, which says nothing."""
    faults = error.errors()
    blamed = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    return [_explain(fault) for fault in faults if fault["type"] != "too_short" or fault["loc"] not in blamed]


def _explain(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    where = ".".join(location) or "recipe"
    found = fault.get("input")
    kind = fault["type"]
    if kind == "extra_forbidden":
        section = _section_at(location[:-1])
        elsewhere = [f"{s}.{location[-1]}" for s in _sections_holding(location[-1])]
        if elsewhere:
            return f"{where}: unknown key; did you mean {' or '.join(elsewhere)}?"
        return f"{where}: unknown key{did_you_mean(location[-1], list(section.model_fields) if section else [])}"
    if kind == "missing":
        return f"{where}: missing; set it in the file or with --set {where}=…"
    if kind == "literal_error":
        allowed = [a.strip(" '") for a in str(fault["ctx"]["expected"]).replace(" or ", ",").split(",")]
        return f"{where}: expected one of {', '.join(allowed)}, found {found!r}{did_you_mean(str(found), allowed)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message if where == "recipe" else f"{where}: {message}"
    return f"{where}: {message[:1].lower()}{message[1:]}, found {found!r}"


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``; did you mean X?`` where a candidate is close, else nothing."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _section_at(location: list[str]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = Recipe
    for part in location:
        if part.isdecimal():
            continue
        section = (
            _section_type(section.model_fields[part].annotation) if section and part in section.model_fields else None
        )
    return section


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_section_type(argument) for argument in typing.get_args(annotation))
    return next((section for section in found if section is not None), None)


def _sections_holding(key: str, section: type[BaseModel] = Recipe, path: str = "") -> list[str]:
    """Paths of the sections, at any depth, that have this key."""
    found = [path] if path and key in section.model_fields else []
    for name, field in section.model_fields.items():
        if below := _section_type(field.annotation):
            found += _sections_holding(key, below, f"{path}.{name}" if path else name)
    return found
