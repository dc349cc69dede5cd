"""A running server of a review, and its page in a browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tokenclean.review.server import ReviewServer, listen


@contextmanager
def _served(server: ReviewServer) -> Iterator[int]:
    import uvicorn

    listener = listen(0)
    port = int(listener.getsockname()[1])
    running = uvicorn.Server(uvicorn.Config(server.application(port), log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield port
    finally:
        running.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[[ReviewServer], int]]:
    """A function that serves a review until the test's end and gives the port."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(_served(server))


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens an address in a new window and waits until the page is ready; the page may say nothing on
    the console by the end of the test, and ask only the server that gave it out."""
    contexts: list[Any] = []
    faults: list[str] = []

    def opened(address: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        origin = "/".join(address.split("/")[:3])
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith((origin, "data:", "blob:")) or faults.append(request.url),
        )
        page.goto(address)
        page.wait_for_selector("html[data-ready]", state="attached")
        page.wait_for_timeout(150)  # the decisions so far are asked for
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
