"""``tokenclean rate``: what it tells before it sends anything, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from rating_server import RatingServer, Reply
from tokenclean.cli.rate import rate
from tokenclean.ds2.ratings import load_ratings
from tokenclean.errors import RecipeError
from tokenclean.pool import load_pool
from tokenclean.recipe import RatingsSettings

KEY = "sk-test-0123456789-abcdef"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    rows = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with RatingServer(lambda request: Reply()).serving() as server:
        yield server


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A function that runs the command in the folder of the test and gives what it printed."""
    app = typer.Typer()
    app.command()(rate)

    def run(*arguments: object) -> str:
        said = CliRunner().invoke(app, [*map(str, arguments), "-o", str(tmp_path / "ratings.parquet")])
        if said.exception is not None and not isinstance(said.exception, SystemExit):
            raise said.exception
        captured = capsys.readouterr()
        text = said.output + captured.out + captured.err
        assert said.exit_code == 0, text
        return text

    return run


def test_with_a_price_nothing_is_sent_before_yes(command, pool, server, tmp_path):
    asked = (pool, "--model", "m", "--endpoint", server.url, "--max-rows", 10, "--price-in", 1000, "--price-out", 5000)
    said = command(*asked)
    assert "10 rows, 10 questions, 0 of them answered before" in said
    assert "10 requests, at most 30 where answers are unreadable (3 attempts)" in said
    assert "at most 1,280 answer tokens" in said
    assert "at the prices given" in said
    assert "nothing was sent; give --yes" in said
    assert server.requests == []
    assert not (tmp_path / "ratings.parquet").exists()
    assert not (tmp_path / "ratings.answers").exists()
    said = command(*asked, "--yes")
    assert len(server.requests) == 10
    assert "10 rows rated by m, 0 of them without a rating" in said
    assert "1,000 prompt tokens and 100 answer tokens, 1.50 at the prices given" in said
    again = command(*asked)  # nothing left to pay for
    assert "10 of them answered before" in again
    assert "0 answers came in, 10 questions needed none" in again
    assert len(server.requests) == 10


def test_more_than_a_hundred_requests_need_a_yes_too(command, pool, server, tmp_path):
    said = command(pool, "--model", "m", "--endpoint", server.url)
    assert "nothing was sent" in said
    assert not server.requests
    command(pool, "--model", "m", "--endpoint", server.url, "--max-rows", 100)
    assert len(server.requests) == 100
    command(pool, "--model", "m", "--endpoint", server.url)  # twenty are left
    assert len(server.requests) == 120
    rows = load_pool(pool)
    settings = RatingsSettings(path=str(tmp_path / "ratings.parquet"))
    ratings = load_ratings(settings, [row.id for row in rows])
    assert ratings.overall.tolist() == [7] * 120


def test_what_is_written_tells_how_it_came_about_but_not_the_key(command, pool, server, tmp_path):
    command(pool, "--model", "m", "--endpoint", server.url, "--max-rows", 2, "--server-sampling", "--seed", 4)
    stored = json.loads(pq.read_schema(tmp_path / "ratings.parquet").metadata[b"tokenclean"])
    assert stored == {
        "attempts": 3,
        "cut_rows": 0,
        "endpoint": f"{server.url}/chat/completions",
        "rater": "m",
        "sampling": {"max_tokens": 128, "seed": 4, "temperature": None, "top_k": None, "top_p": None},
        "scale": "ratings",
    }
    assert server.requests[0].authorization == f"Bearer {KEY}"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_local_model_rates_without_asking_for_a_yes(command, pool, tiny_model_folder, one_thread, tmp_path):
    options = ("--max-rows", 2, "--max-tokens", 3, "--attempts", 1, "--device", "cpu")
    said = command(pool, "--model", tiny_model_folder, "--local", *options)
    assert "2 of them without a rating" in said
    assert "many answers hold no rating" in said
    stored = json.loads(pq.read_schema(tmp_path / "ratings.parquet").metadata[b"tokenclean"])
    assert stored["sampling"]["top_k"] == 50
    assert stored["sampling"]["seed"] == 0


def test_rows_that_cannot_be_used_are_listed(command, pool, server, tmp_path):
    with pool.open("a", encoding="utf-8") as file:
        file.write('{"instruction": \n')
    said = command(pool, "--model", "m", "--endpoint", server.url, "--max-rows", 1)
    assert "1 rows set aside, listed in" in said
    assert (tmp_path / "ratings.rejected.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("options", [(), ("--local", "--endpoint", "http://host/v1")])
def test_a_rater_is_either_a_server_or_local(options, command, pool):
    with pytest.raises(RecipeError, match="name either --endpoint URL"):
        command(pool, "--model", "m", *options)


def test_actors_ask_no_server(command, pool):
    with pytest.raises(RecipeError, match="--on: requests to a server are sent by this command alone; give --local"):
        command(pool, "--model", "m", "--endpoint", "http://host/v1", "--on", "ray")
