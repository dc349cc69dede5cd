"""Pages that stand alone: one HTML file, which works from disk and may load nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tokenclean.errors import MissingExtraError
from tokenclean.store import atomic_path

_TEMPLATES = resources.files("tokenclean.report") / "templates"


def render(
    name: str,
    what: str,
    *,
    style: str,
    script: str = "",
    inline_styles: bool = False,
    raw: Mapping[str, str] | None = None,
    **values: Any,
) -> str:
    """The template ``name`` with ``values``, which are escaped, and ``raw`` ones, which are not.

    ``script`` and ``style``: names of templates; the page's policy lets it run these alone, and load nothing.
    ``inline_styles``: style attributes, which plots have, are allowed. Raises MissingExtraError, for ``what``, without
    jinja2.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", what) from error
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    texts = {"style": _template(style), "script": _template(script) if script else ""}
    return environment.from_string(_template(name)).render(
        policy=_policy(**texts, inline_styles=inline_styles),
        style=Markup(texts["style"]),
        script=Markup(texts["script"]),
        **{name: Markup(text) for name, text in (raw or {}).items()},
        **values,
    )


def write_text(page: str, path: Path | str) -> None:
    """Write the page, whole or not at all. Raises RunFolderError where the file cannot be written."""
    with atomic_path(path) as temporary:
        # A name that is no UTF-8 holds lone surrogates; with a backslash they are JSON's escapes.
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))


def _policy(style: str, script: str, *, inline_styles: bool) -> str:
    own = [f"style-src-elem {_hash(style)}", f"style-src {_hash(style)}"]
    own += ["style-src-attr 'unsafe-inline'"] if inline_styles else []
    own += [f"script-src {_hash(script)}"] if script else []
    return "; ".join(["default-src 'none'", *own, "img-src data:", "base-uri 'none'", "form-action 'none'"])


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
