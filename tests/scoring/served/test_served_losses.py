"""Losses from a server, in every form, against the same model's losses here; and servers that fail."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_server import Reply, Request
from model_server import NAME, ModelServer
from tokenclean.errors import ModelError, NonFiniteError, RunError, TokencleanError, TokenizerMismatchError
from tokenclean.executors import Item
from tokenclean.models.loading.load import load_model, load_tokenizer
from tokenclean.pool import load_pool
from tokenclean.ragged import Ragged
from tokenclean.recipe import ServedModel
from tokenclean.scoring import token_losses
from tokenclean.scoring.served.scorer import ServedScorer
from tokenclean.scoring.served.shards import ServedShards
from tokenclean.scoring.stored_losses import hash_tokens, require_losses
from tokenclean.servers.answer_cache import read_answers
from tokenclean.store import SERVED, Store
from tokenclean.tokens import TokenizedPool, tokenize_pool

FORMS = ("vllm", "sglang", "echo")
KEY = "sk-test-0123456789-abcdef"
Serve = Callable[..., ModelServer]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def tokens(small_pool: Path, tiny_model_folder: Path) -> TokenizedPool:
    pool = tokenize_pool(load_pool(small_pool), load_tokenizer(str(tiny_model_folder)), max_length=200)
    return pool.take(np.flatnonzero(pool.is_response.row_sums() > 3)[:8])


@pytest.fixture(scope="module")
def exact(tokens: TokenizedPool, tiny_model_folder: Path) -> Ragged:
    return token_losses(load_model(str(tiny_model_folder)), tokens)


@pytest.fixture
def serve(tiny_model_folder: Path) -> Iterator[Serve]:
    """A function that starts a server; all are stopped in the end."""
    running = []

    def start(form: str, **options: Any) -> ModelServer:
        manager = ModelServer(options.pop("folder", tiny_model_folder), form, **options).serving()
        running.append(manager)
        return manager.__enter__()

    yield start
    for manager in running:
        manager.__exit__(None, None, None)


@pytest.fixture
def scorer_of(tiny_model_folder: Path):
    """A function that gives a scorer on a server, and what it notes."""
    notes: list[str] = []

    def make(server: ModelServer, **settings: Any) -> ServedScorer:
        values = {"url": server.url, "model": NAME, "key_variable": "SERVER_KEY", "timeout": 5, "tries": 3, **settings}
        served = ServedModel.model_validate(values)
        return ServedScorer(served, load_tokenizer(str(tiny_model_folder)), notes.append, first_wait_seconds=0.01)

    make.notes = notes  # pyright: ignore[reportFunctionMemberAccess]
    return make


def rows_of(server: ModelServer, tokens: TokenizedPool) -> list[Request]:
    """Requests about rows, not those that try the server."""
    starts = [tokens.input_ids[row].tolist() for row in range(len(tokens))]
    prompts = [request.body.get("prompt", request.body.get("input_ids")) for request in server.asked]
    rows = [isinstance(p, list) and len(p) > 8 and any(s[: len(p)] == p for s in starts) for p in prompts]
    return [request for request, is_row in zip(server.asked, rows, strict=True) if is_row]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("api", ["auto", "named"])
def test_losses_are_those_of_the_model_itself(form, api, serve, scorer_of, tokens, exact, tmp_path):
    server = serve(form)
    scorer = scorer_of(server, api="auto" if api == "auto" else form)
    losses, policy = scorer.score(tokens, tmp_path)
    np.testing.assert_allclose(losses.values, exact.values, atol=1e-4)
    assert losses.values.dtype == np.float32
    assert np.array_equal(np.isnan(losses.values), ~tokens.is_response.values)
    assert policy["api"] == form
    assert (policy["model"], policy["url"], policy["precision"]) == (NAME, server.url, "served")
    assert f"asked in the form {form}; token ids, checked one by one" in scorer_of.notes[0]
    assert len(rows_of(server, tokens)) == len(tokens)
    assert {request.authorization for request in server.asked} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bos", [None, 0])
def test_texts_to_the_same_tokenizer_give_the_same_losses(form, bos, serve, scorer_of, tokens, exact, tmp_path):
    """Equal tokenizers give the identity; a BOS that the server adds changes what the model sees, not the places."""
    server = serve(form, bos=bos)
    losses, policy = scorer_of(server, align="characters").score(tokens, tmp_path)
    assert policy["alignment"] == "losses shared by characters"
    assert all(isinstance(r.body.get("prompt", r.body.get("text")), str) for r in server.asked if r.path != "/generate")
    if bos is None:
        np.testing.assert_allclose(losses.values, exact.values, atol=1e-4)
        return
    ids, labels = tokens.input_ids[0].tolist(), tokens.is_response[0]
    expected = -np.array([np.nan if p is None else p for p in server.logprobs([bos, *ids])][1:])
    np.testing.assert_allclose(losses[0][labels], expected[labels], atol=1e-4)


def test_the_loss_of_a_text_is_kept_under_another_tokenizer(
    serve, scorer_of, tokens, tiny_model_folder, coarse_model_folder, tmp_path
):
    """The server's tokenizer has other tokens; the sum over a row behind its prompt is what the server gave it."""
    server = serve("vllm", folder=coarse_model_folder)
    scorer = scorer_of(server, align="characters", concurrency=1)
    losses, _ = scorer.score(tokens, tmp_path)
    tokenizer, compared = load_tokenizer(str(tiny_model_folder)), 0
    for row in range(len(tokens)):
        ids, labels = tokens.input_ids[row].tolist(), tokens.is_response[row]
        last = int(np.flatnonzero(labels)[-1]) + 1
        first = int(np.flatnonzero(labels)[0])
        if not labels[first:last].all():
            continue
        compared += 1
        text, prompt = tokenizer.decode(ids[:last]), tokenizer.decode(ids[:first])
        found = server.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans, theirs = found["offset_mapping"], server.logprobs(found["input_ids"])
        # Character by character: the definition.
        of_character = np.zeros(len(text))
        for (start, end), logprob in zip(spans, theirs, strict=True):
            of_character[start:end] = -(logprob or 0.0) / max(end - start, 1)
        assert np.nansum(losses[row]) == pytest.approx(of_character[len(prompt) :].sum(), abs=1e-3)
    assert compared >= 4


