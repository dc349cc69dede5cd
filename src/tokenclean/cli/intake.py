"""Options for reading data, which every command that reads some has, and what is printed of what was read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenclean.errors import RecipeError
from tokenclean.recipe import SourceSettings, source_from

if TYPE_CHECKING:
    from tokenclean.pool import Intake

HUB_PREFIX = "hf://datasets/"
_PANEL = "Reading the data"

IntakeOptions = Mapping[str, Any]
"""Keys of SourceSettings that the command line gives, for every source that the command reads."""


class Format(StrEnum):
    auto = "auto"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"
    text = "text"
    tokens = "tokens"


class Preferences(StrEnum):
    refuse = "refuse"
    chosen = "chosen"


def _option(name: str, *, help: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=help, metavar=metavar, rich_help_panel=_PANEL)


# Key of SourceSettings -> how the command line takes it, and its default there.
_PARAMETERS: dict[str, tuple[Any, Any]] = {
    "format": (
        Annotated[Format | None, _option("--format", help="Form of the rows; auto (the default) detects it by row.")],
        None,
    ),
    "columns": (
        Annotated[
            list[str] | None,
            _option(
                "--column",
                metavar="OURS=THEIRS",
                help="Column map, such as instruction=question; repeatable. Dots lead into objects and lists.",
            ),
        ],
        None,
    ),
    "roles": (
        Annotated[
            list[str] | None,
            _option("--role", metavar="NAME=ROLE", help="A role's name, such as customer=user; repeatable."),
        ],
        None,
    ),
    "split": (
        Annotated[str | None, _option("--split", help="Split of a Hub dataset, a save_to_disk folder or a JSON file.")],
        None,
    ),
    "delimiter": (
        Annotated[
            str | None,
            _option("--delimiter", metavar="SIGN", help="What parts the columns of a CSV file, such as ';' or tab."),
        ],
        None,
    ),
    "encoding": (
        Annotated[
            str | None,
            _option("--encoding", metavar="NAME", help="Encoding of a text file, such as cp1252 or gb18030."),
        ],
        None,
    ),
    "ignore": (
        Annotated[
            list[str] | None,
            _option(
                "--ignore",
                metavar="KEY",
                help="Leave this key (or type of content part) unread on purpose; repeatable.",
            ),
        ],
        None,
    ),
    "preferences": (
        Annotated[
            Preferences | None,
            _option(
                "--preferences",
                help="Rows with preference labels: refuse (the default), or train the chosen answers alone.",
            ),
        ],
        None,
    ),
    "python_literals": (
        Annotated[
            bool,
            _option("--python-literals", help="Read cells that hold lists as Python writes them, with single quotes."),
        ],
        False,
    ),
    "repair_thoughts": (
        Annotated[
            bool, _option("--repair-thoughts", help="Put `<think>` in front of an answer that holds `</think>` alone.")
        ],
        False,
    ),
}


def takes_intake(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command of the command line the options above, as one argument ``intake`` of the given keys."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "intake"]
    added = [
        inspect.Parameter(f"intake_{key}", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for key, (kind, default) in _PARAMETERS.items()
    ]

    @wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        given = {key: options.pop(f"intake_{key}") for key in _PARAMETERS}
        return command(*arguments, intake=_intake_of(given), **options)

    vars(wrapped)["__signature__"] = signature.replace(parameters=[*own, *added])
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return wrapped


def _intake_of(given: Mapping[str, Any]) -> IntakeOptions:
    """Raises RecipeError for a pair without its equals sign."""
    options = {key: value for key, value in given.items() if value}
    for key, example in (("columns", "instruction=question"), ("roles", "customer=user")):
        if key in options:
            options[key] = dict(_pair(text, f"--{key.removesuffix('s')}", example) for text in options[key])
    for key in ("format", "preferences"):
        if key in options:
            options[key] = options[key].value
    return options


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (equals and left and right):
        expected = "OURS=THEIRS" if option == "--column" else "NAME=ROLE"
        raise RecipeError(f"{option} {text}: expected {expected}, such as {example}", "options")
    return left, right


def sources_of(pool: Iterable[str], intake: IntakeOptions) -> list[SourceSettings]:
    """The sources that a command's arguments name. Raises RecipeError listing what is wrong."""
    return [source_from(_place(place) | dict(intake)) for place in pool]


def _place(place: str) -> dict[str, Any]:
    if not place.startswith(HUB_PREFIX):
        return {"path": place}
    name, _, revision = place.removeprefix(HUB_PREFIX).partition("@")
    return {"hub": name, "revision": revision or None}


def print_intake(intake: Intake) -> None:
    """What became of everything that went in."""
    from tokenclean.cli.console import out

    for line in intake.lines():
        out.print(line, style="yellow" if out.is_terminal else None, soft_wrap=True)
