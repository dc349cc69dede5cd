"""The recipe: a whole experiment as one frozen object, from a preset, a YAML file and ``a.b=c`` overrides."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokenclean.errors import RecipeError

Strategy = Literal["none", "full_tokens", "random", "rho", "fixed_model", "self_evolving"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
PRESETS = ("paper", "quick", "demo")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class SourceSettings(_Section):
    """One file of the pool."""

    path: str
    name: str | None = None
    """Source name; by default the row's own ``source``, else the file's stem."""
    format: Literal["auto", "messages", "alpaca", "prompt_completion"] = "auto"


class HeldoutSettings(_Section):
    """Rows kept out of all training, on which models are compared."""

    rows: int = Field(default=100, ge=2)
    max_share: float = Field(default=0.2, gt=0, lt=1)
    """Never more than this share of the pool."""


class PoolSettings(_Section):
    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    max_rows: int | None = Field(default=None, ge=4)
    """Use only this many rows, drawn with the seed (file order is kept)."""
    heldout: HeldoutSettings = HeldoutSettings()


class TokensSettings(_Section):
    template: Literal["tulu", "tokenizer"] = "tulu"
    max_length: int = Field(default=2048, ge=2)


class ModelSettings(_Section):
    base: str = Field(min_length=1)
    """Hub id, folder, GGUF file, or adapter: the base model θ_0."""
    reference: str | None = None
    """A ready reference model θ' for rho and fixed_model in place of the warm-up."""
    revision: str | None = None
    device: str = "auto"


class CleaningSettings(_Section):
    strategy: Strategy = "self_evolving"
    proportion: float = Field(default=0.6, gt=0, le=1)
    """k of Eq. 4: the share of response tokens kept."""
    level: Literal["global", "source"] = "global"
    """Where fixed_model and self_evolving rank: over all tokens, or within each source."""
    splits: int = Field(default=5, ge=2)
    """D̃_0 … D̃_T; D̃_0 warms up the reference."""
    split_kind: Literal["stratified", "contiguous"] = "stratified"
    score_against: Literal["base", "previous"] = "base"
    """Score against θ_0 (the prose of §4.3.2) or against θ_{t−1} (the listing of Algorithm 1)."""
    allow_weak_reference: bool = False


class ScoringSettings(_Section):
    precision: Literal["exact", "safe", "fast"] = "safe"
    pack_tokens: int = Field(default=4096, ge=1)


class LoraSettings(_Section):
    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @field_validator("target_modules", mode="before")
    @classmethod
    def _check_targets(cls, value: Any) -> Any:
        names = value if isinstance(value, (list, tuple)) else ()
        if value != "all-linear" and not (names and all(isinstance(name, str) for name in names)):
            raise ValueError(f"expected all-linear or a list of module names such as [q_proj, v_proj], found {value!r}")
        return value


class TrainingSettings(_Section):
    method: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(default=1e-4, gt=0)
    batch_size: int = Field(default=48, ge=1)
    """Conversations an optimizer step."""
    minimum_steps: int = Field(default=0, ge=0)
    """Take smaller batches where a round would have fewer steps with a learning rate above 0 than this."""
    epochs: int = Field(default=1, ge=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=0.0, ge=0)
    """0 is no clipping."""
    shuffle: bool = True
    loss_normalisation: Literal["token", "sample"] = "token"
    """One mean over the batch's selected tokens (Eq. 1), or the mean of the samples' means (§5.1)."""
    precision: Literal["exact", "safe", "fast"] = "safe"
    pack_tokens: int = Field(default=2048, ge=1)
    """Tokens in one forward and backward pass; a batch takes as many passes as it needs."""
    eval_rows: int = Field(default=0, ge=0)
    """Rows set aside from the training rows, whose loss is printed after each epoch."""


class EvaluationSettings(_Section):
    controls: tuple[Strategy, ...] = ()
    """Further strategies to train for comparison; they share tokens, base losses and warm-up."""


