"""The server of a review: who gets in, what it stores, what it refuses."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from reviewing import row, span, undo

from tokenclean.errors import RunFolderError
from tokenclean.review.decisions import to_line
from tokenclean.review.review_file import append_decisions, read_review
from tokenclean.review.server import ReviewServer, listen

ROWS = [row("An answer.", id="row:0:aaa"), row("Sure! An 👍 answer.", id="row:1:bbb", original_id="x")]


@dataclass(frozen=True)
class Asked:
    server: ReviewServer
    port: int

    def __call__(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {"X-Tokenclean-Token": self.server.token if token is None else token, **headers}
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, content, {name.replace("_", "-"): value for name, value in sent.items()})
        answer = connection.getresponse()
        result = answer.status, answer.read().decode(), dict(answer.getheaders())
        connection.close()
        return result

    def post(self, *decisions: Any, start: int = 0) -> tuple[int, dict[str, Any]]:
        values = [json.loads(to_line(one)) if not isinstance(one, dict) else one for one in decisions]
        status, text, _ = self("POST", "/decisions", {"from": start, "decisions": values})
        return status, json.loads(text)


@pytest.fixture
def ask(serve, tmp_path: Path) -> Asked:
    server = ReviewServer("<!doctype html><p>page \ud800", tmp_path / "review.jsonl", ROWS)
    return Asked(server, serve(server))


def test_the_link_opens_the_page_and_nothing_else_does(ask):
    token = ask.server.token
    status, text, headers = ask("GET", f"/?token={token}")
    assert (status, text) == (200, "<!doctype html><p>page \\ud800")
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert ask.server.link(ask.port) == f"http://127.0.0.1:{ask.port}/?token={token}"
    for path in ("/", "/?token=", f"/?token={token}x", "/?token=%F0%9F%98%80", f"/?Token={token}"):
        status, text, _ = ask("GET", path)
        assert (status, "the token is wrong" in text) == (403, True)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Host": "evil.example"}, "another host"),
        ({"Host": "127.0.0.1:1"}, "another host"),
        ({"Origin": "http://evil.example"}, "another site"),
        ({"Origin": "null"}, "another site"),
        ({"Origin": "http://127.0.0.1"}, "another site"),
        ({"token": "wrong"}, "token is wrong"),
        ({"token": ""}, "token is wrong"),
    ],
)
def test_others_are_refused(ask, headers, reason):
    append_decisions(ask.server.path, [span(ROWS[0], 0, 2)])
    before = ask.server.path.read_bytes()
    for method, path, body in (
        ("GET", f"/?token={ask.server.token}" if "token" not in headers else "/?token=wrong", None),
        ("GET", "/decisions", None),
        ("GET", "/agreement", None),
        ("POST", "/decisions", {"from": 0, "decisions": [json.loads(to_line(span(ROWS[0], 0, 2)))]}),
    ):
        status, text, _ = ask(method, path, body, **headers)
        assert (status, reason in text) == (403, True), (method, path)
        assert "row:0" not in text
    assert ask.server.path.read_bytes() == before


def test_own_origins_are_let_in(ask):
    for host in (f"127.0.0.1:{ask.port}", f"localhost:{ask.port}"):
        status, _, headers = ask("GET", "/decisions", Host=host, Origin=f"http://{host}")
        assert status == 200
        assert not any(name.lower().startswith("access-control") for name in headers)


def test_decisions_are_stored_with_the_servers_clock(ask):
    decision = span(ROWS[1], 9, 10, 0.5)
    status, found = ask.post({**json.loads(to_line(decision)), "when": "yesterday"})
    assert status == 200
    [stored] = read_review(ask.server.path).decisions
    assert stored.signature.when.startswith("20")
    assert (stored.start, stored.end, stored.text, stored.original_id) == (9, 10, "👍", "x")
    assert found["lines"] == [to_line(stored)]
    status, later = ask.post(undo(decision), start=found["end"])
    assert len(later["lines"]) == 1
    _, text, _ = ask("GET", f"/decisions?from={found['end']}")
    assert json.loads(text)["lines"] == later["lines"]
    _, text, _ = ask("GET", "/decisions?from=-5")
    assert len(json.loads(text)["lines"]) == 2


def test_what_fits_no_row_is_refused_and_not_stored(ask):
    good = json.loads(to_line(span(ROWS[0], 0, 2)))
    for change, reason in (
        ({"text": "an"}, "its text has changed"),
        ({"id": "row:9:zzz"}, "no row has its id"),
        ({"message": 0}, "no answer"),
        ({"start": 11, "end": 12, "text": ""}, "its text has changed"),
    ):
        status, found = ask.post(good, {**good, **change})
        assert (status, reason in found["error"]) == (409, True), found
    assert not ask.server.path.exists()
    for body in (b"", b"{", b"[]", b'{"from": 0}', b'{"from": "0", "decisions": []}', b"[" * 90_000, b"\xff"):
        assert ask("POST", "/decisions", body)[0] == 400
    assert ask("POST", "/decisions", {"from": 0, "decisions": [7]})[0] == 400
    assert ask("GET", "/review.jsonl")[0] == 404
    assert ask("DELETE", "/decisions")[0] == 405


def test_a_second_server_on_the_same_file_is_seen(ask):
    _, found = ask.post(span(ROWS[0], 0, 10))
    append_decisions(ask.server.path, [span(ROWS[0], 0, 5, who="Bob"), span(ROWS[0], 5, 10, 1.0, who="Bob")])
    _, text, _ = ask("GET", f"/decisions?from={found['end']}")
    assert len(json.loads(text)["lines"]) == 2
    _, text, _ = ask("GET", "/agreement")
    assert json.loads(text)["pairs"] == ["Ann and Bob: agree on 50.0% of 10 characters; Cohen's kappa 0.00"]


def test_a_port_that_is_taken_is_named(ask):
    with pytest.raises(RunFolderError, match=f"--port {ask.port}: "):
        listen(ask.port)
