"""What ``run``, ``plan`` and ``init`` take: a recipe file, a preset, or data files for which a recipe is made."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from tokenclean.cli.completion import complete_data
from tokenclean.cli.console import note
from tokenclean.cli.options import IntakeOptions, SetOption
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.errors import PoolError, RecipeError
from tokenclean.recipe import (
    DEFAULT_STRATEGY,
    LARGE_MODEL_PARAMETERS,
    CleaningSettings,
    Recipe,
    data_values,
    is_recipe,
    load_recipe,
    recipe_from,
)
from tokenclean.recipe.pool_settings import HUB_PREFIX

_PANEL = "The recipe"

DataArgument = Annotated[
    list[str],
    Argument(
        metavar="DATA...|RECIPE",
        help="Your data: JSON lines, JSON, CSV, Parquet, a save_to_disk folder or hf://datasets/org/name; several make "
        "one pool. Or a recipe: a .yaml file, or a preset by name (paper, quick).",
        autocompletion=complete_data,
    ),
]
ModelOption = Annotated[
    str | None,
    Option(
        "--model",
        "-m",
        help="Base model: Hub id, folder, GGUF file, PEFT adapter; demo is the demo's model.",
        rich_help_panel=_PANEL,
    ),
]
RowsOption = Annotated[
    int | None, Option("--rows", min=4, help="Use only this many rows, drawn at random.", rich_help_panel=_PANEL)
]
TrustedOption = Annotated[
    str | None,
    Option("--trusted", metavar="FILE", help="50 to 200 conversations that you have checked.", rich_help_panel=_PANEL),
]
CleaningOptions = Annotated[
    Mapping[str, object],
    FromSettings(
        CleaningSettings,
        "strategy",
        "proportion",
        "allow_weak_reference",
        panel=_PANEL,
        shown_defaults={
            "strategy": f"{DEFAULT_STRATEGY} for data",
            "proportion": f"{CleaningSettings().proportion}; for strategies that rank",
        },
    ),
]
OutputOption = Annotated[Mapping[str, object], FromSettings(Recipe, "output", panel=_PANEL)]


@dataclass(frozen=True)
class RecipeRequest:
    """What a command line says of a recipe. ``data``: its arguments; ``overrides``: of options, then of ``--set``;
    ``intake``: how the data are read."""

    data: Sequence[str]
    overrides: Sequence[str]
    intake: Mapping[str, object]

    @property
    def names_model(self) -> bool:
        """Whether a base model is given."""
        return any(override.startswith("model.base=") for override in self.overrides)

    def with_section(self, section: str, given: Mapping[str, object]) -> RecipeRequest:
        """The same with overrides of one more section, before those of ``--set``."""
        return replace(self, overrides=(*overrides_of(section, given), *self.overrides))

    def recipe(self) -> tuple[Recipe, str | None]:
        """The recipe, and the preset that it was made on; None where it is the user's own. Raises RecipeError."""
        if any(map(is_recipe, self.data)):
            if len(self.data) > 1:
                raise RecipeError(["give one recipe, or data files, not both"], "options")
            return load_recipe(self.data[0], self.overrides, self.intake), None
        self._check_files()
        if not self.names_model:
            example = "--model HuggingFaceTB/SmolLM2-135M"
            raise RecipeError([f"--model: name the base model to clean the data for, such as {example}"], "options")
        return self.made_for_size()

    def _check_files(self) -> None:
        """Raise PoolError for a data file that is not there."""
        from tokenclean.pool.reading.text_files import describe_unreadable

        for place in self.data:
            if not place.startswith(HUB_PREFIX) and not (path := Path(place).expanduser()).exists():
                raise PoolError(describe_unreadable(path, FileNotFoundError()))

    def made(self, parameters: int = 0, rows: int | None = None) -> tuple[Recipe, str]:
        """The recipe made for the data files, and its preset. ``parameters`` of the model; ``rows`` of the pool."""
        values = data_values(self.data, parameters=parameters, rows=rows)
        return recipe_from(values, self.overrides, "options", self.intake), str(values["preset"])

    def made_for_size(self) -> tuple[Recipe, str]:
        """The recipe made for the data files, its preset chosen by the size of the model and, if that is large, of the
        pool, which is then read to count its rows."""
        from tokenclean.experiment.planning.parameter_count import parameter_count
        from tokenclean.pool import Conversation, stream_sources

        small = self.made()
        parameters = parameter_count(small[0].model, note)
        if parameters < LARGE_MODEL_PARAMETERS:
            return small
        note("counting the rows of the pool, by which a large model's recipe is chosen")
        rows = sum(isinstance(row, Conversation) for row in stream_sources(small[0].pool.sources))
        return self.made(parameters, rows)


def _request(
    data: DataArgument,
    model: ModelOption = None,
    rows: RowsOption = None,
    trusted: TrustedOption = None,
    set_: SetOption = None,
    *,
    cleaning: CleaningOptions,
    output: OutputOption,
    intake: IntakeOptions,
) -> RecipeRequest:
    given = {"model.base": model, "pool.max_rows": rows, "cleaning.trusted": trusted, **output}
    options = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    options += overrides_of("cleaning", cleaning)
    return RecipeRequest(data, (*options, *(set_ or ())), intake)


def overrides_of(section: str, given: Mapping[str, object]) -> list[str]:
    """Overrides of a recipe's section that say the same as its options."""
    return [f"{section}.{name}={json.dumps(value)}" for name, value in given.items()]


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the arguments and options of ``_request``, in place of its parameter ``request``."""
    ask: Callable[..., RecipeRequest] = _request
    asked = inspect.signature(ask, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters
    parameters = [*asked.values(), *(parameter for name, parameter in own.items() if name != "request")]

    @wraps(command)
    def with_request(**options: object) -> None:
        command(ask(**{name: options.pop(name) for name in asked}), **options)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    vars(with_request)["__signature__"] = inspect.Signature(keyword_only)
    return takes_settings(with_request)
