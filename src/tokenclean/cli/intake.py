"""The sources that a command's arguments name, and what is printed about what was read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tokenclean.cli.console import say
from tokenclean.recipe import SourceSettings, source_from

if TYPE_CHECKING:
    from tokenclean.pool import Intake


def sources_of(pool: Iterable[str], intake: Mapping[str, object]) -> list[SourceSettings]:
    """The sources with these paths or Hub ids, all read with the same options. Raises RecipeError listing what is
    wrong."""
    return [source_from({"path": place, **intake}) for place in pool]


def print_intake(intake: Intake) -> None:
    """Print what became of everything that was read."""
    for line in intake.lines():
        say(line, "yellow")
