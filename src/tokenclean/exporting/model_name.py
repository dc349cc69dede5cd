"""A model as the user named it, for a card and for a trainer's configuration."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class ModelName:
    """``name``: Hub id or local path. ``revision``: branch, tag or commit; None for the default one."""

    name: str
    revision: str | None = None

    def seen_from(self, folder: Path) -> str:
        """The name for a configuration that is used inside ``folder``: a relative path for a local model."""
        if Path(self.name).is_absolute() or not Path(self.name).exists():
            return self.name
        return os.path.relpath(self.name, folder)


def public_name(name: str) -> str:
    """A model's or file's name without the folders of this machine; Hub ids and URLs are unchanged."""
    path = name.replace("\\", "/").removeprefix("file://")
    is_local = path.startswith(("/", "~", "./", "../")) or re.match(r"[A-Za-z]:/", path)
    return (PurePosixPath(path).name or path) if is_local else name
