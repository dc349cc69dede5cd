"""What the viewer shows: characters of tokens, ranks and shares of the whole pool, samples, and how all is packed."""

from __future__ import annotations

import base64
import html
import json
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.errors import MissingExtraError, TableError
from tokenclean.ragged import Ragged
from tokenclean.report.viewer.page import render_page, script_json, write_page
from tokenclean.report.viewer.page_data import ViewedTable, open_view, page_data
from tokenclean.report.viewer.ranked_table import (
    NOT_RANKED,
    STEPS,
    Sample,
    choose_rows,
    count_cuts,
    pool_ranks,
    survey_table,
    take_rows,
)
from tokenclean.report.viewer.terminal import terminal_text
from tokenclean.report.viewer.token_spans import SpanDecoder
from tokenclean.selection import kept_count, select_tokens
from tokenclean.token_table import TokenTable, open_table
from viewer_tables import byte_fallback, byte_level, encode, prose, table_of

FAMILY = "👨‍👩‍👧‍👦"
TEXTS = (
    "plain the water of the garden",
    "  two spaces, \t a tab\r\nand lines\n\n",
    "水は流れる、庭の石。",
    "مرحبا بالعالم، كيف حالك؟",
    f"a {FAMILY} and 👍🏽, 🇩🇪🇫🇷, ❤️",
    "e\u0301 a\u0308\u0323 नमस्ते क्षत्रिय 각각 \u1112\u1161\u11ab กำ",
    "<script>alert(1)</script> </textarea> <!-- \u202e override \u2066 isolate \x00 \x1b[31m",
    "\ufffd genuine \ufffd",
    "",
)
CHARACTERS = (
    *(FAMILY, "👍🏽", "🇩🇪", "❤️", "e\u0301", "a\u0308\u0323", "石", "é"),
    *("क्ष", "ते", "\u1112\u1161\u11ab", "กำ"),  # conjunct, vowel sign, jamo, a vowel that stands behind
)


def check_spans(tokenizer, ids: np.ndarray) -> list[tuple[str, int]]:
    """Spans cover text and tokens once and in order; returns each one's characters and number of tokens."""
    decoded = SpanDecoder(tokenizer).decode(ids)
    assert decoded.text == tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    assert int(decoded.lengths.sum()) == len(decoded.text)
    spans = list(decoded.spans())
    at_token = at_character = 0
    for token, behind, start, end in spans:
        assert (token, start) == (at_token, at_character)
        assert behind > token
        at_token, at_character = behind, end
    assert (at_token, at_character) == (len(ids), len(decoded.text))
    assert all(end > start for *_, start, end in spans) or len(spans) <= 1
    return [(decoded.text[start:end], behind - token) for token, behind, start, end in spans]


@pytest.mark.parametrize("made", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", TEXTS)
def test_spans_cover_the_text(made, text):
    check_spans(made(), encode(made(), text))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.sampled_from([byte_level, byte_fallback]))
def test_spans_cover_any_text(text, made):
    check_spans(made(), encode(made(), text))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 268), max_size=30), st.sampled_from([byte_level, byte_fallback]))
def test_spans_cover_invalid_bytes(ids, made):
    check_spans(made(), np.array(ids, dtype=np.int64))


@pytest.mark.parametrize("made", [byte_level, byte_fallback])
@pytest.mark.parametrize("character", CHARACTERS)
def test_what_a_reader_sees_as_one_character_is_one_span(made, character):
    ids = encode(made(), f"x{character}y")
    spans = check_spans(made(), ids)
    assert spans[-2:] == [(character, len(ids) - len(encode(made(), "xy"))), ("y", 1)]


def test_flags_pair_up_and_letters_stand_alone():
    spans = check_spans(byte_level(), encode(byte_level(), "🇩🇪🇫🇷با"))
    assert [text for text, _ in spans] == ["🇩🇪", "🇫🇷", "ب", "ا"]


def test_pieces_show_their_bytes():
    decoder = SpanDecoder(byte_level())
    ids = encode(byte_level(), "石</s>⌘end⌘ the")
    assert [decoder.piece(token) for token in ids.tolist()] == ["\\xe7", "\\x9f", "\\xb3", "</s>", "⌘end⌘", " the"]


def test_a_long_invalid_row_takes_no_time():
    ids = np.tile(encode(byte_level(), "é")[:1], 200_000)
    assert SpanDecoder(byte_level()).decode(ids).text == "\ufffd" * 200_000