@pytest.mark.parametrize("form", FORMS)
def test_another_tokenizer_is_refused_where_ids_are_sent(form, serve, scorer_of, tokens, coarse_model_folder, tmp_path):
    server = serve(form, folder=coarse_model_folder)
    with pytest.raises(TokenizerMismatchError, match=r"another tokenizer than the base.*align: characters"):
        scorer_of(server).score(tokens, tmp_path)
    assert not read_answers(tmp_path)


def test_a_bos_before_texts_is_no_other_tokenizer(serve, scorer_of, tokens, exact, tmp_path):
    losses, _ = scorer_of(serve("vllm", bos=0)).score(tokens, tmp_path)
    np.testing.assert_allclose(losses.values, exact.values, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "options", "words"),
    [
        ("echo", {"gives_ids": False}, "with their ids .*echo: no ids of the tokens.*align: characters"),
        ("sglang", {"lists_models": False}, "sglang: http.*/models does not list the model"),
        ("vllm", {"longest": 20}, "takes 20 tokens, but a row has .*lower tokens.max_length"),
        ("vllm", {"longest": 20, "lists_models": False}, "maximum context length is 20 tokens"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_any_row(form, options, words, serve, scorer_of, tokens, tmp_path):
    server = serve(form, **options)
    with pytest.raises(ModelError, match=words):
        scorer_of(server).score(tokens, tmp_path)
    assert not read_answers(tmp_path)


def test_a_model_that_is_not_served_is_named(serve, scorer_of, tokens, tmp_path):
    with pytest.raises(ModelError, match="serves big-model, not other-model; set model"):
        scorer_of(serve("vllm"), model="other-model").score(tokens, tmp_path)


def test_a_text_too_long_for_the_server_names_the_row(serve, scorer_of, tokens, tmp_path):
    """Behind a server that does not say how much it takes."""

    def spoil(request: Request, answer: Any) -> Reply | None:
        is_long = isinstance(request.body["prompt"], list) and len(request.body["prompt"]) > 100
        return Reply(status=400, body='{"error": {"message": "too long"}}') if is_long else None

    with pytest.raises(ModelError, match=r"too long; asked about the \d+ tokens of row .*lower tokens.max_length"):
        scorer_of(serve("echo", spoil=spoil), api="echo").score(tokens, tmp_path)


def once_for_rows(fault: Callable[[Any], Reply]):
    """Every row meets the fault first."""
    seen: set[str] = set()

    def spoil(request: Request, answer: Any) -> Reply | None:
        if len(request.body.get("prompt", "")) <= 8 or request.text in seen:
            return None
        seen.add(request.text)
        return fault(answer)

    return spoil


def without(answer: Any, key: str) -> Any:
    [choice] = answer["choices"]
    return {**answer, "choices": [{name: value for name, value in choice.items() if name != key}]}


TRANSIENT = {
    "429": lambda answer: Reply(status=429, body="{}"),
    "500": lambda answer: Reply(status=500, body="internal error"),
    "dropped": lambda answer: Reply(drops=True),
    "cut": lambda answer: Reply(answer, is_cut=True),
    "half JSON": lambda answer: Reply(body=json.dumps(answer)[:-30]),
    "no log-probabilities": lambda answer: Reply(without(answer, "prompt_logprobs")),
    "null": lambda answer: Reply({"choices": None}),
    "slow": lambda answer: Reply(answer, delay_seconds=20.0),
}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_request_that_fails_is_sent_again(fault, serve, scorer_of, tokens, exact, tmp_path):
    server = serve("vllm", spoil=once_for_rows(TRANSIENT[fault]))
    rows = [0] if fault == "slow" else [0, 1]  # it waits for the time given, at each of its requests
    few = tokens.take(rows)
    losses, _ = scorer_of(server, timeout=2 if fault == "slow" else 5).score(few, tmp_path)
    np.testing.assert_allclose(losses.values, exact.take(rows).values, atol=1e-4)
    assert len(rows_of(server, few)) == 2 * len(rows)


def changed(change: Callable[[list], None]):
    """The answers about rows, changed in place."""

    def spoil(request: Request, answer: Any) -> Reply | None:
        if isinstance(request.body["prompt"], list) and len(request.body["prompt"]) > 8:
            change(answer["choices"][0]["prompt_logprobs"])
        return Reply(body=json.dumps(answer))

    return spoil


def wrong_id(entries: list) -> None:
    [entry] = entries[5].values()
    entries[5] = {"599": entry}


def last(value: float | None) -> Callable[[list], None]:
    def change(entries: list) -> None:
        entries[-1] = None if value is None else {key: {**e, "logprob": value} for key, e in entries[-1].items()}

    return change


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (wrong_id, ModelError, r"token 5 of row .* was sent as id \d+ and came back as 599"),
        (list.pop, ModelError, r"has [\d,]+ tokens, the server returned [\d,]+"),
        (last(None), ModelError, "came back as no id"),
        (last(float("-inf")), NonFiniteError, "a probability of 0"),
        (last(-9999.0), NonFiniteError, "a probability of 0"),
        (last(float("nan")), ModelError, r"no log-probability for token \d+ of row"),
    ],
)
def test_wrong_answers_are_refused(change, kind, words, serve, scorer_of, tokens, tmp_path):
    with pytest.raises(kind, match=words):
        scorer_of(serve("vllm", spoil=changed(change))).score(tokens, tmp_path)
    assert not read_answers(tmp_path)


