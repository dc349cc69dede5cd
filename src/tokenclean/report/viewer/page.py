"""The token viewer's page: one HTML file with everything in it, which works from disk and loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tokenclean.report.html import render, write_text
from tokenclean.report.viewer.page_data import View, page_data


def write_page(
    view: View,
    path: Path | str,
    *,
    title: str,
    proportion: float | None = None,
    review: Mapping[str, object] | None = None,
) -> None:
    """Write the page that shows a view. ``proportion``: where its slider starts, by default at the table's labels.
    ``review``: as of ``page_data``.

    Raises MissingExtraError without jinja2, RunFolderError where the file cannot be written.
    """
    write_text(render_page(view, title=title, proportion=proportion, review=review), path)


def render_page(
    view: View,
    *,
    title: str,
    proportion: float | None = None,
    review: Mapping[str, object] | None = None,
    is_served: bool = False,
) -> str:
    """The page as text. ``is_served``: a review's server gives it out, and it may send its decisions there."""
    return render(
        "viewer/viewer",
        "the token viewer",
        scripts_before=() if review is None else ("viewer/review",),
        asks_its_server=is_served,
        title=title,
        tables=[{"name": table.name, "has_slider": table.ranks_R is not None} for table in view.tables],
        has_review=review is not None,
        is_served=is_served,
        raw={"data": script_json(page_data(view, proportion=proportion, review=review))},
    )


def script_json(value: object) -> str:
    """JSON for a ``<script>`` element: escaped so that no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