# Scores with many ties, both zeros among them.
SCORES = st.lists(
    st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 2.0, 3.5]) | st.floats(-5, 5, width=32), max_size=8),
    min_size=1,
    max_size=8,
)


def scored_table(rows: list[list[float]], sources: str = "abc") -> TokenTable:
    """A prompt token before the scores of each row."""
    scores = Ragged.from_rows([[np.nan, *row] for row in rows], np.float32)
    is_response = Ragged.from_rows([[False] + [True] * len(row) for row in rows], np.bool_)
    columns = {"input_ids": scores.map_values(lambda v: np.zeros(len(v), np.int64)), "is_response": is_response}
    names = tuple(sources[row % len(sources)] for row in range(len(rows)))
    return TokenTable(tuple(f"{row}" for row in range(len(rows))), names, {**columns, "score": scores})


@settings(max_examples=150, deadline=None)
@given(SCORES, st.floats(0, 1))
def test_cuts_by_rank_are_the_global_selection(rows, proportion):
    table = scored_table(rows)
    survey = survey_table([table])
    ranks_R = pool_ranks(survey.scores_R)
    kept = select_tokens(table["score"], table["is_response"], proportion=proportion)
    is_cut = ranks_R < kept_count(len(ranks_R), proportion)
    assert is_cut.tolist() == kept.values[table["is_response"].values].tolist()


@settings(max_examples=30, deadline=None)
@given(SCORES, st.integers(0, STEPS))
def test_shares_are_those_of_the_selection(rows, step):
    table = scored_table(rows)
    survey = survey_table([table])
    source_R = np.repeat(np.arange(len(rows)), np.diff(survey.responses)) % 3
    counts, thresholds = count_cuts(survey.scores_R, pool_ranks(survey.scores_R), source_R, 3)
    kept = select_tokens(table["score"], table["is_response"], proportion=step / STEPS)
    kept_R = kept.values[table["is_response"].values]
    assert counts[step].tolist() == np.bincount(source_R[kept_R], minlength=3).tolist()
    lowest = survey.scores_R[kept_R].min(initial=np.inf)
    assert thresholds[step] == lowest or (np.isnan(thresholds[step]) and not kept_R.any())


def test_tokens_without_a_score_keep_their_label():
    table = scored_table([[1.0, np.nan], [np.nan, 3.0, np.inf]])
    kept = table["is_response"].with_values(np.array([False, False, True, False, False, True, False]))
    table = table.with_columns({"selection": {"proportion": 0.5, "level": "sample"}}, is_kept=kept)
    view = open_view([ViewedTable.of_table("t", table)], byte_level())
    shown = view.tables[0]
    assert shown.ranks_R.tolist() == [1, NOT_RANKED, NOT_RANKED, 0, NOT_RANKED]
    assert shown.kept_R(None).tolist() == [False, True, False, True, False]
    assert shown.kept_R(1.0).tolist() == [True, True, False, True, False]
    data = page_data(view)["tables"][0]
    assert data["ranked"] == 2
    assert (data["shares"]["sources"], data["shares"]["keptUnranked"]) == (["b", "a"], [0, 1])
    assert data["notes"][0].startswith("3 of 5 response tokens have no score and keep the table's label")


def test_labels_that_are_no_cut_of_the_pool_are_told():
    table = table_of(byte_level(), prose(20))
    by_row = select_tokens(table["score"], table["is_response"], proportion=0.6, level="sample")
    reported = {"selection": {"proportion": 0.6, "level": "sample"}}
    notes = [
        page_data(open_view([ViewedTable.of_table("t", t)], byte_level()))["tables"][0]["notes"]
        for t in (table, table.with_columns(reported, is_kept=by_row))
    ]
    assert notes[0] == []
    differing = int(np.count_nonzero(by_row.values != table["is_kept"].values))
    assert notes[1][0].startswith("The table's own labels are not one cut of the whole pool, at level sample")
    assert f"gives {differing:,} of" in notes[1][0]


def test_a_table_without_scores_has_no_ranking():
    table = table_of(byte_level(), prose(5))
    columns = {name: table[name] for name in ("input_ids", "is_response", "is_kept")}
    unscored = TokenTable(table.ids, table.sources, columns)
    data = page_data(open_view([ViewedTable.of_table("random", unscored)], byte_level()))["tables"][0]
    assert data["ranks"] is None
    assert data["values"] == {}
    assert "cuts" not in data["shares"]
    assert data["notes"] == ["The table has no scores, so there is no ranking and no slider."]
    assert (data["done"], data["noise"]) == ("", None)


