"""This machine's cache: converted models, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$TOKENCLEAN_CACHE``, else ``$XDG_CACHE_HOME/tokenclean``, else ``~/.cache/tokenclean``."""
    if named := os.environ.get("TOKENCLEAN_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenclean"
