from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.errors import PoolError, RecipeError
from tokenclean.pool import FILTERS, Mixture, Pool, RejectedRow, load_sources, write_removed
from tokenclean.pool.conversation import RemovedRow
from tokenclean.pool.mixture import draw_rows, mix_pools, share_sizes
from tokenclean.pool.recipe_pool import open_mixture
from tokenclean.recipe import FiltersSettings, PoolSettings, recipe_from, source_from

quick = settings(max_examples=60, deadline=None)
PASSAGE = " ".join(f"word{number}" for number in range(20))


def answers(folder: Path, name: str, *texts: str) -> str:
    path = folder / f"{name}.jsonl"
    rows = [{"instruction": f"Question {number} of {name}?", "output": text} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load_mixture(pool: PoolSettings, seed: int) -> Mixture:
    return mix_pools([load_sources([source]) for source in pool.sources], pool, seed)


def settings_of(*sources: dict[str, Any], **pool: Any) -> PoolSettings:
    return recipe_from({"pool": {"sources": list(sources), **pool}, "model": {"base": "m"}}).pool


def problem_of(*sources: dict[str, Any], **pool: Any) -> str:
    with pytest.raises(RecipeError) as found:
        settings_of(*sources, **pool)
    [problem] = found.value.problems
    return problem


def removed_of(mixture: Mixture) -> dict[str, list[str]]:
    """Questions' numbers by filter, as ``source:line``."""
    found: dict[str, list[str]] = {}
    for row in mixture.pool.removed:
        found.setdefault(row.filter, []).append(f"{row.source}:{row.line}")
    return found


# --- settings ---


def test_a_recipe_without_these_keys_opens_its_sources_as_they_are(tmp_path):
    sources = [{"path": answers(tmp_path, name, "One.", "Two.", "One.")} for name in ("a", "b")]
    plain = settings_of(*sources)
    mixture = load_mixture(plain, 1)
    assert mixture.pool == load_sources(plain.sources)
    assert mixture.pool.removed == ()
    assert [(c.source, c.rows, c.removed, c.taken) for c in mixture.sources] == [("a", 3, {}, 3), ("b", 3, {}, 3)]
    assert plain.filters == FiltersSettings()


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"share": 0.5}, {"share": 0.4}], "sources: every one has a share, and together they are 0.9; expected 1"),
        ([{"share": 0.6}, {"share": 0.4}, {}], "which leaves nothing to the 1 without a share"),
        ([{"share": 0.6, "count": 2}], "share 0.6 and count 2: expected one of them, or none"),
        ([{"share": 0}], "greater than 0"),
        ([{"count": 0}], "greater than or equal to 1"),
        ([{"format": "oasst", "columns": {"text": "said"}}], "the format oasst reads its own columns"),
    ],
)
def test_shares_that_cannot_be_are_refused(sources, message):
    assert message in problem_of(*({"path": f"{n}.jsonl", **source} for n, source in enumerate(sources)))


def test_filters_that_cannot_be_are_refused():
    source = {"path": "a.jsonl"}
    bounds = {"min_characters": 5, "max_characters": 4}
    assert "min_characters 5 is above max_characters 4" in problem_of(source, filters=bounds)
    assert "did you mean duplicates?" in problem_of(source, filters={"duplicate": "near"})
    assert "expected one of none, exact, near" in problem_of(source, filters={"duplicates": "nearly"})
    assert "less than or equal to 1" in problem_of(source, filters={"near_threshold": 1.5})
    assert settings_of({**source, "share": 0.333}, *[{"path": n, "share": 0.333} for n in "bc"])


# --- the filters ---