def test_what_a_strategy_without_scores_did_is_said_with_the_noise_that_it_estimated():
    table = table_of(byte_level(), prose(3), strategy="noise_mixture")
    columns = {name: table[name] for name in ("input_ids", "is_response", "is_kept")}
    unscored = TokenTable(table.ids, table.sources, columns, table.metadata)
    noise = {table.ids[0]: 0.25, table.ids[2]: 0.0}
    view = open_view([ViewedTable("noise_mixture", lambda: [unscored], noise)], byte_level())
    data = page_data(view)["tables"][0]
    assert data["done"].startswith("noise_mixture drops no token by itself: it weighs each by how little it looks like")
    assert data["done"].endswith("each conversation is shown with the noise rate that it estimated")
    assert data["noise"] == [0.25, None, 0.0]
    headings = [heading for heading, _ in terminal_text(view, coloured=False)]
    assert headings[0].endswith(", estimated noise 25.0%")
    assert "noise" not in headings[1].partition("  ")[2]
    scored = open_view([ViewedTable.of_table("t", table)], byte_level())
    assert scored.tables[0].done == ""  # its scores show it


def unpacked(packed: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), dtype)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_values_survive_packing(values):
    table = scored_table([values])
    table = table.with_columns({}, base_loss=table["score"])
    packed = page_data(open_view([ViewedTable.of_table("t", table)], byte_level()))["tables"][0]["values"]["base_loss"]
    found = np.ldexp(unpacked(packed["half"], "<f2").astype(np.float64), packed["power"])
    exact = np.array(values, dtype=np.float32).astype(np.float64)
    assert np.all(np.abs(found - exact) <= np.abs(exact) * 0.0005 + 2e-9 * np.abs(exact).max())


def test_packed_columns_are_the_table():
    conversations = [*prose(30), ("kitchen", "Question 😀", "石 the 👨‍👩‍👧 water\n" * 40), ("kitchen", "", "x")]
    table = table_of(byte_level(), conversations)
    data = page_data(open_view([ViewedTable.of_table("t", table)], byte_level()))
    assert unpacked(data["counts"], "<u4").tolist() == table["input_ids"].lengths.tolist()
    pieces = np.array(data["pieceIds"])[unpacked(data["pieceOf"], "<u4")]
    assert pieces.tolist() == table["input_ids"].values.tolist()
    stored = data["tables"][0]
    is_response = table["is_response"].values
    bits = np.unpackbits(unpacked(stored["response"], "u1"), bitorder="little")[: len(is_response)]
    assert bits.astype(bool).tolist() == is_response.tolist()
    kept = np.unpackbits(unpacked(stored["kept"], "u1"), bitorder="little")[: is_response.sum()]
    assert kept.astype(bool).tolist() == table["is_kept"].values[is_response].tolist()
    assert unpacked(stored["ranks"], "<u4").tolist() == pool_ranks(table["score"].values[is_response]).tolist()
    texts = [source + text for source, text in zip(table.sources, data["texts"], strict=True)]
    assert texts == [source + prompt + answer for source, prompt, answer in conversations]
    # As JavaScript counts: UTF-16 units.
    units = [len(text.encode("utf-16-le")) // 2 for text in data["texts"]]
    numbers = numbers_of(base64.b64decode(data["lengths"]))
    assert [sum(numbers[a:b]) for a, b in pairwise(table["input_ids"].offsets)] == units
    json.dumps(data, allow_nan=False)


def numbers_of(digits: bytes) -> list[int]:
    numbers, value, shift = [], 0, 0
    for digit in digits:
        value |= (digit & 127) << shift
        shift += 7
        if digit < 128:
            numbers.append(value)
            value = shift = 0
    return numbers


def test_a_long_character_is_counted_in_full():
    text = "a" + "\u0301" * 40_000
    ids = encode(byte_level(), text)
    columns = {"input_ids": Ragged.from_rows([ids]), "is_response": Ragged.from_rows([np.ones(len(ids), bool)])}
    data = page_data(open_view([ViewedTable.of_table("t", TokenTable(("1",), ("s",), columns))], byte_level()))
    assert sum(numbers_of(base64.b64decode(data["lengths"]))) == 40_001


def test_a_small_pool_is_shown_whole_and_in_order():
    lengths = np.array([5, 0, 7])
    assert choose_rows("aba", lengths, Sample(3, 12)).tolist() == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(10, 200),
    st.integers(0, 5),
)
def test_a_sample_keeps_to_its_bounds(rows, most, tokens, seed):
    sources = [source for source, _ in rows]
    lengths = np.array([length for _, length in rows])
    chosen = choose_rows(sources, lengths, Sample(most, tokens, seed))
    again = choose_rows(sources, lengths, Sample(most, tokens, seed))
    assert chosen.tolist() == again.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) <= most
    assert lengths[chosen].sum() <= tokens
    fitting = np.flatnonzero(lengths <= tokens)
    if len(fitting) > most:
        assert len(chosen) == most or lengths[chosen].sum() + lengths[fitting].max() > tokens


