"""The token viewer: one HTML file with everything in it, which works from disk and asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path

from tokenclean.errors import MissingExtraError
from tokenclean.report.viewer_data import View, page_data
from tokenclean.store import atomic_path

_TEMPLATES = resources.files("tokenclean.report") / "templates"


def write_page(view: View, path: Path | str, *, title: str, proportion: float | None = None) -> None:
    """Write the page that shows a view. ``proportion``: where its slider starts, by default at the table's labels.

    Raises MissingExtraError without jinja2, RunFolderError where the file cannot be written.
    """
    page = render_page(view, title=title, proportion=proportion)
    with atomic_path(path) as temporary:
        # A name that is no UTF-8 holds lone surrogates; with a backslash they are JSON's escapes.
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))


def render_page(view: View, *, title: str, proportion: float | None = None) -> str:
    """The page as text. Its policy lets it run its own script and style alone, and load nothing."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "the token viewer") from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    style, script = _template("viewer.css"), _template("viewer.js")
    return environment.from_string(_template("viewer.html.j2")).render(
        title=title,
        tables=[{"name": table.name, "has_slider": table.ranks_R is not None} for table in view.tables],
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(script_json(page_data(view, proportion=proportion))),
    )


def script_json(value: object) -> str:
    """JSON that a ``<script>`` element holds as it is, whatever its texts say: no ``<`` in it ends the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(style: str, script: str) -> str:
    allowed = {"script-src": script, "style-src": style}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in allowed.items()}
    own = "; ".join(f"{name} 'sha256-{digest}'" for name, digest in hashes.items())
    return f"default-src 'none'; {own}; img-src data:; base-uri 'none'; form-action 'none'"


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
