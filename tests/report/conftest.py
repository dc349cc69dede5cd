"""Pages in a browser, which may ask the network for nothing.

It needs Playwright's Python package and a Chromium on the machine (Debian's ``chromium``; TOKENCLEAN_CHROMIUM names
another).
"""

from __future__ import annotations

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
