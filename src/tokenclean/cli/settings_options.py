"""Options generated from the settings models: their names, types, choices, bounds, defaults and help.

    @takes_settings
    def score(tokens: Annotated[TokensSettings, FromSettings(TokensSettings, "template", "max_length")]) -> None: ...

gives the command ``--template`` and ``--max-length`` as the recipe defines them, and the function a TokensSettings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Literal, get_args, get_origin

import typer
from annotated_types import Ge, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tokenclean.errors import RecipeError
from tokenclean.recipe.base_settings import Section
from tokenclean.recipe.error_messages import explain_all

# Where an option is not called like its field, and what its help shows in place of its type.
_NAMES = {"kind": ("--on",), "columns": ("--column",), "roles": ("--role",), "proportion": ("--proportion", "-k")}
_METAVARS = {
    "columns": "OURS=THEIRS",
    "roles": "NAME=ROLE",
    "date": "YYYY-MM-DD",
    "delimiter": "CHARACTER",
    "encoding": "NAME",
    "ignore": "KEY",
    "key_variable": "NAME",
    "kind": "local|ray|ray://HOST",
    "trust_remote_code": "MODEL",
}
_PAIRS = {"columns": "instruction=question", "roles": "customer=user"}


class FromSettings:
    """Annotation of a command's parameter: its value comes from options generated from ``fields`` of ``section``, from
    all of them where none is named.

    ``shown_defaults``: of a field, what the help gives as its default, where that is not the section's.

    A parameter of the section's type gets the section, validated. A mapping gets only the values given on the command
    line. Any other parameter gets the value of its one field.
    """

    def __init__(
        self,
        section: type[Section],
        *fields: str,
        panel: str | None = None,
        shown_defaults: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.section, self.fields, self.panel = section, fields or tuple(section.model_fields), panel
        self.shown_defaults = shown_defaults

    def argument(self, kind: object, given: Mapping[str, object]) -> object:
        """The value of a parameter of type ``kind``. Raises RecipeError where the section refuses what was given."""
        if kind is self.section:
            return self._validated(given)
        if get_origin(kind) is Mapping:
            return given
        [name] = self.fields
        return given.get(name, self.section.model_fields[name].default)

    def _validated(self, given: Mapping[str, object]) -> Section:
        try:
            return self.section.model_validate(given)
        except ValidationError as error:
            problems = []
            for problem in explain_all(error, self.section):
                field, _, text = problem.partition(": ")
                problems.append(f"{_names(field)[0]}: {text}" if field in self.fields else problem)
            raise RecipeError(problems, "options") from error


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of its parameters that are annotated with ``FromSettings``, in their place."""
    parameters: dict[str, inspect.Parameter] = {}
    expanded: dict[str, tuple[object, FromSettings]] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind, *marks = get_args(parameter.annotation) or [parameter.annotation]
        if not marks or not isinstance(marks[0], FromSettings):
            parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        settings = marks[0]
        expanded[name] = kind, settings
        for field in settings.fields:
            parameters[f"{name}_{field}"] = _parameter(f"{name}_{field}", field, settings)

    takes_context = "context" in parameters
    parameters["context"] = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @wraps(command)
    def wrapped(context: typer.Context, **options: object) -> None:
        for name, (kind, settings) in expanded.items():
            values = {field: options.pop(f"{name}_{field}") for field in settings.fields}
            given = {f: _parsed(f, value) for f, value in values.items() if is_given(context, f"{name}_{f}")}
            options[name] = settings.argument(kind, given)
        command(**options, **({"context": context} if takes_context else {}))

    vars(wrapped)["__signature__"] = inspect.Signature(list(parameters.values()))
    vars(wrapped)["settings"] = {name: settings for name, (_, settings) in expanded.items()}
    wrapped.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return wrapped


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line, not a default, says the parameter ``name``."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _parameter(name: str, field: str, settings: FromSettings) -> inspect.Parameter:
    info = settings.section.model_fields[field]
    is_list = get_origin(info.annotation) is tuple
    bounds = _bounds(info)
    text = " ".join((info.description or "").split())
    option = typer.Option(
        ... if info.is_required() else None if is_list else info.default,
        *_names(field),
        min=bounds.get("min"),
        max=bounds.get("max"),
        metavar=_METAVARS.get(field),
        help=f"{text.removesuffix('.')}; repeatable." if is_list else text,
        show_default=settings.shown_defaults.get(field, True),
        rich_help_panel=settings.panel,
    )
    has_words = any(get_origin(kind) is Literal for kind in get_args(info.annotation))  # or a number, say
    kind = list[str] if is_list else str if has_words else info.annotation
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _names(field: str) -> tuple[str, ...]:
    return _NAMES.get(field, (f"--{field.replace('_', '-')}",))


def _bounds(info: FieldInfo) -> dict[str, float]:
    """The least and greatest value. A float's exclusive bound is left to the section: an option can have none."""
    is_whole = int in (info.annotation, *get_args(info.annotation))
    bounds: dict[str, float] = {}
    for bound in info.metadata:
        match bound:
            case Ge(ge=int() | float() as least):
                bounds["min"] = least
            case Le(le=int() | float() as most):
                bounds["max"] = most
            case Lt(lt=int() as above) if is_whole:
                bounds["max"] = above - 1
    return bounds


def _parsed(field: str, value: object) -> object:
    """An option's value as its field takes it. Raises RecipeError for a pair without its equals sign."""
    if not isinstance(value, list):
        return value
    return dict(_pair(field, text) for text in value) if field in _PAIRS else tuple(value)


def _pair(field: str, text: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (equals and left and right):
        expected = f"expected {_METAVARS[field]}, such as {_PAIRS[field]}"
        raise RecipeError(f"{_names(field)[0]} {text}: {expected}", "options")
    return left, right
