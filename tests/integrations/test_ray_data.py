"""Token scores in a pipeline of Arrow tables, also of Ray Data: the losses that the library gives, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tokenclean
from tokenclean.errors import TableError
from tokenclean.integrations.ray_data import TokenScorer
from tokenclean.models.loading.load import load_model, load_tokenizer
from tokenclean.pool import load_pool
from tokenclean.scoring import token_losses
from tokenclean.tokens import TokenizedPool, tokenize_pool

ROWS = 12


@pytest.fixture(scope="module")
def expected(small_pool: Path, tiny_model_folder: Path, other_model_folder: Path) -> tuple[TokenizedPool, list]:
    """The tokens of the first rows, and their losses under base and reference."""
    tokens = tokenize_pool(list(load_pool(small_pool))[:ROWS], load_tokenizer(str(tiny_model_folder)))
    return tokens, [token_losses(load_model(str(folder)), tokens) for folder in (tiny_model_folder, other_model_folder)]


@pytest.fixture(scope="module")
def rows(small_pool: Path) -> list[dict[str, object]]:
    import json

    return [json.loads(line) for line in small_pool.read_text(encoding="utf-8").splitlines()[:ROWS]]


def check(found: list[dict], expected: tuple[TokenizedPool, list]) -> None:
    tokens, (base, reference) = expected
    assert len(found) == ROWS
    for number, row in enumerate(found):
        assert row["input_ids"] == tokens.input_ids[number].tolist()
        assert row["is_response"] == tokens.is_response[number].tolist()
        for name, losses in (("base_loss", base), ("reference_loss", reference), ("score", base - reference)):
            np.testing.assert_allclose(row[name], losses[number], atol=1e-5)
        mean = (base - reference)[number][tokens.is_response[number]].mean()
        assert row["token_score"] == pytest.approx(mean, abs=1e-5)


def test_a_batch_gets_the_columns_of_a_scored_table(rows, expected, tiny_model_folder, other_model_folder):
    scorer = TokenScorer(str(tiny_model_folder), str(other_model_folder))
    given = pa.Table.from_pylist(rows)
    scored = pa.concat_tables([scorer(given.slice(0, 5)), scorer(given.slice(5))])
    assert scored.select(given.column_names) == given
    assert scored.schema.field("base_loss").type == pa.list_(pa.float32())
    check(scored.to_pylist(), expected)


def test_a_row_without_a_response_is_null_and_stays(rows, tiny_model_folder):
    question = {"messages": [{"role": "user", "content": "Why?"}]}
    scored = TokenScorer(str(tiny_model_folder))(pa.Table.from_pylist([{"messages": rows[0]["messages"]}, question]))
    assert [*scored.column_names] == ["messages", "input_ids", "is_response", "base_loss", "token_score"]
    assert [scored[name].is_null().to_pylist() for name in scored.column_names[1:]] == [[False, True]] * 4


def test_a_column_in_the_way_is_named(rows, tiny_model_folder):
    batch = pa.Table.from_pylist([{**rows[0], "input_ids": [1]}])
    with pytest.raises(TableError, match="has a column input_ids already"):
        TokenScorer(str(tiny_model_folder))(batch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_ray_data_maps_batches_with_it(rows, expected, tiny_model_folder, other_model_folder, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    pytest.importorskip("ray.data", reason="needs ray[data]")
    monkeypatch.setenv("PYTHONPATH", str(Path(tokenclean.__file__).parents[1]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    try:
        numbered = [{**row, "number": number} for number, row in enumerate(rows)]
        scored = ray.data.from_arrow(pa.Table.from_pylist(numbered)).map_batches(
            TokenScorer,
            fn_constructor_args=(str(tiny_model_folder), str(other_model_folder)),
            batch_format="pyarrow",
            batch_size=5,
            concurrency=1,
        )
        check(sorted(scored.take_all(), key=lambda row: row["number"]), expected)
    finally:
        ray.shutdown()