def test_a_sample_has_each_source_in_proportion():
    sources = ["big"] * 900 + ["small"] * 99 + ["one"]
    chosen = choose_rows(sources, np.ones(1000, int), Sample(100, 1000, 3))
    counts = {name: sum(sources[row] == name for row in chosen) for name in ("big", "small", "one")}
    assert counts["one"] == 1
    assert counts["big"] in (89, 90)
    assert counts["small"] in (9, 10)


def test_rows_are_taken_from_parts_in_the_given_order(tmp_path):
    whole = table_of(byte_level(), prose(9))
    path = tmp_path / "parts.parquet"
    with open_table(path, whole.metadata) as writer:
        for rows in ([0, 1, 2, 3], [4], [5, 6, 7, 8]):
            columns = {name: column.take(rows) for name, column in whole.columns.items()}
            writer.write(TokenTable(whole.ids[rows[0] : rows[-1] + 1], whole.sources[rows[0] : rows[-1] + 1], columns))
    rows = np.array([7, 0, 4, 8])
    taken = take_rows(ViewedTable.of_file("t", path).parts(), rows)
    assert taken.ids == tuple(whole.ids[row] for row in rows)
    for name in ("input_ids", "score", "is_kept"):
        assert np.array_equal(taken[name].values, whole[name].take(rows).values, equal_nan=name == "score")
    in_parts, at_once = (
        page_data(open_view([ViewedTable.of_file("t", path)], byte_level())),
        page_data(open_view([ViewedTable.of_table("t", whole)], byte_level())),
    )
    assert in_parts == at_once


def reordered(table: TokenTable, rows: list[int]) -> TokenTable:
    columns = {name: column.take(rows) for name, column in table.columns.items()}
    return TokenTable(tuple(table.ids[r] for r in rows), tuple(table.sources[r] for r in rows), columns, table.metadata)


def test_two_tables_are_matched_by_id_and_tokens():
    first = table_of(byte_level(), prose(12), seed=1)
    second = table_of(byte_level(), prose(12), seed=2, proportion=0.3)
    other_tokens = second["input_ids"].values.copy()
    other_tokens[int(second["input_ids"].offsets[5])] = 1
    second = second.with_columns({}, input_ids=second["input_ids"].with_values(other_tokens))
    second = reordered(second, [11, 3, 2, 5, 1, 0])
    view = open_view([ViewedTable.of_table("a", first), ViewedTable.of_table("b", second)], byte_level())
    assert [shown.table.ids for shown in view.tables] == [tuple(first.ids[r] for r in (0, 1, 2, 3, 11))] * 2
    assert view.tables[1].rows.tolist() == [5, 4, 2, 1, 0]
    assert view.unmatched == 7 + 1
    data = page_data(view)
    is_response = view.tables[1].table["is_response"].values
    kept = np.unpackbits(unpacked(data["tables"][1]["kept"], "u1"), bitorder="little")[: is_response.sum()]
    assert kept.astype(bool).tolist() == view.tables[1].table["is_kept"].values[is_response].tolist()


