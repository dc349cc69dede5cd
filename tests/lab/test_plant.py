"""Planted noise: its truth is exact, and nothing else changes."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenclean.errors import PoolError, RecipeError
from tokenclean.lab import NOISE_KINDS, NoiseSettings, NoiseSpan, PlantedPool, plant
from tokenclean.lab.edits import word_spans
from tokenclean.lab.stock_phrases import CLOSERS, OPENERS
from tokenclean.pool.conversation import Conversation, LabelledTokens, Pool, ToolCall, Turn

BOTH = {"corrupted": NoiseSettings(), "boilerplate": NoiseSettings()}
EVERYWHERE = {kind: NoiseSettings(row_share=1.0) for kind in BOTH}
WORDS = ["river", "stone", "cloud", "amber", "seven", "tiger", "maple", "ocean", "candle", "winter", "garden", "silver"]


def pool_of(*rows: str | list[tuple[str, str]]) -> Pool:
    """A pool; a row is the answer to "Question?" or a list of (role, content)."""
    turns = [[("user", "Question?"), ("assistant", row)] if isinstance(row, str) else row for row in rows]
    return Pool(tuple(Conversation(f"s:{i}:x", "s", tuple(Turn(*t) for t in row)) for i, row in enumerate(turns)))  # type: ignore[arg-type]


def plain_pool(rows: int = 50, words: int = 20) -> Pool:
    answers = (" ".join(WORDS[(i * 7 + j * (i + 1)) % len(WORDS)] for j in range(words)) + "." for i in range(rows))
    return pool_of(*answers)


def rich_pool(rows: int = 57) -> Pool:
    """Every answer has words, a name, a number and two sentences, none like another row's."""
    names, plain = ["Anna Weiss", "Bruno", "Clara Fenn", "Dario"], plain_pool(rows)
    return pool_of(
        *(f"{c.turns[1].content} We met {names[i % 4]} in {1900 + i} there." for i, c in enumerate(plain.conversations))
    )


def text_of(planted: PlantedPool, span: NoiseSpan) -> str:
    return planted.pool[span.row].turns[span.turn].content[span.start : span.end]


def spans_of(planted: PlantedPool, kind: str) -> list[NoiseSpan]:
    return [span for span in planted.spans if span.kind == kind]


def rows_of(planted: PlantedPool, kind: str) -> set[int]:
    return {span.row for span in spans_of(planted, kind)}


# Words with and without case, combining marks, apostrophes, right-to-left, astral letters; what stands between words.
CASED = ["river", "stone", "The", "don't", "O’Neil", "naïve", "cafe\u0301", "Ärger", "Ж", "ﬁrst", "𝒳y"]
UNCASED = ["हिन्दी", "日本語", "مرحبا", "42nd"]
BETWEEN = [" ", "  ", "\n\n", "\t", ", ", ". ", "'", "''", "_", "—", "🙂", "\u0301", "(", ")"]
PIECES = st.sampled_from(CASED + UNCASED + BETWEEN)
CONTENTS = st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=12)
ROWS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENTS), max_size=4).flatmap(
    lambda turns: CONTENTS.map(lambda last: [*turns, ("assistant", last)])
)
POOLS = st.lists(ROWS, min_size=2, max_size=6).map(lambda rows: pool_of(*rows))
SHARES = st.floats(0, 1)
KINDS = st.fixed_dictionaries({}, optional={kind: st.builds(NoiseSettings, SHARES, SHARES) for kind in NOISE_KINDS})
SEEDS = st.integers(-5, 2**70)


@settings(max_examples=200, deadline=None)
@given(POOLS, KINDS, SEEDS)
@example(plain_pool(6), EVERYWHERE, 0)
def test_spans_are_in_bounds_in_order_and_the_only_change(
    pool: Pool, kinds: dict[str, NoiseSettings], seed: int
) -> None:
    planted = plant(pool, kinds, seed=seed)
    places = [(s.row, s.turn, s.start) for s in planted.spans]
    assert places == sorted(set(places))
    for row, (clean, dirty) in enumerate(zip(pool, planted.pool, strict=True)):
        assert replace(dirty, turns=clean.turns) == clean  # id, source, kind, place
        assert [t.role for t in dirty.turns] == [t.role for t in clean.turns]
        for turn, (before, after) in enumerate(zip(clean.turns, dirty.turns, strict=True)):
            spans = [s for s in planted.spans if (s.row, s.turn) == (row, turn)]
            assert before.role == "assistant" or not spans
            at_before, at_after = 0, 0
            for span in spans:  # an oracle of its own: walk both texts side by side
                assert at_after <= span.start < span.end <= len(after.content)
                outside = after.content[at_after : span.start]
                assert before.content.startswith(outside + span.original, at_before)
                at_before += len(outside) + len(span.original)
                at_after = span.end
            assert before.content[at_before:] == after.content[at_after:]


