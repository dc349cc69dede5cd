"""Options that are generated from the settings models, in every command."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from importlib import import_module
from typing import Annotated, Literal, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from tokenclean.cli.main import COMMANDS as PANELS
from tokenclean.cli.main import load_command
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.errors import RecipeError
from tokenclean.recipe import Recipe, TrainingSettings, training_from
from tokenclean.recipe.base_settings import Section

COMMANDS = {name: load_command(name) for names in PANELS.values() for name in names}
CALLBACKS = {name: getattr(import_module(f"tokenclean.cli.{name}"), name) for name in COMMANDS}

OWN = {
    # Options that are called like a recipe key and mean something else.
    "score": {"reference", "columns"},  # no reference by default, where a run trains one; columns to write
    "select": {"level"},  # has levels that no strategy of a run has
    "merge": {"template", "base", "strategy"},  # by default those of the model
    "export": {"strategy", "review"},  # which of a run's; decisions to apply
    "view": {"strategy", "proportion", "seed", "review"},  # which of a run's; where to start; the sample's; a page
    "review": {"strategy", "name"},  # which of a run's; the person's
    "audit": {"max_rows"},  # the first ones, where a recipe draws them
    "inspect": {"rows", "start"},
    "lab": {"rows", "reference"},  # pool.max_rows by a shorter name; a model that is loaded here, not a served one
    # pool.max_rows by a shorter name, and of the source of trusted rows its path alone
    **{command: {"rows", "trusted"} for command in ("run", "init", "plan")},
}


def options() -> Iterator[tuple[str, str, FieldInfo]]:
    """Command, parameter and settings field of every generated option."""
    for command, callback in CALLBACKS.items():
        for name, settings in getattr(callback, "settings", {}).items():
            for field in settings.fields:
                yield command, f"{name}_{field}", settings.section.model_fields[field]


def choices_of(kind: object) -> tuple[str, ...]:
    kinds = get_args(kind) if get_origin(kind) is types.UnionType else [kind]
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield section
    for info in section.model_fields.values():
        kinds = [info.annotation, *get_args(info.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind)


FIELDS = {(section, name): info for section in sections(Recipe) for name, info in section.model_fields.items()}


@pytest.mark.parametrize(("command", "parameter", "info"), list(options()))
def test_an_option_is_what_its_field_says(command, parameter, info):
    generated = inspect.signature(CALLBACKS[command]).parameters[parameter]
    option = generated.default
    if info.is_required():
        assert option.default is ...
    else:
        assert (() if option.default is None and info.default == () else option.default) == info.default
    assert choices_of(generated.annotation) == choices_of(info.annotation)
    assert option.help.startswith(" ".join(info.description.split()).removesuffix("."))


def test_most_options_are_generated():
    counted = dict.fromkeys(CALLBACKS, 0)
    for command, _, _ in options():
        counted[command] += 1
    assert counted["train"] == 18
    assert counted["score"] == 32
    assert counted["status"] == counted["theory"] == counted["export"] == 0


@pytest.mark.parametrize("command", list(COMMANDS))
def test_no_option_repeats_a_recipe_key_by_hand(command):
    generated = {parameter for name, parameter, _ in options() if name == command}
    keys = {name for (_, name), info in FIELDS.items() if info.description}
    keys.remove("model")  # of a served reference its name on the server, in commands the base
    options_only = [option for option in COMMANDS[command].params if option.param_type_name == "option"]
    repeated = {option.name for option in options_only if option.name in keys} - generated
    assert repeated - {"output"} == OWN.get(command, set())


def test_every_field_has_a_description():
    missing = [
        f"{section.__name__}.{name}" for (section, name), info in FIELDS.items() if not (info.description or "").strip()
    ]
    inner = {"TrainingSettings.lora", "CleaningSettings.noise_mixture", "CleaningSettings.repetition"}
    inner |= {"FiltersSettings.contamination", "PoolSettings.sources", "PoolSettings.filters", "PoolSettings.heldout"}
    inner |= {f"Recipe.{name}" for name in Recipe.model_fields if name not in ("name", "seed", "output")}
    assert set(missing) <= inner
    descriptions = [info.description for info in FIELDS.values() if info.description]
    assert all(text[0].isupper() or text[0] == "`" for text in descriptions)
    assert all(text.endswith(".") for text in descriptions)


def test_the_default_of_pack_tokens_is_described():
    text = TrainingSettings.model_fields["pack_tokens"].description
    for device in ("cpu", "cuda"):
        assert f"{TrainingSettings().pack_tokens_on(device):,}" in text


# --- parameters --------------------------------------------------------------------------------------------------


class Settings(Section):
    number: int = Field(default=3, ge=1, lt=10)
    """A whole number."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """A share."""
    form: Literal["a", "b"] = "a"
    """A kind."""
    names: tuple[str, ...] = ()
    """Names."""


@pytest.fixture
def call():
    """A function that calls a command line with all kinds of parameters and gives what they got."""
    got: dict[str, object] = {}

    @takes_settings
    def command(
        section: Annotated[Settings, FromSettings(Settings, "number", "share", "form")],
        names: Annotated[tuple[str, ...], FromSettings(Settings, "names")],
    ) -> None:
        got.update(section=section, names=names)

    own = typer.Typer()
    own.command()(command)

    def run(*arguments: str) -> dict[str, object]:
        said = CliRunner().invoke(own, arguments)
        if said.exception is not None and not isinstance(said.exception, SystemExit):
            raise said.exception
        return got if said.exit_code == 0 else {"refused": said.output}

    return run


def test_a_section_holds_what_was_given_and_knows_it(call):
    got = call()
    assert (got["section"], got["names"]) == (Settings(), ())
    assert got["section"].model_fields_set == set()
    got = call("--number", "4", "--form", "b", "--names", "x", "--names", "y")
    assert got["section"] == Settings(number=4, form="b")
    assert got["section"].model_fields_set == {"number", "form"}
    assert got["names"] == ("x", "y")


def test_values_out_of_bounds_are_refused_by_the_option_s_name(call):
    assert "--number" in call("--number", "10")["refused"]
    assert "--form" in call("--form", "c")["refused"]
    with pytest.raises(RecipeError, match=r"options: --share: input should be less than 1, found 1\.0"):
        call("--share", "1")


def test_any_training_key_can_be_set():
    settings = training_from({"epochs": 2}, ["training.schedule=cosine", "training.lora.alpha=32"])
    assert (settings.epochs, settings.schedule, settings.lora.alpha) == (2, "cosine", 32)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule=cosine", "--set schedule=cosine: expected a key of training, such as training.schedule=cosine"),
        ("training.schedule", "--set training.schedule: expected key=value, such as training.epochs=2"),
        ("training.shedule=cosine", "shedule: unknown key; did you mean schedule?"),
        ("training.rank=3", "rank: unknown key; did you mean lora.rank?"),
    ],
)
def test_a_training_key_that_is_none_is_refused(override, message):
    with pytest.raises(RecipeError) as found:
        training_from({}, [override])
    assert found.value.problems == [message]


def test_train_takes_any_training_key_and_no_other(command):
    said = command("train", "none.parquet", "--base", "none", "--set", "training.shedule=cosine")
    assert (said.code, said.err) == (2, "error: training: shedule: unknown key; did you mean schedule?\n")
    said = command("train", "none.parquet", "--base", "none", "--set", "model.base=other")
    assert "--set model.base=other: expected a key of training" in said.err