def test_tables_with_nothing_to_show():
    table, other = table_of(byte_level(), prose(3)), table_of(byte_level(), prose(3, seed=5))
    with pytest.raises(TableError, match="have no conversation in common"):
        open_view([ViewedTable.of_table("a", table), ViewedTable.of_table("b", other)], byte_level())
    with pytest.raises(TableError, match="t: holds no row"):
        open_view([ViewedTable.of_table("t", reordered(table, []))], byte_level())
    with pytest.raises(TableError, match="every row has more than 2 tokens"):
        open_view([ViewedTable.of_table("t", table)], byte_level(), Sample(tokens=2))
    far = table.with_columns({}, input_ids=table["input_ids"].map_values(lambda v: v + 1_000_000))
    with pytest.raises(TableError, match="give the tokenizer of the base model"):
        open_view([ViewedTable.of_table("t", far)], byte_level())


def test_small_sources_are_counted_together():
    table = table_of(byte_level(), [(f"s{number}", "q", "an answer") for number in range(250)])
    shares = page_data(open_view([ViewedTable.of_table("t", table)], byte_level()))["tables"][0]["shares"]
    assert len(shares["sources"]) == 201
    assert shares["sources"][-1] == "(50 smaller sources)"
    assert sum(shares["tokens"]) == int(table["is_response"].values.sum())
    assert sum(shares["own"]) == int(table["is_kept"].values.sum())


HOSTILE = ["</script><script>alert(1)</script>", "<!-- <script>", "]]>", "</textarea>", "\u2028\u2029\x00\x1b", "&lt;"]


def test_json_in_a_script_ends_nowhere():
    text = script_json({"texts": HOSTILE, "lone": "\udc80"})
    assert "<" not in text
    assert ">" not in text
    assert "&" not in text
    assert json.loads(text)["texts"] == HOSTILE


def test_a_hostile_table_adds_no_element_to_the_page(tmp_path):
    table = table_of(byte_level(), [(text, text, text) for text in HOSTILE])
    table = TokenTable(tuple(HOSTILE), table.sources, table.columns, table.metadata)
    view = open_view([ViewedTable.of_table("<b>bold</b>\udc80", table)], byte_level())
    plain = render_page(open_view([ViewedTable.of_table("t", table)], byte_level()), title="t")
    page = render_page(view, title="<img src=x onerror=alert(1)>")
    for tag in ("<script", "</script", "<img", "<b>", "<textarea"):
        assert page.count(tag) == plain.count(tag)
    write_page(view, tmp_path / "page.html", title="t")
    assert (tmp_path / "page.html").read_bytes().decode("utf-8").startswith("<!doctype html>")


def test_the_page_names_no_address():
    page = render_page(
        open_view([ViewedTable.of_table("t", table_of(byte_level(), prose(3)))], byte_level()), title="t"
    )
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in html.unescape(page)


def test_without_jinja2_the_extra_is_named(monkeypatch, tmp_path):
    view = open_view([ViewedTable.of_table("t", table_of(byte_level(), prose(3)))], byte_level())
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"tokenclean\[report\]"):
        write_page(view, tmp_path / "page.html", title="t")


def test_terminal_marks():
    ids = encode(byte_level(), "Question\x1b the water\u202e of")
    columns = {
        "input_ids": Ragged.from_rows([ids]),
        "is_response": Ragged.from_rows([np.arange(len(ids)) > 1]),
    }
    kept = Ragged.from_rows([np.arange(len(ids)) == 2])
    first = TokenTable(("r\x07",), ("s",), {**columns, "is_kept": kept})
    other = TokenTable(("r\x07",), ("s",), {**columns, "is_kept": columns["is_response"]})
    view = open_view([ViewedTable.of_table("t", first)], byte_level())
    ((heading, text),) = terminal_text(view, coloured=False)
    assert heading == f"r␇  {len(ids)} tokens, {len(ids) - 2} targets, 1 kept"
    assert text.plain == "Question␛⟦ the⟧~ water‹U+202E› of~"
    both = open_view([ViewedTable.of_table("a", first), ViewedTable.of_table("b", other)], byte_level())
    (_, a), (_, b) = terminal_text(both, coloured=False)
    assert a.plain == "Question␛⟦ the⟧≠~ water‹U+202E› of~"
    assert b.plain == "Question␛⟦ the⟧≠⟦ water‹U+202E› of⟧"


def test_terminal_colours():
    view = open_view([ViewedTable.of_table("t", table_of(byte_level(), prose(2)))], byte_level())
    for paint in ("kept", "score"):
        texts = [text for _, text in terminal_text(view, proportion=0.5, paint=paint)]
        assert [text.plain for text in texts] == [spans.text for spans in view.spans]
        assert len({span.style for span in texts[0].spans}) > 2
