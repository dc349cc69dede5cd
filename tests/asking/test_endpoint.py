"""A rater behind a server that misbehaves in every way that servers do."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from rating_server import GOOD, RatingServer, Reply, Request, conversations, questions_about
from tokenclean.asking.endpoint import Endpoint, ask_endpoint
from tokenclean.asking.questions import AskedModel, Outcome, estimate_cost
from tokenclean.asking.settings import EndpointSettings, Sampling
from tokenclean.ds2.rating_prompt import Rating, rating_questions
from tokenclean.errors import ModelError, RecipeError, RunError, RunFolderError, TokencleanError
from tokenclean.servers.answer_cache import ANSWERS, open_cache, read_answers
from tokenclean.servers.client import pause_of

RATING = Rating(rarity=3, complexity=4, informativeness=5, overall=7)
KEY = "sk-test-0123456789-abcdef"
VARIABLE = "RATER_KEY"
QUICK = {"key_variable": VARIABLE, "concurrency": 4, "timeout": 5, "tries": 4}


def quick(url: str, **settings) -> Endpoint:
    return Endpoint(url, EndpointSettings(**QUICK | settings), first_wait_seconds=0.01, longest_wait_seconds=0.02)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve():
    """A function that starts a server; all are stopped in the end."""
    running = []

    def start(reply=lambda request: Reply()) -> RatingServer:
        manager = RatingServer(reply).serving()
        running.append(manager)
        return manager.__enter__()

    yield start
    for manager in running:
        manager.__exit__(None, None, None)


def rate(
    server: RatingServer, folder: Path, count: int = 6, *, attempts: int = 3, sampling=None, **settings
) -> Outcome[Rating]:
    questions = questions_about(count, sampling=sampling)
    with open_cache(folder) as cache:
        return ask_endpoint(questions, quick(server.url, **settings), cache, attempts=attempts)


def first_time_each(fault: Reply):
    """Every question meets the fault first."""
    seen: set[str] = set()

    def reply(request: Request) -> Reply:
        if request.text in seen:
            return Reply()
        seen.add(request.text)
        return fault

    return reply


def test_every_row_is_asked_once_with_the_papers_sampling(serve, tmp_path):
    server = serve()
    run = rate(server, tmp_path)
    assert run.answers == (RATING,) * 6
    assert (run.asked, run.found, run.refused, run.prompt_tokens, run.output_tokens) == (6, 0, 0, 600, 60)
    assert len(server.requests) == len({r.text for r in server.requests}) == 6
    request = server.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.authorization == f"Bearer {KEY}"
    assert request.body.keys() == {"model", "messages", "temperature", "top_p", "max_tokens"}
    settings = [request.body[name] for name in ("model", "temperature", "top_p", "max_tokens")]
    assert settings == ["some-model", 1.2, 0.9, 128]


def test_settings_of_the_server_are_left_to_it(serve, tmp_path):
    server = serve()
    sampling = Sampling(temperature=None, top_p=None, top_k=50, max_tokens=99, seed=3)
    rate(server, tmp_path, 1, sampling=sampling, tokens_parameter="max_completion_tokens")
    body = server.requests[0].body
    assert body.keys() == {"model", "messages", "top_k", "seed", "max_completion_tokens"}
    assert (body["top_k"], body["seed"], body["max_completion_tokens"]) == (50, 3, 99)


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=500, body="internal error"),
        Reply(status=503, body='{"error": {"message": "overloaded"}}'),
        Reply(status=429, body='{"error": "slow down"}'),
        Reply(drops=True),
        Reply(is_cut=True),
        Reply(body="<html>a proxy's page</html>"),
        Reply(body='{"choices": [{"message": {"conte'),
        Reply(body='{"choices": []}'),
        Reply(body='{"error": {"message": "the model is away"}}'),
        Reply(delay_seconds=20.0),
    ],
    ids=["500", "503", "429", "dropped", "cut", "html", "half JSON", "no choice", "error with 200", "slow"],
)
def test_a_request_that_fails_is_sent_again(fault, serve, tmp_path):
    server = serve(first_time_each(fault))
    run = rate(server, tmp_path, 3, timeout=1 if fault.delay_seconds else 5)
    assert run.answers == (RATING,) * 3
    assert run.asked == 3  # a failure is no answer
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Reply(status=500, body="internal error"), "the last: 500 internal error"),
        (Reply(drops=True), "the last: "),
        (Reply(body="<html>"), "200, but not in the form of a chat completion: <html>"),
    ],
)
def test_a_server_that_never_answers_ends_the_rating_after_the_last_try(fault, words, serve, tmp_path):
    server = serve(lambda request: fault)
    with pytest.raises(RunError) as error:
        rate(server, tmp_path, 1)
    assert "gave no answer in 4 tries" in str(error.value)
    assert words in str(error.value)
    assert f"kept in {tmp_path}" in str(error.value)
    assert len(server.requests) == 4


def test_nobody_listens(tmp_path):
    questions = questions_about(1)
    with open_cache(tmp_path) as cache, pytest.raises(RunError, match=r"in 2 tries, the last: .*onnect"):
        ask_endpoint(questions, quick("http://127.0.0.1:9/v1", tries=2), cache)


def test_the_pause_that_a_server_asks_for_holds_back_all_requests(serve, tmp_path):
    reported: list[float] = []

    def reply(request: Request) -> Reply:
        if not reported:
            reported.append(time.monotonic())
            return Reply(status=429, headers={"Retry-After": "0.4"})
        return Reply()

    server = serve(reply)
    rate(server, tmp_path, 12, concurrency=2)
    later = [r.time - reported[0] for r in server.requests if r.time > reported[0] + 0.1]
    assert len(server.requests) == 13
    assert len(later) >= 6
    assert min(later) >= 0.39


def test_a_pause_of_hours_is_not_sat_out(serve, tmp_path):
    server = serve(lambda request: Reply(status=429, headers={"Retry-After": "7200"}))
    with pytest.raises(RunError, match="asks to wait 7,200 s; repeat the same command after that"):
        rate(server, tmp_path, 1)


def test_a_pause_may_be_given_as_a_date():
    assert 58 < pause_of(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert pause_of(formatdate(time.time() - 60, usegmt=True)) == 0
    assert pause_of("3") == 3
    for other in ("", "-3", "soon", "nan", "inf"):
        assert pause_of(other) == 0


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "{}", "refuses with 401; the environment variable RATER_KEY holds a key that it does not accept"),
        (403, '{"error": {"message": "not in your country"}}', "403: not in your country; check the account"),
        (404, '{"error": {"message": "no such model"}}', r"404: no such model; check the URL .* 'some-model'"),
        (400, '{"error": {"message": "too long"}}', r"400: too long; asked about pool\.jsonl:1 \(pool:1:0+\)"),
        (307, "", "it redirects to another address; use that one"),
        (429, '{"error": {"message": "no money", "code": "insufficient_quota"}}', "429: no money; check the account"),
    ],
)
def test_a_refusal_ends_the_rating_at_once(status, body, words, serve, tmp_path):
    server = serve(lambda request: Reply(status=status, body=body))
    with pytest.raises(ModelError, match=words):
        rate(server, tmp_path, 8, concurrency=1)
    assert len(server.requests) == 1


def test_without_a_key_none_is_sent_and_a_refusal_says_so(serve, tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    server = serve()
    rate(server, tmp_path / "local", 1)
    assert server.requests[0].authorization is None
    server.reply = lambda request: Reply(status=401)
    with pytest.raises(ModelError, match="RATER_KEY is not set; set it, or name another"):
        rate(server, tmp_path / "far", 1)


def test_rows_that_the_server_refuses_can_be_marked(serve, tmp_path, caplog):
    def reply(request: Request) -> Reply:
        return Reply(status=400, body='{"error": "filtered"}') if "Question 2?" in request.text else Reply()

    server = serve(reply)
    run = rate(server, tmp_path, 4, mark_refused=True)
    assert run.answers == (RATING, RATING, None, RATING)
    assert run.refused == 1
    assert "1 questions have no answer; the last refusal: " in caplog.text
    again = rate(server, tmp_path, 4, mark_refused=True)  # no answer was kept, so it is asked again
    assert (again.asked, again.found, again.refused) == (0, 3, 1)
    server.reply = lambda request: Reply(status=400, body='{"error": "unknown setting"}')
    with pytest.raises(ModelError, match="unknown setting"):
        rate(server, tmp_path / "other", 4, mark_refused=True)


@pytest.mark.parametrize("content", [f"Sure!\n```json\n{GOOD}\n```\nBye {{}}.", f"My rating: {GOOD}"])
def test_prose_around_the_json_is_passed_over(content, serve, tmp_path):
    server = serve(lambda request: Reply(content))
    assert rate(server, tmp_path, 2).answers == (RATING,) * 2
    assert len(server.requests) == 2


@pytest.mark.parametrize("content", [GOOD[:40], "I cannot rate this.", "", None, ["parts"], GOOD.replace("7", "70")])
def test_an_unreadable_answer_is_asked_for_again_so_often_and_then_marked(content, serve, tmp_path):
    server = serve(lambda request: Reply(content))
    run = rate(server, tmp_path, 3, attempts=2)
    assert run.answers == (None,) * 3
    assert (run.asked, len(server.requests)) == (6, 6)
    again = rate(server, tmp_path, 3, attempts=2)
    assert (again.asked, again.found, len(server.requests)) == (0, 3, 6)
    server.reply = lambda request: Reply()  # a further attempt goes on where the others ended
    further = rate(server, tmp_path, 3, attempts=3)
    assert (further.asked, further.answers) == (3, (RATING,) * 3)


def test_a_second_attempt_can_be_read(serve, tmp_path):
    server = serve(first_time_each(Reply(GOOD[:-5])))
    run = rate(server, tmp_path, 3)
    assert run.answers == (RATING,) * 3
    assert run.asked == 6


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_are_under_way_than_allowed(concurrency, serve, tmp_path):
    server = serve(lambda request: Reply(delay_seconds=0.05))
    rate(server, tmp_path, 9, concurrency=concurrency)
    assert server.most_at_once == concurrency


def test_requests_are_spaced_to_so_many_a_minute(serve, tmp_path):
    server = serve()
    rate(server, tmp_path, 8, requests_per_minute=1200)
    times = sorted(request.time for request in server.requests)
    assert times[-1] - times[0] >= 7 * 0.05 - 0.03


def test_rows_of_one_text_are_rated_one_by_one(serve, tmp_path):
    rows = [replace(row, turns=conversations(1)[0].turns) for row in conversations(3)]
    server = serve()
    questions = rating_questions(rows, AskedModel("some-model"))
    assert len({question.key for question in questions.items}) == 3
    with open_cache(tmp_path) as cache:
        assert ask_endpoint(questions, quick(server.url), cache).asked == 3
    turned = rating_questions(rows[::-1], AskedModel("some-model"))
    assert turned.items == questions.items


def test_another_model_or_sampling_is_asked_anew(serve, tmp_path):
    rows = conversations(1)
    models = [
        AskedModel("a"),
        AskedModel("b"),
        AskedModel("a", Sampling(temperature=0)),
        AskedModel("a", shorten=lambda text: text[:5]),
        AskedModel("a", identity="weights"),
    ]
    keys = [rating_questions(rows, model).items[0].key for model in models]
    assert len(set(keys)) == len(keys)
    assert rating_questions(rows, AskedModel("a")).items[0].key == keys[0]


RATE_FOREVER = """
import sys
from rating_server import questions_about
from tokenclean.servers.answer_cache import open_cache
from tokenclean.asking.endpoint import Endpoint, ask_endpoint
from tokenclean.asking.settings import EndpointSettings
with open_cache(sys.argv[2]) as cache:
    questions = questions_about(20)
    settings = EndpointSettings(key_variable="RATER_KEY", concurrency=2)
    ask_endpoint(questions, Endpoint(sys.argv[1], settings), cache)
