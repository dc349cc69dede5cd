"""Parts of the pages that are generated from the code: recipe keys, commands, strategies, checks, the API's entries.

A page asks for a part with a comment on a line of its own, such as ``<!-- generated: keys training.lora -->``. The
site's build (``hooks.py``) and the tests of the pages put the part in its place; nothing generated is committed.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from tokenclean.recipe import PRESETS, STRATEGIES, Recipe, ServedModel
from tokenclean.recipe.base_settings import Limits, Names, Section

ROOT = Path(__file__).parents[1]
_MARKER = re.compile(r"^<!-- generated: (\w+)(?: (.*?))? -->$", re.MULTILINE)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".sbatch": "bash"}


def expand(markdown: str) -> str:
    """A page's text with every generated part in its place. Raises KeyError for an unknown part."""
    return _MARKER.sub(lambda found: PARTS[found[1]](*(found[2] or "").split()), markdown)


def keys(path: str = "") -> str:
    """The keys of a recipe's section as a table, below the section's own description."""
    section = section_at(path)
    rows = [
        (
            f"`{key}`{{ #{_joined(path, key)} }}",
            kind_of(field),
            _default_of(field),
            _one_line(field.description or ""),
        )
        for key, field in section.model_fields.items()
        if _section_of(field) is None or _is_text_too(field)
    ]
    below = [
        f"[`{_joined(path, key)}`](#{_anchor(_joined(path, key))})"
        for key, field in section.model_fields.items()
        if _section_of(field) is not None
    ]
    text = (
        _paragraphs(f"{section.__doc__}\n\n{_description_at(path)}")
        + "\n\n"
        + table(("Key", "Type", "Default", "Meaning"), rows)
    )
    return text if not below or not path else f"{text}\n\nSections below it: {', '.join(below)}."


def presets() -> str:
    """What each preset sets, beside the defaults."""
    values = {name: dict(_leaves(_preset(name))) for name in PRESETS}
    names = [name for name, _ in all_keys() if any(name in preset for preset in values.values())]
    fields = dict(all_keys())
    rows = [
        (f"`{name}`", _default_of(fields[name]), *(_shown(values[preset].get(name)) for preset in PRESETS))
        for name in names
        if name != "name"
    ]
    return table(("Key", "Default", *(f"`{preset}`" for preset in PRESETS)), rows)


def commands() -> str:
    """Every command with its usage, its text and its options."""
    from tokenclean.cli.main import COMMANDS, load_command

    parts = []
    for panel, names in COMMANDS.items():
        parts.append(f"## {panel}")
        for name in names:
            parts.append(_command(load_command(name)))
    return "\n\n".join(parts)


def strategies() -> str:
    """The registry of strategies as a table."""
    rows = []
    for strategy in STRATEGIES.values():
        text = (strategy.load().__doc__ or "").split("\n\n")[0]
        needs = ", ".join(
            word
            for word, is_so in (
                ("ratings", strategy.needs_ratings),
                ("trusted rows", strategy.needs_trusted),
                ("trains its own references", strategy.trains_references),
            )
            if is_so
        )
        rows.append((f"`{strategy.name}`", strategy.title, strategy.trains, needs or "–", _one_line(text)))
    return table(("Name", "In Table 1", "Trains on", "Needs", "What it does"), rows)


def checks() -> str:
    """The registry of the audit's checks as a table."""
    from tokenclean.tokens.audit.checks import CHECKS

    rows = [(f"`{name}`", check.severity, check.meaning, check.remedy) for name, check in CHECKS.items()]
    return table(("Check", "Severity", "What it means", "Remedy"), rows)


def trainers() -> str:
    """What tests/downstream/prove_trainers.py has proven in the trainers themselves, as a table."""
    from tokenclean.exporting import WRITERS

    proofs = json.loads((ROOT / "docs" / "trainers.json").read_text(encoding="utf-8"))
    rows = [
        (
            proof["trainer"],
            proof["version"],
            f"`{proof['form']}`",
            proof["proven"],
            ", ".join(proof["packing"]),
            "floats" if proof["floats"] else "0 and 1",
            proof["date"],
        )
        for proof in proofs
    ]
    others = ", ".join(f"`{form}`" for form in WRITERS if form not in {proof["form"] for proof in proofs})
    shown = table(("Trainer", "Version", "Form", "Proven by", "Packing", "Weights", "Date"), rows)
    return f"{shown}\n\nNo trainer has run on the other forms ({others}): tests compare their files with what it reads."


def api(module: str) -> str:
    """mkdocstrings' entries of a module: its exported names, else its own public ones."""
    names = getattr(import_module(module), "__all__", None)
    if names is None:
        return f"::: {module}\n    options:\n      heading_level: 2\n      show_root_heading: true"
    entries = "\n\n".join(
        f"::: {module}.{name}\n    options:\n      heading_level: 3\n      show_root_heading: true" for name in names
    )
    text = _paragraphs(import_module(module).__doc__ or "")
    return f"## `{module}`\n\n{text}\n\n{entries}"


