"""Pages in a browser, which may ask the network for nothing.

It needs Playwright's Python package and a Chromium on the machine (Debian's ``chromium``; TOKENCLEAN_CHROMIUM names
another). TOKENCLEAN_AXE names axe-core's ``axe.min.js`` for the tests of accessibility.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens a file (with a fragment) in a new window of that size and colour scheme; nothing may be
    asked of the network and nothing said on the console by the end of the test."""
    contexts: list[Any] = []
    faults: list[str] = []

    def opened(path: Path, fragment: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        own = path.as_uri()
        page.on(
            "request",
            lambda request: request.url.split("#")[0] in (own, "data:,") or faults.append(f"request: {request.url}"),
        )
        page.goto(own + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def serious_faults() -> Callable[[Any], list[str]]:
    """A function that gives what axe-core finds wrong on a page, serious and critical; skips where it is not there."""
    place = os.environ.get("TOKENCLEAN_AXE")
    if not place:
        pytest.skip("TOKENCLEAN_AXE names no axe.min.js (npm pack axe-core)")
    script = Path(place).read_text(encoding="utf-8")

    def found(page: Any) -> list[str]:
        if not page.evaluate("typeof axe === 'object'"):
            page.evaluate(script)
        violations = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            f"{fault['id']}: {node['html'][:200]} {node['failureSummary']}"
            for fault in violations
            for node in fault["nodes"]
            if fault["impact"] in ("serious", "critical")
        ]

    return found
