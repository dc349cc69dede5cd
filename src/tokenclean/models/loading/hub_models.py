"""The files of a model: in its folder, or on the Hub and in the Hub's cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypedDict

from tokenclean.errors import ModelError
from tokenclean.hub_reachable import why_unreachable
from tokenclean.redaction import redact


class HubOptions(TypedDict, total=False):
    """Where the Hub's libraries look for a model's files. Empty for a local path."""

    revision: str
    local_files_only: bool


def hub_options(name: str, revision: str | None) -> HubOptions:
    """The options of every library call about ``name``.

    Where the Hub (or the mirror in ``HF_ENDPOINT``) does not answer, only the cache is searched: the libraries would
    try for 23 s for each file, even for those that a model need not have.
    """
    if Path(name).exists():
        return {}
    options: HubOptions = {} if revision is None else {"revision": revision}
    return options if why_unreachable() is None else {**options, "local_files_only": True}


def find_file(name: str, file: str, options: HubOptions) -> Path | None:
    """Path of a model's file, fetched into the cache if need be; None where the model has no such file.

    ``options``: from ``hub_options``. Raises ModelError for a name that is not a Hub id, an unknown repository or
    revision, or one that this user may not read.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if Path(name).is_dir():
        return path if (path := Path(name, file)).is_file() else None
    try:
        return Path(hf_hub_download(name, file, **options))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError) and "local_files_only" not in options:  # the connection broke
            raise not_loadable(name, error) from error
        return None
    except Exception as error:  # the Hub's library and its HTTP library raise many kinds
        raise not_loadable(name, error) from error


def list_files(name: str, options: HubOptions) -> list[str]:
    """Names of all files of a folder or a repository; only the cached ones where the Hub cannot be reached."""
    from huggingface_hub import HfApi

    folder: Path | None = Path(name)
    if not Path(name).is_dir():
        if "local_files_only" not in options:
            try:
                return sorted(HfApi().list_repo_files(name, revision=options.get("revision")))
            except Exception as error:
                raise not_loadable(name, error) from error
        known = (find_file(name, file, options) for file in ("config.json", "adapter_config.json"))
        folder = next((path.parent for path in known if path is not None), None)
    return [] if folder is None else sorted(os.listdir(folder))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a model's file. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(type(content).__name__)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON object, which a configuration must be ({error})") from error
    return content


def not_loadable(name: str, reason: Exception | str) -> ModelError:
    """A ModelError saying in one line, without secrets, why a library could not load ``name``."""
    text = " ".join(redact(str(reason)).split())[:300]
    where = "local" if Path(name).exists() else "not a local folder or file, and not available from the Hub"
    return ModelError(f"cannot load the model {redact(name)!r} ({where}): {text}")
