"""Python code in a model's repository, which transformers would import and run: allowed for models trusted by name.

A configuration names such code in its ``auto_map``: a file of its own folder or repository (``modeling.Model``) or of
another repository (``org/name--modeling.Model``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from tokenclean.errors import ModelError
from tokenclean.models.loading.hub_models import HubOptions, find_file, read_json
from tokenclean.store import file_hash

_USED_CLASSES = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")


def check_code_is_trusted(name: str, options: HubOptions, trusted: Collection[str]) -> None:
    """Raise ModelError where a trusted model's code is in another repository that is not trusted too."""
    for repository in code_repositories(name, options):
        if repository not in trusted:
            raise untrusted_code(repository, f"{name}: its code is in another repository, {repository}")


def code_repositories(name: str, options: HubOptions) -> list[str]:
    """The other repositories whose code the model's configuration and tokenizer name, sorted."""
    references = (
        reference
        for file in ("config.json", "tokenizer_config.json")
        if (path := find_file(name, file, options)) is not None
        for reference in _references(read_json(path).get("auto_map"))
    )
    return sorted({reference.split("--")[0] for reference in references if "--" in reference} - {name})


def code_hashes(folder: Path) -> list[list[str]]:
    """Path within the folder and content hash of every Python file."""
    return [[p.relative_to(folder).as_posix(), file_hash(p)] for p in sorted(folder.rglob("*.py"))]


def asks_for_trust(error: Exception) -> bool:
    """Whether transformers raised ``error`` because it was not allowed to run a model's code."""
    return isinstance(error, ValueError) and "trust_remote_code=True" in str(error)


def untrusted_code(name: str, what: str | None = None) -> ModelError:
    """The error that says how to trust a model's code, by the model's name."""
    what = what or f"{name}: needs code of its own from its repository"
    return ModelError(
        f"{what}, which is never run unasked; read that code, then name it: --trust-remote-code {name} "
        f"or model.trust_remote_code: [{name}]"
    )


def _references(auto_map: object) -> Iterator[str]:
    """The classes that loading would take from an ``auto_map`` (a list in old tokenizers)."""
    if isinstance(auto_map, dict):
        auto_map = [auto_map.get(name) for name in _USED_CLASSES]
    for value in auto_map if isinstance(auto_map, list) else ():
        yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))
