"""A run whose reference is behind a server, against a run with the same model here; stopped, planned, reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_dry_run import done, planned
from test_runs import recipe_of

from local_server import Reply, Request
from model_server import NAME, ModelServer
from tokenclean.cleaning.open_run import open_run
from tokenclean.errors import ModelError, PolicyMismatchError, RecipeError, RunError
from tokenclean.experiment.finished.status import describe_run
from tokenclean.experiment.planning.dry_run import RecordedPass, dry_run
from tokenclean.experiment.planning.plan import plan
from tokenclean.experiment.run import run
from tokenclean.observer import Observer
from tokenclean.recipe import Recipe
from tokenclean.scoring.scorer import check_same_policy
from tokenclean.store import SERVED
from tokenclean.token_table import read_table


@pytest.fixture
def server(other_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with ModelServer(other_model_folder, "vllm").serving() as running:
        yield running


def served_recipe(pool: Path, model: Path, output: Path, reference: object) -> Recipe:
    cleaning = {"strategy": "fixed_model", "splits": 2}
    evaluation = {"controls": []}
    models = {"reference": reference, "device": "cpu"}
    return recipe_of(pool, model, output, model=models, cleaning=cleaning, evaluation=evaluation)


def reference_at(server: ModelServer, **keys: Any) -> dict[str, Any]:
    return {"url": server.url, "model": NAME, "tries": 1, **keys}


def test_a_served_reference_keeps_what_the_same_model_here_keeps(
    server, small_pool, tiny_model_folder, other_model_folder, tmp_path
):
    notes: list[str] = []
    recipe = served_recipe(small_pool, tiny_model_folder, tmp_path / "served", reference_at(server))
    served = run(open_run(recipe, Observer(note=notes.append)))
    here = run(open_run(served_recipe(small_pool, tiny_model_folder, tmp_path / "here", str(other_model_folder))))
    np.testing.assert_allclose(served.own.scores.values, here.own.scores.values, atol=1e-4)
    is_other = served.own.kept.values != here.own.kept.values
    assert is_other.sum() <= 2  # scores that tie within rounding
    text = "\n".join(notes)
    assert f"reference {NAME} at {server.url}: its losses are computed by the server" in text
    assert "asked in the form vllm; token ids, checked one by one" in text

    metadata = read_table(served.folder / "fixed_model" / "kept.parquet").metadata
    found = metadata["models"]["reference"]
    assert found["name"] == NAME
    assert found["served"]["api"] == "vllm"
    assert found["served"]["url"] == server.url
    document = json.loads((served.folder / "result.json").read_text(encoding="utf-8"))
    assert document["references"][0]["served"]["alignment"] == "token ids, checked one by one"

    asked = len(server.requests)
    again = run(open_run(recipe))
    assert len(server.requests) == asked  # every stage is found
    assert again.stages_made == 0


@pytest.mark.slow
def test_a_run_goes_on_with_the_rows_that_are_missing(server, small_pool, tiny_model_folder, tmp_path):
    recipe = served_recipe(small_pool, tiny_model_folder, tmp_path, reference_at(server, concurrency=1))
    rows: list[Request] = []

    def spoil(request: Request, answer: Any) -> Reply | None:
        if isinstance(request.body["prompt"], list) and len(request.body["prompt"]) > 8:
            rows.append(request)
            return Reply(status=503, body="gone") if len(rows) == 6 else None
        return None

    server.spoil = spoil
    with pytest.raises(RunError, match="503 gone"):
        run(open_run(recipe))
    [line] = [note for note in describe_run(recipe.folder).notes if "served reference" in note]
    assert line == "served reference: answers to 5 rows kept; the same command asks for the others"
    run(open_run(recipe))
    [planned_line] = [line for line in plan(recipe, flop_per_second=1e9).summary if line.startswith("served reference")]
    requests = sum(len(p.lengths) for p in dry_run(recipe, "cpu")[1] if isinstance(p, RecordedPass) and p.served)
    assert f"{requests:,} requests with" in planned_line
    assert len(rows) == requests + 1  # the one that failed was sent twice
    sent = sum(len(request.body["prompt"]) for request in rows) - len(rows[5].body["prompt"])
    assert f"{sent:,} prompt tokens" in planned_line
    assert not list((recipe.folder / SERVED).iterdir())


def test_a_plan_asks_nothing_and_claims_no_time(server, small_pool, tiny_model_folder, tmp_path):
    recipe = served_recipe(small_pool, tiny_model_folder, tmp_path, reference_at(server))
    table = plan(recipe, flop_per_second=1e9).table
    served = [row for row in table.rows if "served" in row[0]]
    assert len(served) == 4  # two splits, the sample of the check, held-out rows
    assert {row[-1] for row in served} == {"server"}
    assert not server.requests


def test_a_plan_has_the_passes_of_the_run(server, small_pool, tiny_model_folder, tmp_path):
    recipe = served_recipe(small_pool, tiny_model_folder, tmp_path, reference_at(server))

    def without_lengths(items: list[tuple]) -> list[tuple]:  # a plan leaves out rows that are not sent
        return [(*item[:3], len(item[3]) > 0, item[4]) if item[0] == "score" else item for item in items]

    assert without_lengths(planned(recipe)) == without_lengths(done(recipe))


def test_losses_only(server, small_pool, tiny_model_folder, tmp_path):
    recipe = served_recipe(small_pool, tiny_model_folder, tmp_path, reference_at(server))
    reference = open_run(recipe).context.given_reference
    assert reference is not None
    with pytest.raises(ModelError, match=r"behind a server .* gives losses only"):
        _ = reference.weights_source


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"reference": {"url": "http://h/v1", "model": "m"}}, "scoring": {"precision": "safe"}}, "precision"),
        ({"model": {"reference": {"url": "http://h/v1"}}}, "model.reference.model: missing"),
        ({"model": {"reference": {"url": "h", "model": "m"}}}, r"model.reference: url: expected http\(s\)://host/v1"),
        ({"model": {"reference": {"url": "http://h", "model": "m", "align": "text"}}}, "expected one of ids, char"),
        ({"model": {"reference": 3}}, "the keys url and model of a server, found 3"),
        ({"model": {"base": {"url": "http://h/v1", "model": "m"}}}, "model.base: a base is trained here"),
    ],
)
def test_recipes_that_cannot_be_meant(sections, words, small_pool, tiny_model_folder, tmp_path):
    with pytest.raises(RecipeError, match=words):
        recipe_of(small_pool, tiny_model_folder, tmp_path, cleaning={"strategy": "fixed_model"}, **sections)


def test_a_served_reference_goes_with_a_base_in_float32_only():
    served = {"precision": "served", "api": "vllm"}
    check_same_policy({"precision": "exact", "pack_tokens": 1, "kernel": "any"}, served)
    with pytest.raises(PolicyMismatchError, match="the base was scored with precision safe"):
        check_same_policy({"precision": "safe"}, served)