def test_the_filters_come_in_their_order_and_list_every_row(tmp_path):
    bench = tmp_path / "eval" / "boolq"
    bench.mkdir(parents=True)
    (bench / "test.jsonl").write_text(json.dumps({"passage": PASSAGE}) + "\n")
    long = " ".join(f"text{number}" for number in range(60))
    first = answers(tmp_path, "a", long, "no", PASSAGE, f"{PASSAGE} and more", long.replace("text7 ", "other "))
    second = tmp_path / "b.jsonl"
    same = {"instruction": "question 0 of A?", "output": long.upper()}
    second.write_text(
        json.dumps(same) + "\n" + json.dumps({**same, "instruction": "Why?", "output": "Because."}) + "\n"
    )
    pool = settings_of(
        {"path": first},
        {"path": str(second)},
        filters={
            "min_response_characters": 3,
            "contamination": {"data_dir": str(tmp_path / "eval")},
            "duplicates": "near",
            "near_threshold": 0.7,
        },
    )
    mixture = load_mixture(pool, 0)
    assert removed_of(mixture) == {
        "length": ["a:2"],
        "contamination": ["a:3", "a:4"],
        "exact_duplicate": ["b:1"],
        "near_duplicate": ["a:5"],
    }
    assert list(mixture.removed_by_filter) == [*FILTERS[:4]]
    assert [c.id.split(":")[:2] for c in mixture.pool] == [["a", "1"], ["b", "2"]]
    by_filter = {row.filter: row for row in mixture.pool.removed}
    assert by_filter["length"].reason == "2 response characters, fewer than 3"
    contaminated = by_filter["contamination"]
    assert contaminated.reason == "holds text of the benchmark boolq"
    assert contaminated.benchmark_file == "boolq/test.jsonl"
    assert contaminated.ngram == " ".join(PASSAGE.split()[:13])
    kept = mixture.pool[0]
    assert by_filter["exact_duplicate"].resembles == kept.id
    assert by_filter["exact_duplicate"].reason == f"says the same as {first}:1"
    assert by_filter["near_duplicate"].resembles == kept.id
    assert by_filter["near_duplicate"].similarity == pytest.approx(0.85, abs=0.1)
    assert mixture.contamination is not None
    assert [(o.id, o.benchmark) for o in mixture.contamination.overlaps] == [
        (row.id, "boolq") for row in mixture.pool.removed if row.filter == "contamination"
    ]
    counts = {c.source: (c.rows, sum(c.removed.values()), c.taken) for c in mixture.sources}
    assert counts == {"a": (5, 4, 1), "b": (2, 1, 1)}


def test_contaminated_rows_stay_where_they_are_only_reported(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "bench.jsonl").write_text(json.dumps([PASSAGE]) + "\n")
    source = {"path": answers(tmp_path, "a", PASSAGE, "Yes.")}
    filters = {"contamination": {"data_dir": str(tmp_path / "eval"), "action": "report"}}
    mixture = load_mixture(settings_of(source, filters=filters), 0)
    assert len(mixture.pool) == 2
    assert mixture.pool.removed == ()
    assert mixture.contamination is not None
    assert [(o.id, o.file) for o in mixture.contamination.overlaps] == [(mixture.pool[0].id, "bench.jsonl")]
    assert mixture.contamination.benchmarks[0].rows == 1


def test_bounds_of_length_are_in_characters_of_any_language(tmp_path):
    pool = load_sources([source_from({"path": answers(tmp_path, "a", "いろは", "にほへとちり", "ぬ")})])
    lengths = [sum(len(turn.content) for turn in row.turns) for row in pool]
    bounds = {"min_characters": min(lengths) + 1, "max_characters": max(lengths) - 1}
    mixture = mix_pools([pool], settings_of({"path": "a"}, filters=bounds), 0)
    assert removed_of(mixture) == {"length": ["a:2", "a:3"]}
    assert mixture.pool.removed[0].reason == f"{max(lengths)} characters, more than {max(lengths) - 1}"


def test_a_tokenized_row_counts_four_characters_a_token(tmp_path):
    path = tmp_path / "tokens.jsonl"
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, -100]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = load_sources([source_from({"path": str(path)})])
    for bounds, lines in (({"max_characters": 12}, [2]), ({"min_response_characters": 8}, [2])):
        mixture = mix_pools([pool], settings_of({"path": "t"}, filters=bounds), 0)
        assert [row.line for row in mixture.pool.removed] == lines


def test_nothing_left_is_an_error_that_tells_why(tmp_path):
    pool = settings_of({"path": answers(tmp_path, "a", "One.", "Two.")}, filters={"min_characters": 1000})
    with pytest.raises(PoolError, match=r"no row is left of 2 \(2 by length\); loosen the filters"):
        load_mixture(pool, 0)


def test_all_rows_are_checked_before_any_goes(tmp_path):
    source = {"path": answers(tmp_path, "a", "One.", " ")}
    pool = {"sources": [source], "filters": {"min_characters": 1000}}
    with pytest.raises(PoolError, match="1 of 2 rows cannot be used"):
        open_mixture(recipe_from({"pool": pool, "model": {"base": "m"}}))


def test_rejected_rows_stay_listed(tmp_path):
    source = {"path": answers(tmp_path, "a", "One.", " ", "Two."), "count": 1}
    mixture = load_mixture(settings_of(source), 0)
    assert [(row.line, row.reason) for row in mixture.pool.rejected] == [(2, "output: blank response")]
    assert (len(mixture.pool), removed_of(mixture).keys()) == (1, {"not_drawn"})


# --- drawing ---

IDS = st.sets(st.text(st.characters(codec="utf-8"), max_size=5), max_size=20).map(sorted)


@quick
@given(IDS, st.integers(0, 2**32), st.data())
def test_draws_are_nested_and_do_not_depend_on_order(ids, seed, data):
    count = data.draw(st.integers(0, len(ids)))
    drawn = draw_rows(ids, count, seed)
    assert len(drawn) == count
    assert drawn <= draw_rows(ids, data.draw(st.integers(count, len(ids))), seed) <= set(ids)
    assert draw_rows(data.draw(st.permutations(ids)), count, seed) == drawn