@settings(max_examples=200, deadline=None)
@given(POOLS, SEEDS, SHARES)
@example(plain_pool(6), 0, 1.0)
def test_a_corrupted_span_is_one_word_of_another_row(pool: Pool, seed: int, word_share: float) -> None:
    planted = plant(pool, {"corrupted": NoiseSettings(1.0, word_share)}, seed=seed)
    words = [
        {t.content[a:b].casefold() for t in c.turns if t.role == "assistant" for a, b in word_spans(t.content)}
        for c in pool
    ]
    for span in planted.spans:
        word, content = text_of(planted, span), planted.pool[span.row].turns[span.turn].content
        assert (span.start, span.end) in word_spans(content)
        assert len(word_spans(span.original)) == 1
        assert word.casefold() != span.original.casefold()
    ascii_spans = [s for s in planted.spans if text_of(planted, s).isascii() and s.original.isascii()]
    for span in ascii_spans:
        word = text_of(planted, span)
        assert any(word.casefold() in w for row, w in enumerate(words) if row != span.row)
        if word[0].isalpha() and span.original[0].isalpha():
            assert word[0].isupper() == span.original[0].isupper()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", list(NOISE_KINDS))
def test_exactly_the_asked_share_of_rows_is_damaged(kind: str, share: float) -> None:
    planted = plant(rich_pool(57), {kind: NoiseSettings(row_share=share)}, seed=3)
    assert len(rows_of(planted, kind)) == int(share * 57)


@pytest.mark.parametrize(("word_share", "words"), [(0.0, 0), (0.01, 1), (0.25, 5), (0.33, 7), (1.0, 20)])
def test_the_asked_share_of_words_is_replaced_in_each_turn(word_share: float, words: int) -> None:
    planted = plant(plain_pool(10, words=20), {"corrupted": NoiseSettings(1.0, word_share)}, seed=0)
    assert len(planted.spans) == 10 * words


def test_every_assistant_turn_of_a_chosen_row_is_corrupted_and_no_other_turn() -> None:
    chat = [("system", "be kind"), ("user", "hello there"), ("assistant", "river stone cloud amber")]
    pool = pool_of(
        [*chat, ("user", "and then"), ("assistant", "tiger maple ocean candle")], "winter garden silver bridge"
    )
    planted = plant(pool, {"corrupted": NoiseSettings(row_share=1.0)}, seed=1)
    assert [(s.row, s.turn) for s in planted.spans] == [(0, 2), (0, 4), (1, 1)]


def test_case_punctuation_and_quotes_stay() -> None:
    pool = pool_of("“Paris” is 'lovely' (in May); Élan, isn't it?", "stone Cloud stone")
    planted = plant(pool, {"corrupted": NoiseSettings(1.0, 1.0)}, seed=0)
    content = planted.pool[0].turns[1].content.replace("Cloud", "Stone").replace("cloud", "stone")
    assert content == "“Stone” stone 'stone' (stone Stone); Stone, stone stone?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't rock'n'roll O’Neil", ["don't", "rock'n'roll", "O’Neil"]),
        ("'quoted' dogs' ''", ["quoted", "dogs"]),
        ("snake_case x2 3.14", ["snake", "case", "x2", "3", "14"]),
        ("cafe\u0301 हिन्दी 日本語。", ["cafe\u0301", "हिन्दी", "日本語"]),
        (" \u0301 🙂 —", []),
    ],
)
def test_a_word_is_letters_marks_digits_and_inner_apostrophes(text: str, words: list[str]) -> None:
    assert [text[a:b] for a, b in word_spans(text)] == words


def test_boilerplate_is_stock_text_at_the_edges_and_at_least_one_a_row() -> None:
    planted = plant(plain_pool(200), {"boilerplate": NoiseSettings(row_share=1.0)}, seed=0)
    assert len(rows_of(planted, "boilerplate")) == 200
    openers = [s for s in planted.spans if s.start == 0]
    closers = [s for s in planted.spans if s.start > 0]
    assert {text_of(planted, s) for s in openers} == set(OPENERS)
    assert {text_of(planted, s) for s in closers} == set(CLOSERS)
    assert all(s.end == len(planted.pool[s.row].turns[s.turn].content) for s in closers)
    both = {s.row for s in openers} & {s.row for s in closers}
    assert 20 < len(both) < 90  # a quarter of the rows, had by two fair coins
    assert all(t.content == t.content.strip() for c in planted.pool for t in c.turns)


def test_the_stock_texts_keep_their_separator_on_the_inner_side() -> None:
    assert min(len(set(OPENERS)), len(set(CLOSERS))) >= 10
    assert all(o == o.lstrip() and o != o.rstrip() for o in OPENERS)
    assert all(c == c.rstrip() and c != c.lstrip() for c in CLOSERS)


def test_corrupted_spans_move_behind_an_opener_and_boilerplate_is_never_corrupted() -> None:
    pool = plain_pool(40)
    alone = plant(pool, {"corrupted": NoiseSettings(row_share=1.0)}, seed=5)
    both = plant(pool, EVERYWHERE, seed=5)
    moved, stock = spans_of(both, "corrupted"), spans_of(both, "boilerplate")
    assert [text_of(both, s) for s in moved] == [text_of(alone, s) for s in alone.spans]
    assert any(m.start > a.start for m, a in zip(moved, alone.spans, strict=True))
    assert all(text_of(both, s) in OPENERS + CLOSERS for s in stock)


