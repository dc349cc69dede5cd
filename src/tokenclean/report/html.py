"""Self-contained pages: one HTML file each, which works from disk and may load nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from tokenclean.errors import needs_extra
from tokenclean.store import atomic_path

_FILES = resources.files("tokenclean.report")


def render(
    page: str,
    what: str,
    *,
    inline_styles: bool = False,
    scripts_before: Sequence[str] = (),
    asks_its_server: bool = False,
    raw: Mapping[str, str] | None = None,
    **values: object,
) -> str:
    """Fill the template ``page``.html.j2 with ``values``, which are escaped, and ``raw`` ones, which are not.

    ``page``: a path below this package without suffix. The ``.css`` and ``.js`` beside the template are put into the
    page; its policy allows these alone, and nothing to be loaded. ``inline_styles`` allows style attributes, which
    plots have. ``scripts_before``: further scripts by their paths without suffix, each an element before the page's
    own. ``asks_its_server`` allows requests to the server that gave the page out. Raises MissingExtraError, for
    ``what``, without jinja2.
    """
    with needs_extra("jinja2", "report", what):
        import jinja2
        from markupsafe import Markup
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template, style = (_text(page + suffix) for suffix in (".html.j2", ".css"))
    scripts = [script for name in (*scripts_before, page) if (script := _text(f"{name}.js"))]
    return environment.from_string(template).render(
        policy=_policy(style, scripts, inline_styles=inline_styles, asks_its_server=asks_its_server),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        **{name: Markup(text) for name, text in (raw or {}).items()},
        **values,
    )


def write_text(page: str, path: Path | str) -> None:
    """Write the page, whole or not at all. Raises RunFolderError where the file cannot be written."""
    with atomic_path(path) as temporary:
        # A name that is not UTF-8 holds lone surrogates; with a backslash they are JSON's escapes.
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))


def _policy(style: str, scripts: Sequence[str], *, inline_styles: bool, asks_its_server: bool) -> str:
    rules = ["default-src 'none'", f"style-src-elem {_hash(style)}", f"style-src {_hash(style)}"]
    rules += ["style-src-attr 'unsafe-inline'"] if inline_styles else []
    rules += [f"script-src {' '.join(map(_hash, scripts))}"] if scripts else []
    rules += ["connect-src 'self'"] if asks_its_server else []
    return "; ".join([*rules, "img-src data:", "base-uri 'none'", "form-action 'none'"])


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    """The text of a file of this package, empty where there is none."""
    file = _FILES / name
    return file.read_text(encoding="utf-8") if file.is_file() else ""
