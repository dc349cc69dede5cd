"""``tokenclean critic``: what it prints before it sends anything, what it writes, what stops it, and how it resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rating_server import RatingServer, Reply, Request
from tokenclean.pool import load_pool
from tokenclean.review.decisions import Signature, SpanDecision
from tokenclean.review.review_file import append_decisions

KEY = "sk-test-0123456789-abcdef"
_NUMBERED = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)


def answer(request: Request, is_wrong: Callable[[str], bool]) -> Reply:
    """Names the listed sentences that are wrong."""
    listed = _NUMBERED.findall(request.text.split("The sentences of its answers:")[1])
    wrong = [{"number": int(number), "reason": "no such thing"} for number, text in listed if is_wrong(text)]
    return Reply(f"<think>Hm {{}}.</think>\n```json\n{json.dumps({'wrong': wrong})}\n```")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    rows = [{"instruction": f"Question {n}?", "output": f"Answer {n} is here. It is known well."} for n in range(30)]
    rows[3]["output"] = "Bad one. Good one. Good one indeed."
    rows[4]["output"] = "Bad one. Bad two. Good one."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RatingServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with RatingServer(lambda request: answer(request, lambda text: "Bad" in text)).serving() as server:
        yield server


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tokenclean", "critic", *map(str, arguments), "-o", str(folder / "critic.jsonl")]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "critic.jsonl").read_text(encoding="utf-8").splitlines()]


def test_costs_first_then_every_row_is_in_the_file(pool, server, tmp_path):
    asked = (pool, "--model", "m", "--endpoint", server.url, "--check-rows", 0, "--price-in", 1000, "--max-rows", 10)
    said = run(*asked, folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "10 rows, 20 questions, 0 of them answered before" in said.stdout
    assert "20 requests, at most 60 where answers are unreadable (3 attempts)" in said.stdout
    assert "at the prices given" in said.stdout
    assert "nothing was sent; give --yes" in said.stderr
    assert not server.requests
    assert not (tmp_path / "critic.jsonl").exists()
    said = run(*asked, "--yes", folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "the critic is not checked" in said.stderr
    assert "30 rows; of 22 sentences 3 named in both readings and 0 in one" in said.stdout
    assert "1 rows dropped whole" in said.stdout
    assert "20 rows kept whole: not asked about" in said.stdout
    assert "2,000 prompt tokens and 200 answer tokens, 2.00 at the prices given" in said.stdout
    rows = written(tmp_path)
    assert [row["id"] for row in rows] == [row.id for row in load_pool(pool)]
    assert rows[3]["spans"] == [{"message": 1, "start": 0, "end": 8, "weight": 0.0}]
    assert rows[3]["named"] == [{"message": 1, "start": 0, "end": 8, "times": 2, "reason": "no such thing"}]
    assert (rows[4]["state"], rows[4]["dropped"]) == ("dropped", True)
    assert rows[4]["spans"] == [{"message": 1, "start": 0, "end": 28, "weight": 0.0}]
    assert all(not row["spans"] and row["state"] == "not_asked" for row in rows[10:])
    facts = json.loads((tmp_path / "critic.facts.json").read_text(encoding="utf-8"))
    assert (facts["model"], facts["check"], facts["sampling"]["temperature"]) == ("m", None, 0.7)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    again = run(*asked, folder=tmp_path)  # nothing left to pay for
    assert "0 answers came in, 20 questions needed none" in again.stdout
    assert len(server.requests) == 20


def test_a_critic_that_names_only_good_sentences_is_stopped_before_the_pool(pool, server, tmp_path):
    server.reply = lambda request: answer(request, lambda text: text.startswith("It is known"))
    asked = (pool, "--model", "m", "--endpoint", server.url, "--yes", "--check-rows", 20)
    said = run(*asked, "--least-precision", 0.9, folder=tmp_path)
    assert said.returncode == 1
    assert re.search(r"--least-precision asks for 90\.0%\. The\s+pool was\s+not read", said.stderr)
    assert "The critic on 20 rows with known faults (planted)" in said.stdout
    assert "Verdict: these figures do not show that it is better than masking at random" in said.stdout
    assert len(server.requests) == 40
    assert not (tmp_path / "critic.jsonl").exists()
    said = run(*asked, folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "40 questions needed none" in said.stdout
    check = json.loads((tmp_path / "critic.facts.json").read_text(encoding="utf-8"))["check"]
    assert check["source"] == "planted"
    assert check["precision"]["share"] < 0.5
    server.reply = lambda request: Reply('{"wrong": []}')
    said = run(pool, "--model", "n", *asked[3:], "--least-precision", 0.1, folder=tmp_path / "other")
    assert (said.returncode, "is not known, since it masks nothing" in said.stderr) == (1, True)


def test_it_is_checked_on_what_people_decided(pool, server, tmp_path):
    rows = load_pool(pool).conversations
    decisions = []
    for number in (3, 4, 5):
        content = rows[number].turns[1].content
        bad = "Bad" in content
        end = 8 if bad else len(content)
        signature = Signature(str(number), "Ann", "2026-11-30T10:00:00Z")
        kind = "drop" if bad else "keep"
        decisions.append(SpanDecision(signature, kind, rows[number].id, "", 1, 0, end, float(not bad), content[:end]))
    append_decisions(tmp_path / "review.jsonl", decisions)
    asked = (pool, "--model", "m", "--endpoint", server.url, "--checked", tmp_path / "review.jsonl")
    said = run(*asked, "--least-precision", 1, folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert re.search(r"precision: bad of the masked +100\.0% .* 2 of 2", said.stdout)
    assert re.search(r"recall: masked of the bad +100\.0% .* 2 of 2", said.stdout)
    assert re.search(r"false alarms: masked of the good +0\.0% .* 0 of 2", said.stdout)
    assert "kappa 1.00" in said.stdout
    assert len(server.requests) == 60  # the rows of the check are rows of the pool, and are not asked about again
    (tmp_path / "none.jsonl").write_text("", encoding="utf-8")
    said = run(*asked[:-1], tmp_path / "none.jsonl", folder=tmp_path)
    assert (said.returncode, "decides no sentence of these rows" in said.stderr) == (2, True)


def test_rows_whose_answers_cannot_be_read_are_kept_counted_and_named(pool, server, tmp_path):
    def reply(request: Request) -> Reply:
        if "Question 2?" in request.text:
            return Reply('{"wrong": [99]}')
        if "Question 6?" in request.text:
            return Reply(status=400, body='{"error": "filtered"}')
        if request.number == 1:
            return Reply(status=503, body="busy")
        return answer(request, lambda text: "Bad" in text)

    server.reply = reply
    with pool.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"instruction": "Long " * 100, "output": "Short."}) + "\n")
        file.write(json.dumps({"instruction": "Draw a line.", "output": "-----"}) + "\n")
        file.write('{"instruction": \n')
    asked = (pool, "--model", "m", "--endpoint", server.url, "--check-rows", 0, "--max-characters", 300)
    said = run(*asked, "--mark-refused", folder=tmp_path)
    assert said.returncode == 0, said.stderr
    rows = written(tmp_path)
    assert len(rows) == 32
    states = {place: row["state"] for place, row in enumerate(rows) if row["state"] not in ("read", "dropped")}
    assert states == {2: "unreadable", 6: "unreadable", 30: "too_long", 31: "no_sentences"}
    assert not any(rows[place]["spans"] for place in states)
    assert "2 rows kept whole: no answer about them could be read" in said.stdout
    assert "1 rows kept whole: too long to be shown" in said.stdout
    assert f"not judged: {rows[2]['id']}, {rows[6]['id']}, {rows[30]['id']}" in said.stderr
    assert "1 rows set aside, listed in" in said.stderr
    said = run(*asked, folder=tmp_path / "strict")
    assert said.returncode == 2
    assert "(mark_refused)" in said.stderr


def test_a_killed_critic_goes_on_with_what_is_missing(pool, server, tmp_path):
    def reply(request: Request) -> Reply:
        found = answer(request, lambda text: "Bad" in text)
        return Reply(found.content, delay_seconds=0.0 if request.number <= 20 else 60.0)

    server.reply = reply
    words = [sys.executable, "-m", "tokenclean", "critic", str(pool), "--model", "m", "--endpoint", server.url]
    words += ["--check-rows", "0", "--concurrency", "2", "-o", str(tmp_path / "critic.jsonl")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(server.requests) < 22:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "critic.jsonl").exists()
    server.reply = lambda request: answer(request, lambda text: "Bad" in text)
    said = run(*words[4:-2], folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "40 answers came in, 20 questions needed none" in said.stdout
    assert len(server.requests) == 22 + 40
    assert [row["state"] for row in written(tmp_path)].count("dropped") == 1


@pytest.mark.slow
def test_a_local_model_that_writes_garbage_masks_nothing(pool, tiny_model_folder, tmp_path):
    options = ("--local", "--max-rows", 3, "--max-tokens", 4, "--attempts", 1, "--device", "cpu", "--check-rows", 2)
    said = run(pool, "--model", tiny_model_folder, *options, folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "Verdict: it masks nothing here" in said.stdout
    assert "3 rows kept whole: no answer about them could be read" in said.stdout
    assert "many answers cannot be read" in said.stderr
    assert not any(row["spans"] for row in written(tmp_path))


@pytest.mark.parametrize("options", [(), ("--local", "--endpoint", "http://host/v1")])
def test_a_critic_is_either_a_server_or_local(options, pool, tmp_path):
    said = run(pool, "--model", "m", *options, folder=tmp_path)
    assert (said.returncode, "name either --endpoint URL" in said.stderr) == (2, True)
