"""The server of a review: a page and its file of decisions, for browsers on this machine alone.

It has no state but the file. A request has to name this server as its host, come from its own page where the browser
says from where, and carry the token of the link, so that no other site and no other user of the machine gets in.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tokenclean.errors import RunFolderError, needs_extra
from tokenclean.pool.conversation import Conversation
from tokenclean.review.agreement import agreements
from tokenclean.review.decisions import Decision, LineError, PhraseDecision, Undo, decision_of, in_force
from tokenclean.review.placed import place, place_by_person
from tokenclean.review.review_file import append_decisions, read_lines, read_review

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
TOKEN_HEADER = "x-tokenclean-token"

_HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class ReviewServer:
    """``page``: HTML. ``path``: the file of decisions. ``conversations``: the rows that may be decided on. ``token``:
    of the link."""

    page: str
    path: Path
    conversations: Sequence[Conversation]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def link(self, port: int) -> str:
        """What opens the page."""
        return f"http://{HOST}:{port}/?token={self.token}"

    def application(self, port: int) -> ASGIApp:
        """The ASGI application. Raises MissingExtraError without starlette."""
        with needs_extra("starlette", "review", "tokenclean review"):
            from starlette.applications import Starlette
            from starlette.routing import Route
        routes = [
            Route("/", self._page),
            Route("/decisions", self._read),
            Route("/decisions", self._append, methods=["POST"]),
            Route("/agreement", self._agreement),
        ]
        application: Starlette = Starlette(routes=routes)
        return Guard(application, self.token, port)

    def serve(self, listener: socket.socket) -> None:
        """Answer requests until the process is interrupted. Raises MissingExtraError without uvicorn or starlette."""
        with needs_extra("uvicorn", "review", "tokenclean review"):
            import uvicorn
        port = int(listener.getsockname()[1])
        config = uvicorn.Config(
            self.application(port),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[listener])

    @cached_property
    def _row_of(self) -> Mapping[str, int]:
        return {conversation.id: row for row, conversation in enumerate(self.conversations)}

    def _page(self, request: Request) -> Response:
        from starlette.responses import HTMLResponse

        # As in a page on disk: half a surrogate pair is written as JSON's escape.
        return HTMLResponse(self.page.encode("utf-8", "backslashreplace"))

    def _read(self, request: Request) -> Response:
        start = request.query_params.get("from", "0")
        return _json(self._since(int(start) if start.isdecimal() and len(start) < 16 else 0))

    async def _append(self, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        body = await request.body()
        return await run_in_threadpool(self._append_body, body)

    def _append_body(self, body: bytes) -> Response:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            given = json.loads(body)
            start, values = given["from"], given["decisions"]
            if not isinstance(start, int) or not isinstance(values, list):
                raise LineError("expected an object with from (bytes) and decisions (a list)")
            decisions = [decision_of({**one, "when": when}) for one in values]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return _json({"error": f"not a list of decisions: {error}"}, 400)
        for decision in decisions:
            if reason := self._misfit(decision):
                return _json({"error": reason}, 409)
        try:
            append_decisions(self.path, decisions)
        except RunFolderError as error:
            return _json({"error": str(error)}, 503)
        return _json(self._since(max(start, 0)))

    def _misfit(self, decision: Decision) -> str:
        """Why a decision fits no row; empty where it fits."""
        if isinstance(decision, Undo):
            return ""
        rows = self.conversations
        if not isinstance(decision, PhraseDecision):
            row = self._row_of.get(decision.id)
            rows = [] if row is None else rows[row : row + 1]
        return "; ".join(str(unplaced) for unplaced in place([decision], rows).unplaced)

    def _since(self, start: int) -> Mapping[str, object]:
        """The lines from byte ``start`` on; all of them where the file is shorter, in place of what the page has."""
        if not self.path.exists():
            return {"start": 0, "end": 0, "lines": [], "faults": []}
        found = read_lines(self.path, start)
        return {"start": found.start, "end": found.end, "lines": found.lines, "faults": found.faults}

    def _agreement(self, request: Request) -> Response:
        found = []
        if self.path.exists():
            placed = place_by_person(in_force(read_review(self.path).decisions), self.conversations)
            found = [str(pair) for pair in agreements(placed)]
        return _json({"pairs": found})


class Guard:
    """Lets a request through to ``application`` that names this server, comes from its page and has its token."""

    def __init__(self, application: ASGIApp, token: str, port: int) -> None:
        self._application, self._token = application, token.encode()
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import MutableHeaders
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            return
        reason = self._refusal(Request(scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answers = PlainTextResponse(f"{reason}\n", 403) if reason else self._application
        await answers(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> str:
        """Why a request is refused; empty where it is not."""
        if request.headers.get("host") not in self._hosts:
            return "refused: the request names another host; open the link that tokenclean review printed"
        origin = request.headers.get("origin")
        if origin is not None and origin not in self._origins:
            return "refused: the request comes from another site"
        is_page = request.url.path == "/"
        given = request.query_params.get("token", "") if is_page else request.headers.get(TOKEN_HEADER, "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._token):
            return "refused: the token is wrong; open the link that tokenclean review printed last"
        return ""


def listen(port: int) -> socket.socket:
    """A socket that listens on this machine alone. ``port``: 0 for any free one. Raises RunFolderError for a port that
    is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise RunFolderError(f"--port {port}: {error.strerror}; give another, or none for a free one") from error
    return listener


def _json(value: Mapping[str, object], status: int = 200) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status)