class Recipe(_Section):
    """A whole experiment. ``seed`` drives splits, random selection and training alike."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    seed: int = Field(default=42, ge=0, lt=2**32)
    output: str = "runs"
    """The run folder is ``<output>/<name>``."""
    pool: PoolSettings
    tokens: TokensSettings = TokensSettings()
    model: ModelSettings
    cleaning: CleaningSettings = CleaningSettings()
    scoring: ScoringSettings = ScoringSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("output")
    @classmethod
    def _expand(cls, value: str) -> str:
        return str(Path(value).expanduser())

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        if self.model.reference and "self_evolving" in self.strategies and len(self.strategies) == 1:
            raise ValueError(
                "model.reference: self_evolving trains its own references; leave it out, or use rho or fixed_model"
            )
        return self

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """The strategy and its controls, each once, in the order in which they are run."""
        wanted = {self.cleaning.strategy, *self.evaluation.controls}
        return tuple(s for s in STRATEGIES if s in wanted)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output) / self.name

    def to_yaml(self) -> str:
        """The recipe with every value spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, or a preset by its name, and apply overrides such as ``training.epochs=2``.

    Relative pool paths in a file are taken from the current folder. Raises RecipeError listing every fault at once,
    unknown keys with a did-you-mean.
    """
    path = Path(path)
    if path.is_file():
        values, source = _read_yaml(_read_text(path), str(path)), str(path)
    elif str(path) in PRESETS:
        values, source = {"preset": str(path)}, f"preset {path}"
    else:
        raise RecipeError(f"no such recipe file; the presets are {', '.join(PRESETS)}", str(path))
    return recipe_from(values, overrides, source)


def recipe_from(values: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "recipe") -> Recipe:
    """Build a recipe from nested values (``preset`` names the values underneath) and overrides. Raises RecipeError."""
    values = dict(values)
    problems: list[str] = []
    preset = values.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        problems.append(f"preset: unknown preset {preset!r}{_did_you_mean(str(preset), PRESETS)}")
    merged: dict[str, Any] = _merge(_preset_values(preset), values) if preset in PRESETS else dict(values)
    for override in overrides:
        try:
            _apply_override(merged, override)
        except ValueError as error:
            problems.append(str(error))
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        problems += _explain_all(error)
    if problems:
        raise RecipeError(problems, source)
    return recipe  # pyright: ignore[reportPossiblyUnboundVariable]


def training_from(values: Mapping[str, Any]) -> TrainingSettings:
    """Training settings alone, from nested values. Raises RecipeError listing every fault."""
    try:
        return TrainingSettings.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain_all(error), "training") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read as UTF-8 text ({error})", str(path)) from error


def _read_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2020-13-01
        raise RecipeError(f"not valid YAML: {' '.join(str(error).split())}", source) from error
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of sections (pool, model, cleaning, …)", source)
    return values


def _preset_values(preset: str) -> dict[str, Any]:
    text = (resources.files("tokenclean") / "data" / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    return _read_yaml(text, f"preset {preset}")


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {override}: expected key=value, such as training.epochs=2")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"--set {override}: the value is not valid YAML") from error
    *parents, last = path.split(".")
    place: Any = values
    for depth, part in enumerate([*parents, last]):
        where = ".".join([*parents, last][: depth + 1])
        is_last = depth == len(parents)
        if isinstance(place, list):
            if not part.isdecimal() or int(part) > len(place):
                raise ValueError(f"--set {where}: this is a list of {len(place)}; give an index from 0 to {len(place)}")
            if int(part) == len(place):
                place.append({})
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
        else:
            raise ValueError(f"--set {where}: {'.'.join([*parents, last][:depth])} is a value, not a section")
        if is_last:
            place[key] = value
        else:
            below = place[key] if isinstance(place, list) else place.get(key)
            following = [*parents, last][depth + 1]
            if below is None or isinstance(below, tuple):
                below = list(below or []) if following.isdecimal() else {}
            place[key] = dict(below) if isinstance(below, dict) else list(below) if isinstance(below, list) else below
            place = place[key]


def _explain_all(error: ValidationError) -> list[str]:
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
        return f"{where}: unknown key{_did_you_mean(location[-1], list(section.model_fields) if section else [])}"
    if kind == "missing":
        return f"{where}: missing; set it in the file or with --set {where}=…"
    if kind == "literal_error":
        allowed = [a.strip(" '") for a in str(fault["ctx"]["expected"]).replace(" or ", ",").split(",")]
        return f"{where}: expected one of {', '.join(allowed)}, found {found!r}{_did_you_mean(str(found), allowed)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message if where == "recipe" else f"{where}: {message}"
    return f"{where}: {message[:1].lower()}{message[1:]}, found {found!r}"


def _did_you_mean(word: str, candidates: Iterable[str]) -> str:
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