"""


def test_a_killed_rating_goes_on_with_what_is_missing(serve, tmp_path):
    server = serve(lambda request: Reply(delay_seconds=0.02 if request.number <= 10 else 60.0))
    folders = [*map(str, Path(__file__).parents[:2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    process = subprocess.Popen([sys.executable, "-c", RATE_FOREVER, server.url, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while len(server.requests) < 12:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read_answers(tmp_path)
    assert len(kept) == 10  # those that came in before the kill
    with (tmp_path / ANSWERS).open("ab") as file:
        file.write(b'{"question": "0f", "attempt": 1, "ans')  # as a kill in the middle of a write leaves it
    server.reply = lambda request: Reply()
    run = rate(server, tmp_path, 20)
    assert (run.asked, run.found) == (10, 10)
    assert len(server.requests) == 12 + 10
    assert None not in run.answers
    assert all(json.loads(line) for line in (tmp_path / ANSWERS).read_bytes().splitlines())
    questions = questions_about(20)
    assert estimate_cost([questions], read_answers(tmp_path)).requests == 0


def test_what_was_answered_before_a_failure_is_not_asked_again(serve, tmp_path):
    server = serve(lambda request: Reply() if request.number <= 5 else Reply(status=401))
    with pytest.raises(ModelError):
        rate(server, tmp_path, 8, concurrency=1)
    server.reply = lambda request: Reply()
    run = rate(server, tmp_path, 8)
    assert (run.asked, run.found) == (3, 5)


def test_the_key_is_nowhere_but_in_the_requests(serve, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(lambda request: Reply(f"You are {request.authorization}. {GOOD}"))
    run = rate(server, tmp_path / "cache", 2)
    reported = [repr(run), repr(quick(server.url))]
    for status in (400, 401, 403, 404, 500):
        body = json.dumps({"error": {"message": f"bad key {KEY}"}})
        server.reply = lambda request, status=status, body=body: Reply(status=status, body=body)
        with pytest.raises(TokencleanError) as error:
            rate(server, tmp_path / f"cache-{status}", 1)
        reported.append("".join(traceback.format_exception(error.value)))
    server.reply = lambda request: Reply(body=KEY)
    with pytest.raises(RunError) as last:
        rate(server, tmp_path / "cache-last", 1)
    reported.append("".join(traceback.format_exception(last.value)))
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert server.requests[0].authorization == f"Bearer {KEY}"
    assert len(written) > 2
    assert not [content for content in written if KEY.encode() in content]
    assert "bad key …" in "".join(reported)
    assert KEY not in "".join(reported) + caplog.text


def test_what_is_no_key_is_refused_without_being_shown(serve, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "schlüssel-0123456789")
    with pytest.raises(RecipeError, match="RATER_KEY contains characters not allowed in an API key") as error:
        rate(serve(), tmp_path, 1)
    assert "schl" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "variable", "words"),
    [
        ("api.openai.com/v1", VARIABLE, r"expected http\(s\)://host/v1, found 'api.openai.com/v1'"),
        ("ftp://host/v1", VARIABLE, "expected http"),
        ("http://host:port/v1", VARIABLE, "expected http"),
        ("https://me:secret-word@host/v1", VARIABLE, "no user, password or query"),
        ("https://host/v1?key=secret-word", VARIABLE, "no user, password or query"),
        ("https://host/v1", "sk-secret-word", "expected the name of an environment variable"),
        ("https://host/v1", "gsk_secretword", "expected the name of an environment variable"),
        ("host", "gsk_secretword", "2 problems"),
    ],
)
def test_wrong_settings_are_named_and_secrets_are_not(url, variable, words):
    with pytest.raises(RecipeError, match=words) as error:
        Endpoint(url, EndpointSettings(key_variable=variable))
    assert "secret" not in str(error.value)


def test_settings_have_bounds():
    with pytest.raises(ValueError, match="4 validation errors"):
        Sampling(temperature=-1, top_p=0, top_k=0, max_tokens=0)
    with pytest.raises(ValueError, match="4 validation errors"):
        EndpointSettings(concurrency=0, tries=0, requests_per_minute=0, timeout=0)


def test_the_address_may_be_given_whole():
    for url in ("https://host/v1", "https://host/v1/", "https://host/v1/chat/completions"):
        assert Endpoint(url).address == "https://host/v1/chat/completions"


def test_the_cost_is_estimated_before_anything_is_sent(tmp_path):
    questions = questions_about(10, sampling=Sampling(max_tokens=100))
    characters = [len(questions.prompt(row).text) for row in range(10)]
    assert [question.prompt_tokens for question in questions.items] == [-(-n // 4) for n in characters]
    prompt_tokens = sum(question.prompt_tokens for question in questions.items)
    estimate = estimate_cost([questions], {}, attempts=3, price_in=2.0, price_out=8.0)
    assert (estimate.requests, estimate.most_requests) == (10, 30)
    assert (estimate.prompt_tokens, estimate.output_tokens) == (prompt_tokens, 1000)
    assert estimate.money == pytest.approx((prompt_tokens * 2 + 1000 * 8) / 1e6)
    assert estimate.most_money == pytest.approx(3 * (prompt_tokens * 2 + 1000 * 8) / 1e6)
    assert estimate_cost([questions], {}).money is None
    assert estimate_cost([questions, questions], {}) == estimate_cost([questions], {})  # the same ones are asked once
    counted = rating_questions(conversations(10), AskedModel("some-model", count_tokens=lambda text: 7))
    assert estimate_cost([counted], {}).prompt_tokens == 70


def test_the_estimate_leaves_out_what_is_answered():
    questions = questions_about(3)
    keys = [question.key for question in questions.items]
    answers = {(keys[0], 1): GOOD, (keys[1], 1): "?", (keys[1], 2): "?", (keys[2], 1): "?"}
    assert [questions.known(number, answers, 2)[1] for number in range(3)] == [1, 2, 1]
    estimate = estimate_cost([questions], answers, attempts=2)
    assert (estimate.requests, estimate.most_requests) == (1, 1)
    assert estimate.prompt_tokens == questions.items[2].prompt_tokens


def test_a_cache_is_held_by_one_process_and_is_no_other_file(tmp_path):
    with (
        open_cache(tmp_path / "a"),
        pytest.raises(RunFolderError, match="in use by process"),
        open_cache(tmp_path / "a"),
    ):
        pass
    (tmp_path / "b").mkdir()
    for content in (b"something else", b'{"id": 1}\n'):
        (tmp_path / "b" / ANSWERS).write_bytes(content)
        with pytest.raises(RunFolderError, match="not a cache of answers"), open_cache(tmp_path / "b"):
            pass
        assert (tmp_path / "b" / ANSWERS).read_bytes() == content
    assert read_answers(tmp_path / "none") == {}
    assert not (tmp_path / "none").exists()


def test_a_cache_survives_any_torn_end(tmp_path):
    with open_cache(tmp_path) as cache:
        cache.add("q", 1, "first \ud800", row="a")
        cache.add("q", 2, "second")
    path = tmp_path / ANSWERS
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1, len(whole)]:
        path.write_bytes(whole[:length])
        with open_cache(tmp_path) as cache:
            kept = dict(cache.answers)
            cache.add("q", 3, "third")
        assert kept in ({}, {("q", 1): "first \ud800"}, {("q", 1): "first \ud800", ("q", 2): "second"})
        assert read_answers(tmp_path) == {**kept, ("q", 3): "third"}
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_broken_line_in_a_cache_is_skipped_with_a_warning(tmp_path, caplog):
    with open_cache(tmp_path) as cache:
        cache.add("q", 1, "first")
    with (tmp_path / ANSWERS).open("ab") as file:
        file.write(b"\x00\xff\n[]\n")
    with open_cache(tmp_path) as cache:
        cache.add("q", 2, "second")
    assert read_answers(tmp_path) == {("q", 1): "first", ("q", 2): "second"}
    assert "2 lines hold no answer and are skipped, the first is 3" in caplog.text
