"""The strategy ``given``: scores and weights of another tool, by the ids of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_runs import recipe_of

from tokenclean.cleaning import run_strategy
from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.open_run import open_run
from tokenclean.errors import PoolError, RecipeError, TableError
from tokenclean.experiment.planning.dry_run import RecordedPass, dry_run
from tokenclean.recipe import Recipe, recipe_from


@pytest.fixture(scope="module")
def recipe(small_pool: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("given")
    rows = [json.loads(line) for line in small_pool.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**row, "id": f"own-{number}"}) for number, row in enumerate(rows)]
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    cleaning = {"strategy": "given", "given": str(folder / "given.jsonl"), "proportion": 0.5}
    return recipe_of(folder / "pool.jsonl", tiny_model_folder, folder, cleaning=cleaning, evaluation={"controls": []})


@pytest.fixture(scope="module")
def context(recipe: Recipe) -> RunContext:
    return open_run(recipe).context


def write(recipe: Recipe, rows: list[dict[str, Any]]) -> None:
    assert recipe.cleaning.given is not None
    Path(recipe.cleaning.given).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(context: RunContext, kind: str, value) -> list[dict[str, Any]]:
    """A row for each training row; ``value``: of its number and its count of tokens."""
    lengths = context.tokens.input_ids.lengths.tolist()
    return [{"id": id, kind: value(row, lengths[row])} for row, id in enumerate(context.tokens.ids)]


def test_scores_are_ranked_as_those_of_any_strategy(recipe, context):
    random = np.random.default_rng(0)
    write(recipe, rows_of(context, "score", lambda row, length: random.normal(size=length).round(4).tolist()))
    result = run_strategy(context, "given")
    assert result.kept is not None
    assert result.scores is not None
    assert result.kept.values.sum() == int(0.5 * context.tokens.is_response.values.sum())
    kept, response = result.kept.values, context.tokens.is_response.values
    assert result.scores.values[kept].min() >= result.scores.values[response & ~kept].max()


def test_weights_are_what_is_trained_by_own_ids_and_from_parquet(recipe, context, tmp_path):
    random = np.random.default_rng(1)
    drawn = [random.choice([-0.5, 0.0, 0.25, 1.0], length) for length in context.tokens.input_ids.lengths]
    table = pa.table(
        {"original_id": list(context.tokens.original_ids), "weight": [[float(w) for w in row] for row in drawn]}
    )
    pq.write_table(table, tmp_path / "given.parquet")
    cleaning = recipe.cleaning.model_copy(update={"given": str(tmp_path / "given.parquet")})
    opened = open_run(recipe.model_copy(update={"cleaning": cleaning}))
    result = run_strategy(opened.context, "given")
    assert result.weights is not None
    assert result.kept is not None
    expected = np.where(context.tokens.is_response.values, np.concatenate(drawn), 0)
    np.testing.assert_array_equal(result.weights.values, expected.astype(np.float32))
    np.testing.assert_array_equal(result.kept.values, expected > 0)
    assert result.model.training is not None
    assert result.model.training["selected_tokens"] == np.count_nonzero(expected)


def test_spans_count_in_characters_and_other_rows_of_the_pool_may_be_there(recipe, context):
    rows = [{**row, "spans": []} for row in rows_of(context, "spans", lambda *_: [])]
    first = context.tokens.contents[0][0]
    rows[0]["spans"] = [{"message": first.turn, "start": 0, "end": first.length + 1, "weight": 0}]
    rows += [{"id": id, "spans": []} for id in context.heldout.ids]
    write(recipe, rows)
    result = run_strategy(context, "given")
    assert result.kept is not None
    assert not result.kept[0].any()
    np.testing.assert_array_equal(
        result.kept.values[len(result.kept[0]) :], context.tokens.is_response.values[len(result.kept[0]) :]
    )
    assert [item.name for item in dry_run(recipe, "cpu")[1] if not isinstance(item, RecordedPass)] == ["given"]


def test_a_dropped_row_is_not_trained_and_other_keys_are_not_read(recipe, context):
    rows = rows_of(context, "spans", lambda *_: [])
    first = context.tokens.contents[1][0]
    span = {"message": first.turn, "start": 0, "end": 1, "weight": 1, "reason": "fine"}
    rows[0] |= {"dropped": True, "state": "dropped"}
    rows[1] |= {"dropped": False, "spans": [span], "named": [7]}
    write(recipe, rows)
    result = run_strategy(context, "given")
    assert result.kept is not None
    assert not result.kept[0].any()
    behind = len(result.kept[0])
    np.testing.assert_array_equal(result.kept.values[behind:], context.tokens.is_response.values[behind:])
    write(recipe, [{**rows[0], "dropped": 1}, *rows[1:]])
    with pytest.raises(TableError, match=r":1: dropped: expected true or false, found 1"):
        run_strategy(context, "given")


def test_rows_that_max_rows_leaves_out_may_be_in_the_file(recipe, context):
    rows = rows_of(context, "spans", lambda *_: []) + [{"id": id, "spans": []} for id in context.heldout.ids]
    write(recipe, rows)
    few = open_run(recipe.model_copy(update={"pool": recipe.pool.model_copy(update={"max_rows": 30})})).context
    assert run_strategy(few, "given").kept is not None
    write(recipe, [row for row in rows if row["id"] != few.tokens.ids[0]])
    with pytest.raises(TableError, match="1 ids of training rows are not in the file"):
        run_strategy(few, "given")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda rows: [*rows, {"id": "x", "score": []}, {"id": "y", "score": []}],
            r"2 ids are in no row of the pool: 'x', 'y'",
        ),
        (lambda rows: rows[4:], r"4 ids of training rows are not in the file: .* and 1 more"),
        (lambda rows: [*rows, rows[0]], r"a second row of .*; the first is in line 1"),
        (
            lambda rows: [{**rows[0], "score": [1.0]}, *rows[1:]],
            r":1: score: expected \d+ numbers, .* found 1",
        ),
        (lambda rows: [{**rows[0], "score": 3}, *rows[1:]], r":1: score: expected \d+ numbers, one a token, found int"),
        (lambda rows: [{**rows[0], "score": ["a"] * len(rows[0]["score"])}, *rows[1:]], r":1: score: expected numbers"),
        (lambda rows: [{"id": rows[0]["id"]}, *rows[1:]], r":1: expected one of score, weight, spans, found none"),
        (lambda rows: [{**rows[0], "weight": []}, *rows[1:]], r":1: expected one of .*, found score and weight"),
        (lambda rows: [{"id": rows[0]["id"], "spans": []}, *rows[1:]], r"found spans \(line 1\) and score \(line 2\)"),
        (lambda rows: [{"score": rows[0]["score"]}, *rows[1:]], r":1: expected id or original_id, found neither"),
        (lambda rows: [], "holds no row of scores or weights|no usable row|empty"),
    ],
)
def test_a_file_that_does_not_fit_the_rows_is_refused(recipe, context, change, reason):
    write(recipe, change(rows_of(context, "score", lambda row, length: [0.0] * length)))
    with pytest.raises((TableError, PoolError), match=reason):
        run_strategy(context, "given")


def test_spans_that_are_none_are_refused(recipe, context):
    rows = rows_of(context, "spans", lambda *_: [])
    for spans, reason in (
        ([{"message": 1}], "expected numbers message, start, end and weight"),
        ([{"message": 0, "start": 0, "end": 1, "weight": 0}], "a span is in message 0"),
        ("x", "spans: expected a list, found str"),
    ):
        write(recipe, [{**rows[0], "spans": spans}, *rows[1:]])
        with pytest.raises((TableError, PoolError), match=reason):
            run_strategy(context, "given")


def test_the_strategy_and_its_file_go_together():
    values = {"pool": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "b"}}
    for cleaning in ({"strategy": "given"}, {"strategy": "rho", "given": "x.jsonl"}):
        with pytest.raises(RecipeError, match=r"cleaning\.given: the strategy given, as strategy or control"):
            recipe_from({**values, "cleaning": cleaning})