@pytest.mark.parametrize("kind", [kind for kind in NOISE_KINDS if kind != "boilerplate"])
def test_another_kind_changes_neither_rows_nor_noise(kind: str) -> None:
    pool, stock = rich_pool(60), {"boilerplate": NoiseSettings()}
    alone, both = plant(pool, {kind: NoiseSettings()}, seed=11), plant(pool, {kind: NoiseSettings(), **stock}, seed=11)
    assert rows_of(both, "boilerplate") == rows_of(plant(pool, stock, seed=11), "boilerplate")
    assert rows_of(alone, kind) == rows_of(both, kind)
    noise = [[(s.row, s.turn, s.original, text_of(p, s)) for s in spans_of(p, kind)] for p in (alone, both)]
    assert noise[0] == noise[1]


def test_kinds_choose_their_rows_independently() -> None:
    planted = plant(plain_pool(200), BOTH, seed=0)
    shared = rows_of(planted, "corrupted") & rows_of(planted, "boilerplate")
    assert 5 <= len(shared) <= 32  # 18 expected of 60 and 60 in 200


def test_the_seed_decides_everything_and_the_order_of_kinds_nothing() -> None:
    pool = plain_pool()
    first = plant(pool, BOTH, seed=1)
    assert first == plant(pool, dict(reversed(BOTH.items())), seed=1)
    assert first != plant(pool, BOTH, seed=2)


def test_no_kind_leaves_the_pool_as_it_is() -> None:
    pool = plain_pool(3)
    assert plant(pool, {}, seed=0) == PlantedPool(pool, ())


@pytest.mark.parametrize("kind", list(NOISE_KINDS))
def test_a_pool_that_cannot_take_a_kind_is_left_as_it_is(kind: str) -> None:
    pool = pool_of("", " \n")
    assert plant(pool, {kind: NoiseSettings(1.0, 1.0)}, seed=0) == PlantedPool(pool, ())


@pytest.mark.parametrize("kind", ["corrupted", "other_language", "swapped", "loops", "boilerplate", "paraphrased"])
def test_rows_that_cannot_take_noise_are_passed_over(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of("", " \n", "", "river stone", "cloud amber")
    planted = plant(pool, {kind: NoiseSettings(row_share=0.4)}, seed=0)
    assert rows_of(planted, kind) == {3, 4}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert rows_of(plant(pool, {kind: NoiseSettings(row_share=1.0)}, seed=0), kind) == {3, 4}
    assert "5 rows were asked for, but only 2 can take it" in caplog.text


def test_calls_text_and_tokens_are_taken_as_they_come() -> None:
    calls = (ToolCall("search", '{"q": "river"}'),)
    agent = (
        Turn("user", "Where?"),
        Turn("assistant", "", "Search first.", calls),
        Turn("tool", "stone", name="search", call_id="1"),
        Turn("assistant", "cloud amber", "So.", is_trained=False),
    )
    tokens = LabelledTokens(np.arange(3), np.array([False, True, True]))
    clean = Pool(
        (
            Conversation("a", "s", agent, tools="[{}]"),
            Conversation("b", "s", (Turn("assistant", "seven tiger"),), "text"),
            Conversation("c", "s", (), "tokens", tokens=tokens),
        )
    )
    planted = plant(clean, EVERYWHERE, seed=0)
    assert {(s.row, s.turn) for s in planted.spans} == {(0, 3), (1, 0)}
    assert planted.pool[2] is clean[2]
    for before, after in zip(clean, planted.pool, strict=True):
        turns = tuple(replace(t, content=b.content) for t, b in zip(after.turns, before.turns, strict=True))
        assert replace(after, turns=turns) == before


def test_a_rare_other_word_is_found_and_no_other_word_is_no_noise() -> None:
    common = " ".join(["same"] * 300)
    planted = plant(pool_of("Same", common + " other"), {"corrupted": NoiseSettings(row_share=1.0)}, seed=0)
    assert [text_of(planted, s) for s in planted.spans if s.row == 0] == ["Other"]
    assert plant(pool_of("same", "SAME same"), {"corrupted": NoiseSettings(row_share=1.0)}, seed=0).spans == ()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_an_error_that_lists_both(share: float) -> None:
    with pytest.raises(RecipeError, match="row_share must lie in") as caught:
        NoiseSettings(share, share)
    assert isinstance(caught.value, ValueError)
    assert len(caught.value.problems) == 2


def test_corrupted_needs_two_rows_and_boilerplate_one() -> None:
    with pytest.raises(PoolError, match=r"draws its words from other rows.*1 row"):
        plant(pool_of("river stone"), BOTH, seed=0)
    assert len(plant(pool_of("river stone"), {"boilerplate": NoiseSettings(1.0)}, seed=0).spans) > 0


def test_an_unknown_kind_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="unknown: 'corupted'; expected one of corrupted, numbers"):
        plant(plain_pool(3), {"corupted": NoiseSettings()}, seed=0)
