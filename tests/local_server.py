"""A local HTTP server that fails on request, and records what it was asked."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    """``number``: from 1, in the order of arrival. ``text``: what was asked; of a GET it is empty."""

    number: int
    path: str
    authorization: str | None
    body: dict[str, Any]
    text: str
    time: float


@dataclass(frozen=True)
class Reply:
    """``content``, put into the server's form, or the raw ``body``. ``drops``: hang up without a word. ``is_cut``: hang
    up in the middle of the body."""

    content: Any = None
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    drops: bool = False
    is_cut: bool = False


class LocalServer:
    """``requests``: all that came in. ``most_at_once``: how many were under way at a time."""

    def __init__(self, reply: Callable[[Request], Reply]) -> None:
        self.reply = reply
        self.requests: list[Request] = []
        self.most_at_once = self._now = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that gave up
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def serving(self) -> Iterator[Self]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.stopping.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def enter(self, path: str, authorization: str | None, body: dict[str, Any]) -> Request:
        with self._lock:
            text = self.text_of(body) if body else ""
            request = Request(len(self.requests) + 1, path, authorization, body, text, time.monotonic())
            self.requests.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        return request

    def text_of(self, body: dict[str, Any]) -> str:
        """What a request asks."""
        return json.dumps(body)

    def written(self, content: Any) -> str:
        """The body of a reply with this content."""
        return json.dumps(content)

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                request = server.enter(self.path, self.headers.get("Authorization"), body)
                try:
                    reply = server.reply(request)
                    server.stopping.wait(reply.delay_seconds)
                finally:
                    server.leave()
                self._send(reply)

            def _send(self, reply: Reply) -> None:
                content = server.written(reply.content) if reply.body is None else reply.body
                data = content.encode()
                if reply.drops:
                    self._hang_up()
                    return
                self.send_response(reply.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if reply.is_cut else data)
                if reply.is_cut:
                    self._hang_up()

            def _hang_up(self) -> None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
