"""What a table kept, counted: against loops in plain Python, over tables of several parts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.ragged import Ragged
from tokenclean.report.selection_statistics import BINS, Share, overlap, standing_out, summarize
from tokenclean.report.viewer.ranked_table import take_rows
from tokenclean.report.viewer.token_spans import SpanDecoder
from tokenclean.selection import jaccard
from tokenclean.token_table import TokenTable, open_table, write_table
from viewer_tables import byte_level, encode, prose, table_of


def answers_of(is_response: np.ndarray) -> list[list[int]]:
    """Places of each unbroken stretch of targets of a row."""
    answers: list[list[int]] = []
    for place, is_target in enumerate(is_response.tolist()):
        if is_target:
            if place and is_response[place - 1]:
                answers[-1].append(place)
            else:
                answers.append([place])
    return answers


def group_of(position: int) -> str:
    last = 1
    while last < position:
        last *= 2
    return str(last) if last < 3 else f"{last // 2 + 1}–{last}"


@st.composite
def tables(draw) -> TokenTable:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 8))
    lengths = rng.integers(1, 30, count)
    is_response = Ragged.from_rows([rng.random(n) < draw(st.sampled_from([0.2, 0.5, 0.9])) for n in lengths], np.bool_)
    ids = is_response.with_values(rng.integers(0, 12, len(is_response.values)).astype(np.int32))
    is_kept = is_response.with_values(is_response.values & (rng.random(len(is_response.values)) < 0.6))
    score = np.where(
        is_response.values & (rng.random(len(is_response.values)) < 0.9), rng.normal(size=len(ids.values)), np.nan
    )
    columns = {"input_ids": ids, "is_response": is_response, "is_kept": is_kept}
    if draw(st.booleans()):
        columns["score"] = ids.with_values(score.astype(np.float32))
    sources = tuple(rng.choice(["a", "b", "c"], count).tolist())
    return TokenTable(tuple(f"r{n}" for n in range(count)), sources, columns, {})


@settings(max_examples=40)
@given(tables(), st.integers(1, 4))
def test_shares_are_those_of_a_loop(tmp_path_factory, table, rows_a_part):
    path = tmp_path_factory.mktemp("tables") / "kept.parquet"
    with open_table(path, {}) as writer:
        for first in range(0, len(table), rows_a_part):
            writer.write(take_rows([table], np.arange(first, min(len(table), first + rows_a_part))))
    found = summarize(path, "run", "fixed_model")

    expected: dict[str, Counter] = {name: Counter() for name in ("source", "turn", "position", "token")}
    kept: dict[str, Counter] = {name: Counter() for name in expected}
    emptied = 0
    for row in range(len(table)):
        labels = table["is_kept"][row]
        answers = answers_of(table["is_response"][row])
        emptied += bool(answers) and not labels.any()
        for number, answer in enumerate(answers, start=1):
            for position, place in enumerate(answer, start=1):
                keys = {
                    "source": table.sources[row],
                    "turn": str(number) if number < 12 else "12+",
                    "position": group_of(position),
                    "token": int(table["input_ids"][row][place]),
                }
                for name, key in keys.items():
                    expected[name][key] += 1
                    kept[name][key] += int(labels[place])
    for name, shares in (("source", found.by_source), ("turn", found.by_turn), ("position", found.by_position)):
        assert {key: (share.tokens, share.kept) for key, share in shares.items()} == {
            key: (count, kept[name][key]) for key, count in expected[name].items()
        }
    assert found.total == Share(int(table["is_response"].values.sum()), int(table["is_kept"].values.sum()))
    assert found.emptied_rows == emptied
    if found.histogram is not None:
        scored = np.isfinite(table["score"].values) & table["is_response"].values
        assert found.histogram.kept.sum() == (scored & table["is_kept"].values).sum()
        assert found.histogram.dropped.sum() == (scored & ~table["is_kept"].values).sum()
        assert found.histogram.unscored == found.total.tokens - scored.sum()
        parts = found.source_histograms.values()
        np.testing.assert_array_equal(sum(part.kept for part in parts), found.histogram.kept)


@pytest.fixture(scope="module")
def table() -> TokenTable:
    return table_of(byte_level(), prose(40))


@pytest.fixture
def path(table, tmp_path) -> Path:
    write_table(table, tmp_path / "kept.parquet")
    return tmp_path / "kept.parquet"


def test_bins_hold_the_scores_between_their_edges(table, path):
    histogram = summarize(path, "run", "fixed_model").histogram
    assert histogram is not None
    assert len(histogram.edges) == BINS + 1
    scores = table["score"].values[table["is_response"].values]
    whole = histogram.kept + histogram.dropped
    for number in range(1, BINS - 1):
        low, high = histogram.edges[number : number + 2]
        assert whole[number] == np.count_nonzero((scores >= low) & (scores < high))
    assert whole[0] == np.count_nonzero(scores < histogram.edges[1])
    assert whole[-1] == np.count_nonzero(scores >= histogram.edges[-2])


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=80), st.booleans())
def test_tokens_stand_out_by_frequency_and_side(pairs, of_kept):
    token_R = np.array([token for token, _ in pairs], dtype=np.int32)
    kept_R = np.array([is_kept for _, is_kept in pairs])
    found = standing_out(token_R, kept_R, 3, of_kept=of_kept).tolist()
    share = np.mean(kept_R == of_kept)
    excess = {
        t: sum(k == of_kept for u, k in pairs if u == t) - share * sum(u == t for u, _ in pairs) for t, _ in pairs
    }
    ranked = sorted((t for t in excess if excess[t] > 1e-12), key=lambda t: (-round(excess[t], 9), t))
    assert [round(excess[t], 9) for t in found] == [round(excess[t], 9) for t in ranked[:3]]


def test_examples_show_a_token_where_it_is_dropped(table, path):
    found = summarize(path, "run", "fixed_model", SpanDecoder(byte_level()), examples=5)
    assert len(found.dropped) == len(found.kept) == 5
    texts = [byte_level().decode(row.tolist()) for row in table["input_ids"]]
    for examples, is_kept in ((found.dropped, False), (found.kept, True)):
        for example in examples:
            is_it = (table["input_ids"].values == example.token) & table["is_response"].values
            assert example.share == Share(int(is_it.sum()), int((is_it & table["is_kept"].values).sum()))
            assert example.text == example.piece
            shown = example.before.removeprefix("…") + example.text + example.after.removesuffix("…")
            assert any(shown in text for text in texts)
            assert (is_it & (table["is_kept"].values == is_kept)).any()
    assert all(
        d.share.value < found.total.value < k.share.value for d, k in zip(found.dropped, found.kept, strict=True)
    )


def test_a_token_that_is_part_of_a_character_is_shown_with_all_of_it(tmp_path):
    tokenizer = byte_level()
    ids = Ragged.from_rows([encode(tokenizer, "Question 👍 good 👍 good 👍")], np.int32)
    is_response = ids.with_values(np.arange(len(ids.values)) > 0)
    thumb = encode(tokenizer, "👍")
    is_kept = is_response.with_values(is_response.values & ~np.isin(ids.values, thumb))
    columns = {"input_ids": ids, "is_response": is_response, "is_kept": is_kept}
    write_table(TokenTable(("r",), ("s",), columns, {}), tmp_path / "t.parquet")
    found = summarize(tmp_path / "t.parquet", "run", "given", SpanDecoder(tokenizer), examples=3)
    assert {example.text for example in found.dropped} == {"👍"}


def test_overlap_is_the_jaccard_of_the_same_tokens(tmp_path, table, path):
    other = table_of(byte_level(), prose(40), seed=3)
    different = table_of(byte_level(), prose(39))
    for number, made in enumerate((other, different)):
        write_table(made, tmp_path / f"{number}.parquet")
    one, two, three = (summarize(p, "r", "s") for p in (path, tmp_path / "0.parquet", tmp_path / "1.parquet"))
    assert overlap(one, two) == pytest.approx(jaccard(table["is_kept"], other["is_kept"]))
    assert overlap(one, one) == 1.0
    assert overlap(one, three) is None


def test_a_table_without_labels_or_scores_keeps_everything(tmp_path, table):
    columns = {name: table[name] for name in ("input_ids", "is_response")}
    write_table(TokenTable(table.ids, table.sources, columns, {}), tmp_path / "t.parquet")
    found = summarize(tmp_path / "t.parquet", "run", "full_tokens", SpanDecoder(byte_level()))
    assert not found.is_selecting
    assert found.histogram is None
    assert (found.dropped, found.kept) == ((), ())