def test_draws_depend_on_the_seed_and_are_even():
    ids = [f"a:{number}" for number in range(200)]
    assert draw_rows(ids, 50, 1) != draw_rows(ids, 50, 2)
    often = Counter(row for seed in range(200) for row in draw_rows(ids, 50, seed))
    assert 20 < min(often.values()) <= max(often.values()) < 85  # 50 expected, with a deviation of 6


def sources_of(*drawing: dict[str, Any]):
    return [source_from({"path": f"{number}.jsonl", **keys}) for number, keys in enumerate(drawing)]


@pytest.mark.parametrize(
    ("available", "drawing", "expected"),
    [
        ([10, 20], [{}, {}], [10, 20]),
        ([10, 20], [{"count": 3}, {}], [3, 20]),
        ([100, 30], [{"share": 0.25}, {}], [10, 30]),  # 10 of 40
        ([100, 30, 9], [{"share": 0.25}, {"count": 20}, {}], [10, 20, 9]),  # 29 are three quarters: 9.67 rounds up
        ([100, 100, 50], [{"share": 0.5}, {"share": 0.3}, {"share": 0.2}], [100, 60, 40]),
        ([7, 7, 7], [{"share": 0.333}, {"share": 0.333}, {"share": 0.333}], [7, 7, 7]),
        ([3, 3], [{"share": 0.7}, {"share": 0.3}], [3, 1]),  # 4 rows: 2.8 and 1.2
        ([0, 5], [{"share": 0.5}, {"share": 0.5}], [0, 0]),
    ],
)
def test_sizes_by_hand(available, drawing, expected):
    assert share_sizes(available, sources_of(*drawing)) == expected


def test_too_few_rows_are_an_error_that_names_the_source():
    with pytest.raises(PoolError, match=r"pool\.sources\.1 \(1\.jsonl\): count is 6, but 5 rows are left"):
        share_sizes([5, 5], sources_of({}, {"count": 6}))
    with pytest.raises(PoolError, match=r"pool\.sources\.0 \(few\): share 0\.5 is 7 rows, but 5 rows are left"):
        share_sizes([5, 7], sources_of({"share": 0.5, "name": "few"}, {}))


@quick
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 50)), min_size=2, max_size=5))
def test_shares_of_everything_hold_to_the_row_and_waste_none(parts):
    total = sum(weight for _, weight in parts)
    shares = [round(weight / total, 6) for _, weight in parts]
    available = [rows for rows, _ in parts]
    sizes = share_sizes(available, sources_of(*({"share": share} for share in shares)))
    assert all(size <= rows for size, rows in zip(sizes, available, strict=True))
    exact = [Fraction(repr(share)) / sum(Fraction(repr(s)) for s in shares) for share in shares]
    whole = sum(sizes)
    assert all(abs(size - share * whole) < 1 for size, share in zip(sizes, exact, strict=True))
    # One row more of the whole would ask more of some source than it has.
    assert any(share * (whole + 1) > rows for share, rows in zip(exact, available, strict=True))


@quick
@given(
    counts=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_every_row_is_taken_or_listed_once_whatever_the_order_of_the_sources(counts, seed, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    sources = []
    for number, count in enumerate(counts):
        path = answers(folder, f"s{number}", *(f"Answer {row}." for row in range(count)))
        sources.append({"path": path, "count": data.draw(st.integers(1, count))})
    pool = settings_of(*sources)
    pools = [load_sources([source]) for source in pool.sources]
    mixture = mix_pools(pools, pool, seed)
    assert mix_pools(pools, pool, seed) == mixture
    everything = [row.id for of_source in pools for row in of_source]
    taken, left_out = [row.id for row in mixture.pool], [row.id for row in mixture.pool.removed]
    assert sorted([*taken, *left_out]) == sorted(everything)
    assert [id for id in everything if id in set(taken)] == taken
    assert [c.taken for c in mixture.sources] == [source["count"] for source in sources]
    order = data.draw(st.permutations(range(len(counts))))
    other = settings_of(*(sources[number] for number in order))
    again = mix_pools([pools[number] for number in order], other, seed)
    assert {row.id for row in again.pool} == set(taken)


def test_removed_rows_are_written_without_empty_keys(tmp_path):
    rows = [
        RemovedRow("a:1:0", "a", "caf\udce9", 1, "length", "too long"),
        RemovedRow("a:2:0", "a", "a.jsonl", 2, "near_duplicate", "why", resembles="a:1:0", similarity=0.9),
    ]
    write_removed(rows, tmp_path / "removed.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "removed.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["id", "source", "file", "line", "filter", "reason"]
    assert lines[1]["similarity"] == 0.9
    pool = Pool((), (RejectedRow("a", 1, "x"),), tuple(rows))
    assert pool.take([]) == pool
