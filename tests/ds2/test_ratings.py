from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenclean.ds2.rating_prompt import Rating
from tokenclean.ds2.ratings import Ratings, load_ratings, ratings_of, write_ratings
from tokenclean.errors import PoolError, RecipeError, TableError
from tokenclean.recipe import RatingsSettings

IDS = ["a:1:0f", "a:3:1f", "b:x:2:2f"]
"""Rows 1 and 3 of source a, row 2 of source b:x."""
BY_ID = {"rating_column": "score", "scale": "ratings", "id_column": "id"}
BY_NUMBER = {"rating_column": "score", "number_column": "row", "numbers_from": 0, "source_column": "source"}
ALPACA = ["alpaca:1:aa", "alpaca:2:bb", "alpaca:4:cc"]


def load(path: Path, ids: list[str], **columns) -> Ratings:
    return load_ratings(RatingsSettings(path=str(path), **columns), ids)


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        cells = [list(rows[0]), *(["" if v is None else str(v) for v in row.values()] for row in rows)]
        path.write_text("".join(",".join(line) + "\n" for line in cells), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS = [
    {"id": "b:x:2:2f", "score": 10},
    {"id": "a:1:0f", "score": 1},
    {"id": "elsewhere:1:0f", "score": 5},
    {"id": "a:3:1f", "score": 7},
]


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.parquet"])
def test_ratings_join_the_pool_by_id_whatever_their_order_and_file(name, tmp_path):
    ratings = load(write(tmp_path / name, ROWS), IDS, **BY_ID)
    assert ratings.ids == tuple(IDS)
    assert ratings.rater == "score"
    assert ratings.overall.dtype == np.float64
    assert ratings.overall.tolist() == [1, 7, 10]
    assert ratings.classes.tolist() == [0, 3, 5]
    assert ratings.is_parsed.all()


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.parquet"])
def test_classes_join_by_row_number_and_source(name, tmp_path):
    rows = [{"row": r, "source": s, "score": c} for r, s, c in [(0, "a", 0), (1, "b:x", 5), (1, "a", 4), (2, "a", 3)]]
    ratings = load(write(tmp_path / name, rows), IDS, scale="classes", rater="gpt", **BY_NUMBER)
    assert ratings.overall.tolist() == ratings.classes.tolist() == [0, 3, 5]
    assert (ratings.rater, ratings.scale) == ("gpt", "classes")


def test_the_form_of_the_published_alpaca_ratings(tmp_path):
    path = tmp_path / "alpaca.csv"
    path.write_text("alpaca_index,gpt_4o_mini,mistral\n0,0,3\n1,0,2\n2,5,1\n3,4,4\n", encoding="utf-8")
    of_row = {"scale": "classes", "number_column": "alpaca_index"}
    assert load(path, ALPACA, rating_column="gpt_4o_mini", numbers_from=0, **of_row).classes.tolist() == [
        0,
        0,
        4,
    ]
    assert load(path, ALPACA, rating_column="mistral", numbers_from=0, **of_row).classes.tolist() == [3, 2, 4]
    with pytest.raises(TableError, match=r"alpaca\.csv:2: alpaca_index: expected a row number from 1 on, found '0'"):
        load(path, ALPACA, rating_column="mistral", numbers_from=1, **of_row)
    with pytest.raises(
        TableError, match=r":2: gpt_4o_mini: .*from 1 to 10 .*scale: ratings.*found '0'.*scale: classes"
    ):
        load(path, ALPACA, rating_column="gpt_4o_mini", scale="ratings", number_column="alpaca_index", numbers_from=0)


def test_an_empty_cell_is_a_rating_that_could_not_be_read(tmp_path, caplog):
    rows = [{"id": "a:1:0f", "score": None}, {"id": "a:3:1f", "score": 7.0}, {"id": "b:x:2:2f", "score": float("nan")}]
    for name in ("r.csv", "r.jsonl", "r.parquet"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ratings = load(write(tmp_path / name, rows), IDS, **BY_ID)
        assert ratings.is_parsed.tolist() == [False, True, False]
        assert ratings.classes.tolist() == [0, 3, 0]
        assert "2 of 3 rows have no score; they count as class 0" in caplog.text


@pytest.mark.parametrize("value", ["8.5", "eleven", "11", "-1", "1e400", "true"])
def test_a_value_off_the_scale_is_named_with_file_line_and_column(value, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(f"id,score\na:1:0f,3\nelsewhere:1:0,{value}\n", encoding="utf-8")
    with pytest.raises(TableError) as error:
        load(path, IDS, **BY_ID)
    assert str(error.value).startswith(f"{path}:3: score: expected a whole number from 1 to 10")
    assert repr(value) in str(error.value)


def test_truth_values_are_no_ratings(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"id": "a:1:0f", "score": True}])
    with pytest.raises(TableError, match="found True"):
        load(path, IDS, **BY_ID)


def test_a_pool_row_without_a_rating_is_named(tmp_path):
    path = write(tmp_path / "r.csv", ROWS[1:])
    with pytest.raises(TableError) as error:
        load(path, IDS, **BY_ID)
    assert "rates 2 of the pool's 3 rows; expected one row for each" in str(error.value)
    assert str(error.value).endswith("\n  b:x:2:2f (row 'b:x:2:2f')")


def test_a_missing_number_is_told_as_the_file_counts(tmp_path):
    path = write(tmp_path / "r.csv", [{"n": 0, "score": 1}, {"n": 1, "score": 1}])
    with pytest.raises(TableError, match=r"alpaca:4:cc \(row number 3\)"):
        load(path, ALPACA, rating_column="score", scale="ratings", number_column="n", numbers_from=0)


def test_a_row_rated_twice_is_named(tmp_path):
    path = write(tmp_path / "r.jsonl", [*ROWS, ROWS[1]])
    with pytest.raises(TableError, match=r"r\.jsonl:5: row 'a:1:0f' was rated before, in line 2"):
        load(path, IDS, **BY_ID)


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    path = write(tmp_path / "r.csv", ROWS)
    with pytest.raises(TableError, match=r"r\.csv:2: has no column 'scor'; it has id, score; did you mean 'score'"):
        load(path, IDS, rating_column="scor", scale="ratings", id_column="id")
    path = write(tmp_path / "r.jsonl", [ROWS[0], {"id": "a:1:0f"}])
    with pytest.raises(TableError, match=r"r\.jsonl:2: has no column 'score'"):
        load(path, IDS, **BY_ID)


def test_a_broken_row_and_a_missing_file_are_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "a:1:0f", "score": 3}\n{"id": \n', encoding="utf-8")
    with pytest.raises(TableError, match=r"r\.jsonl:2: cannot be read: broken JSON"):
        load(path, IDS, **BY_ID)
    with pytest.raises(PoolError, match="no such file"):
        load(tmp_path / "none.csv", IDS, **BY_ID)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id_column": "id", "number_column": "row", "numbers_from": 0}, "either id_column"),
        ({"id_column": "id", "source_column": "source"}, "source_column needs number_column"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(options, words, tmp_path):
    path = write(tmp_path / "r.csv", ROWS)
    with pytest.raises(RecipeError, match=words):
        load(path, IDS, **{"rating_column": "score", "scale": "ratings", **options})


def test_row_numbers_need_a_source_where_two_sources_share_them(tmp_path):
    path = write(tmp_path / "r.csv", [{"row": 0, "score": 3}])
    options = {"rating_column": "score", "scale": "ratings", "number_column": "row", "numbers_from": 0}
    with pytest.raises(TableError, match=r"'a:1:0f' and 'b:1:2f' are both row number 0; name the source_column, or"):
        load(path, ["a:1:0f", "b:1:2f"], **options)
    with pytest.raises(TableError, match="'row 1' of the pool holds no row number"):
        load(path, ["row 1"], **options)
    with pytest.raises(TableError, match="a row number from 0 on, found 'first'"):
        load(write(tmp_path / "s.csv", [{"row": "first", "score": 3}]), ["a:1:0f"], **options)


def test_what_is_written_is_read_again(tmp_path):
    rating = Rating(rarity=1, complexity=2, informativeness=3, overall=10)
    ratings = ratings_of(IDS, "rater/name", [rating, None, rating])
    path = tmp_path / "ratings.parquet"
    write_ratings(path, ratings, {"endpoint": "http://host/v1"})
    table = pq.read_table(path)
    assert table.to_pylist()[:2] == [
        {"id": "a:1:0f", "overall": 10, "rarity": 1, "complexity": 2, "informativeness": 3, "is_parsed": True},
        {
            "id": "a:3:1f",
            "overall": None,
            "rarity": None,
            "complexity": None,
            "informativeness": None,
            "is_parsed": False,
        },
    ]
    assert json.loads(table.schema.metadata[b"tokenclean"]) == {
        "endpoint": "http://host/v1",
        "rater": "rater/name",
        "scale": "ratings",
    }
    again = load(path, IDS[::-1])
    assert again.ids == tuple(IDS[::-1])
    np.testing.assert_array_equal(again.overall, [10, np.nan, 10])


def test_classes_are_written_as_classes(tmp_path):
    path = tmp_path / "ratings.parquet"
    write_ratings(path, Ratings(tuple(IDS), "file", np.array([0.0, np.nan, 5.0]), "classes"), {})
    again = load(path, IDS, scale="classes")
    assert again.classes.tolist() == [0, 0, 5]


def test_classes_are_ratings_with_both_ends_cut():
    overall = np.array([1, 3, 4, 5, 6, 7, 8, 9, 10, np.nan])
    assert Ratings((), "r", overall).classes.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 5, 0]