def test_a_server_that_stops_answering_is_asked_only_for_the_rest(serve, scorer_of, tokens, exact, tmp_path):
    server, answered = serve("vllm"), []

    def spoil(request: Request, answer: Any) -> Reply | None:
        if len(request.body["prompt"]) > 8 and isinstance(request.body["prompt"], list):
            answered.append(request)
            if len(answered) > 3:
                return Reply(status=503, body="gone")
        return None

    server.spoil = spoil
    with pytest.raises(RunError, match=r"gave no answer in 3 tries, the last: 503 gone\. The answers so far are kept"):
        scorer_of(server, concurrency=1).score(tokens, tmp_path)
    assert len(read_answers(tmp_path)) == 3
    server.spoil, before = (lambda request, answer: None), len(rows_of(server, tokens))
    losses, policy = scorer_of(server).score(tokens, tmp_path)
    np.testing.assert_allclose(losses.values, exact.values, atol=1e-4)
    assert len(rows_of(server, tokens)) == before + len(tokens) - 3
    asked = len(server.requests)
    again, same = scorer_of(server).score(tokens, tmp_path)
    assert np.array_equal(again.values, losses.values, equal_nan=True)
    assert (same, len(server.requests)) == (policy, asked)  # nothing is asked, the form is known from the answers


def test_no_more_requests_are_open_than_allowed(serve, scorer_of, tokens, tmp_path):
    server = serve("vllm", spoil=lambda request, answer: Reply(answer, delay_seconds=0.03))
    scorer_of(server, concurrency=2).score(tokens, tmp_path)
    assert server.most_at_once == 2


def test_a_budget_stops_before_it_is_passed(serve, scorer_of, tokens, tmp_path):
    server = serve("vllm")
    with pytest.raises(RunError, match=r"token_budget: 0 prompt tokens were sent .* more than the budget of 10"):
        scorer_of(server, token_budget=10).score(tokens, tmp_path)
    assert not server.requests


def test_the_key_is_nowhere_but_in_the_requests(serve, scorer_of, tokens, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    reported = []
    for status in (400, 401, 403, 404, 500):
        body = json.dumps({"error": {"message": f"bad key {KEY}"}})
        server = serve("vllm", spoil=lambda request, answer, s=status, b=body: Reply(status=s, body=b))
        with pytest.raises(TokencleanError) as error:
            scorer_of(server).score(tokens, tmp_path / str(status))
        reported.append(str(error.value))
    assert "bad key …" in "".join(reported)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in "".join([*reported, *scorer_of.notes, caplog.text])
    assert KEY.encode() not in written


def test_shards_are_stages_and_their_answers_go(serve, scorer_of, tokens, exact, tmp_path):
    server, store = serve("sglang"), Store(tmp_path / "run")

    def stage(inputs, compute):
        return store.stage("losses", 2, inputs, compute)

    def shards() -> ServedShards:
        return ServedShards(stage, scorer_of(server), {"model": ["key", ""]}, store.root)

    item = Item(hash_tokens(tokens), 0, lambda: tokens, "rows")
    shard = shards().make(item)
    np.testing.assert_allclose(shard.column("loss").values, exact.values, atol=1e-4)
    assert shard.policy["api"] == "sglang"
    assert list((store.root / SERVED).iterdir()) == []
    asked = len(server.requests)
    assert shards().make(item).stage.was_reused
    assert require_losses(shards(), hash_tokens(tokens), "rows").stage.key == shard.stage.key
    assert len(server.requests) == asked