def file(path: str) -> str:
    """A file of the repository as a code block that is titled with the file's name."""
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    name = Path(path)
    return f'```{_LANGUAGES[name.suffix]} title="{name.name}"\n{text}\n```'


PARTS: dict[str, Callable[..., str]] = {
    "keys": keys,
    "presets": presets,
    "commands": commands,
    "strategies": strategies,
    "checks": checks,
    "trainers": trainers,
    "api": api,
    "file": file,
}


def all_keys(section: type[Section] = Recipe, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a recipe that holds a value, with its field; those of a list's items without an index."""
    for key, field in section.model_fields.items():
        inner = _section_of(field)
        if inner is None or _is_text_too(field):
            yield _joined(path, key), field
        if inner is not None:
            yield from all_keys(inner, _joined(path, key))


def all_sections(section: type[Section] = Recipe, path: str = "") -> Iterator[str]:
    """The paths of a recipe's sections."""
    for key, field in section.model_fields.items():
        if (inner := _section_of(field)) is not None:
            yield _joined(path, key)
            yield from all_sections(inner, _joined(path, key))


def section_at(path: str) -> type[Section]:
    """The section of a recipe at this path. Raises KeyError where there is none."""
    section: type[Section] = Recipe
    for key in path.split(".") if path else ():
        inner = _section_of(section.model_fields[key])
        if inner is None:
            raise KeyError(path)
        section = inner
    return section


def _description_at(path: str) -> str:
    """What the field that holds this section says."""
    above, _, key = path.rpartition(".")
    return (section_at(above).model_fields[key].description or "") if key else ""


def kind_of(field: FieldInfo) -> str:
    """A field's type and bounds in words."""
    kind = _kind(field.annotation)
    bounds = []
    for bound in field.metadata:
        match bound:
            case Ge(ge=value):
                bounds.append(f"≥ {value}")
            case Gt(gt=value):
                bounds.append(f"> {value}")
            case Le(le=value):
                bounds.append(f"≤ {value}")
            case Lt(lt=4294967296):  # seeds
                bounds.append("< 2³²")
            case Lt(lt=value):
                bounds.append(f"< {value}")
            case MinLen(min_length=1):
                bounds.append("not empty")
            case _ if (pattern := getattr(bound, "pattern", None)) is not None:
                bounds.append(f"`{pattern}`")
    return ", ".join((kind, *bounds))


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _command(command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    words = [p.metavar or p.name.upper() for p in arguments]
    words += [f"{p.opts[0]} {p.metavar or p.opts[0].lstrip('-').upper()}" for p in options if p.required]
    text, *examples = re.split(r"\nExamples?: ", command.help)
    parts = [
        f"### tokenclean {command.name} {{ #{command.name} }}",
        f"```text\ntokenclean {' '.join((command.name, *words))} [options]\n```",
    ]
    parts.append(_paragraphs(text))
    if examples:
        lines = [" ".join(example.split()) for example in examples[0].split("\n\n")]
        parts.append("```bash\n" + "\n".join(lines) + "\n```")
    if arguments:
        rows = [(f"`{p.metavar or p.name.upper()}`", _one_line(p.help or "")) for p in arguments]
        parts.append(table(("Argument", "Meaning"), rows))
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(option.rich_help_panel or "Options", []).append(option)
    for panel, members in panels.items():
        rows = [
            (" ".join(f"`{name}`" for name in p.opts), _option_kind(p), _option_default(p), _one_line(p.help or ""))
            for p in members
        ]
        parts.append(table((panel, "Value", "Default", "Meaning"), rows))
    return "\n\n".join(parts)


def _option_kind(option: Any) -> str:
    if option.is_flag:
        return "–"
    if option.metavar:
        return f"`{option.metavar}`"
    return _kind(option.type_descriptor.annotation)


def _option_default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag or option.default in (None, ()):
        return "–"
    return _shown(option.default)


def _kind(kind: Any) -> str:
    if kind in (Names, Limits):
        return "mapping"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(part) for part in inner if part is not type(None))
    if origin is tuple:
        if get_origin(inner[0]) is tuple:  # pairs of a mapping
            return "mapping"
        return "list of " + _kind(inner[0])
    if origin is typing.Annotated:
        return _kind(inner[0])
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    if kind in names:
        return names[kind]
    if isinstance(kind, type) and issubclass(kind, Section):
        like = next(path for path in all_sections() if section_at(path) is kind)
        return f"keys as of `{like}`" if kind is ServedModel else f"path, or keys as of `{like}`"
    return str(kind)


def _section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, alone, in a list or optionally."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _is_text_too(field: FieldInfo) -> bool:
    """Whether a text may stand in place of the section that the field holds."""
    return str in get_args(field.annotation)


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "`{}`" if kind_of(field) == "mapping" else _shown(field.default)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if value is True or value is False:
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`" if value else "`[]`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`"


def _preset(name: str) -> dict[str, Any]:
    text = (resources.files("tokenclean") / "data" / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, _joined(path, key))
        else:
            yield _joined(path, key), value


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _anchor(path: str) -> str:
    return path.replace(".", "")


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _paragraphs(text: str) -> str:
    return "\n\n".join(_one_line(part) for part in text.strip().split("\n\n"))
