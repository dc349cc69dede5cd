"""Each kind of noise on hand-made rows: exactly what is changed, and what is left alone."""

from __future__ import annotations

import logging
import re

import pytest
from test_plant import pool_of, rows_of, spans_of, text_of

from tokenclean.errors import PoolError
from tokenclean.lab import NOISE_KINDS, NoiseSettings, plant
from tokenclean.lab.edits import sentence_spans
from tokenclean.lab.replaced_parts import name_spans, number_spans
from tokenclean.lab.wrong_passages import FOREIGN_SENTENCES
from tokenclean.pool import Pool

ALL = NoiseSettings(1.0, 1.0)
TOWNS = pool_of(
    "The tower of Lisbon is 52.5 m high. It was built in 1,519.",
    "1. We saw Anna Weiss\n2. She had 7 cats",
    "Bruno left. Then came Old Tom with 300 sheep!",
)


def content(pool: Pool, row: int) -> str:
    return pool[row].turns[1].content


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Is it 3.5? Yes.", ["One.", "Two!", "Is it 3.5?", "Yes."]),
        ('He said "no." Then left', ['He said "no."', "Then left"]),
        ("  Title\n\n- a point\n- another.", ["Title", "- a point", "- another."]),
        ("x", ["x"]),
        ("...", ["..."]),
        (" \n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[start:end] for start, end in sentence_spans(text)] == sentences


def test_names_are_capitalised_words_inside_a_sentence() -> None:
    names = [[content(TOWNS, row)[start:end] for start, end in name_spans(content(TOWNS, row))] for row in range(3)]
    assert names == [["Lisbon"], ["Anna Weiss"], ["Old Tom"]]


def test_numbers_of_a_list_are_no_numbers() -> None:
    numbers = [[content(TOWNS, row)[start:end] for start, end in number_spans(content(TOWNS, row))] for row in range(3)]
    assert numbers == [["52.5", "1,519"], ["7"], ["300"]]


@pytest.mark.parametrize("seed", range(5))
def test_changed_numbers_keep_their_form(seed: int) -> None:
    planted = plant(TOWNS, {"numbers": ALL}, seed=seed)
    assert [s.original for s in planted.spans] == ["52.5", "1,519", "7", "300"]
    for span in planted.spans:
        number = text_of(planted, span)
        assert number != span.original
        assert re.sub(r"\d", "0", number) == re.sub(r"\d", "0", span.original)
        assert number[0] != "0"
    assert re.sub(r"\d", "0", content(planted.pool, 1)) == re.sub(r"\d", "0", content(TOWNS, 1))
    assert content(planted.pool, 1).startswith("1. We saw Anna Weiss\n2. ")


def test_a_share_of_the_numbers() -> None:
    pool = pool_of("1 22 333 4444 55555 66 77 88")
    planted = plant(pool, {"numbers": NoiseSettings(1.0, 0.25)}, seed=0)
    assert len(planted.spans) == 2
    assert plant(pool, {"numbers": NoiseSettings(1.0, 0.0)}, seed=0).spans == ()


def test_names_come_from_other_rows() -> None:
    planted = plant(TOWNS, {"names": ALL}, seed=3)
    originals = {"Lisbon": 0, "Anna Weiss": 1, "Old Tom": 2}
    assert [s.original for s in planted.spans] == list(originals)
    for span in planted.spans:
        assert originals[text_of(planted, span)] != span.row


def test_a_swapped_answer_is_another_row_s_whole_last_answer() -> None:
    pool = pool_of(
        "one",
        [("user", "q"), ("assistant", "two"), ("user", "q"), ("assistant", "three")],
        "one",
    )
    planted = plant(pool, {"swapped": ALL}, seed=0)
    assert [(s.row, s.turn, s.original) for s in planted.spans] == [(0, 1, "one"), (1, 3, "three"), (2, 1, "one")]
    assert [text_of(planted, s) for s in planted.spans] == ["three", "one", "three"]
    assert planted.pool[1].turns[1].content == "two"
    assert plant(pool_of("same", "same"), {"swapped": ALL}, seed=0).spans == ()


def test_an_off_topic_sentence_is_another_row_s_and_has_four_words() -> None:
    planted = plant(TOWNS, {"off_topic": ALL}, seed=1)
    assert rows_of(planted, "off_topic") == {0, 1, 2}
    for span in planted.spans:
        added = text_of(planted, span)
        assert added[0] == " "
        sources = [row for row in range(3) if added[1:] in content(TOWNS, row)]
        assert sources
        assert span.row not in sources
        assert len(added.split()) >= 4
        before = content(planted.pool, span.row)[: span.start]
        assert before in [content(TOWNS, span.row)[:end] for _, end in sentence_spans(content(TOWNS, span.row))]


def test_one_sentence_gives_way_to_a_foreign_one() -> None:
    planted = plant(TOWNS, {"other_language": ALL}, seed=2)
    assert rows_of(planted, "other_language") == {0, 1, 2}
    for span in planted.spans:
        assert text_of(planted, span) in FOREIGN_SENTENCES
        clean = content(TOWNS, span.row)
        assert span.original in [clean[start:end] for start, end in sentence_spans(clean)]
    repeated = plant(pool_of(FOREIGN_SENTENCES[0]), {"other_language": ALL}, seed=0)
    assert text_of(repeated, repeated.spans[0]) != FOREIGN_SENTENCES[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_loop_repeats_a_sentence_behind_itself(seed: int) -> None:
    planted = plant(TOWNS, {"loops": ALL}, seed=seed)
    assert rows_of(planted, "loops") == {0, 1, 2}
    for span in planted.spans:
        looped = text_of(planted, span)
        sentences = [content(TOWNS, span.row)[start:end] for start, end in sentence_spans(content(TOWNS, span.row))]
        [sentence] = [s for s in sentences if looped.replace(f" {s}", "") == ""]
        assert 2 <= looped.count(f" {sentence}") <= 5
        assert content(planted.pool, span.row)[: span.start].endswith(sentence)


def test_paraphrased_phrases_hardly_repeat_word_for_word() -> None:
    pool = pool_of(*(f"answer {row}" for row in range(200)))
    texts = {kind: [text_of(p, s) for p in [plant(pool, {kind: ALL}, seed=0)] for s in p.spans] for kind in PHRASES}
    distinct = {kind: len(set(found)) / len(found) for kind, found in texts.items()}
    assert distinct["paraphrased"] > 0.7
    assert distinct["boilerplate"] < 0.15
    planted = plant(pool, {"paraphrased": ALL}, seed=0)
    assert all(turn.content == turn.content.strip() for row in planted.pool for turn in row.turns)


PHRASES = ("boilerplate", "paraphrased")


@pytest.mark.parametrize("kind", ["corrupted", "names", "swapped", "off_topic"])
def test_kinds_that_draw_from_other_rows_need_two(kind: str) -> None:
    with pytest.raises(PoolError, match=rf"noise '{kind}' draws its \w+ from other rows.*1 row"):
        plant(pool_of("We saw Anna."), {kind: ALL}, seed=0)


def test_where_two_kinds_meet_the_first_stays_and_a_warning_counts(caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of("It has 12 rooms.", "There are 7 of them here.")
    with caplog.at_level(logging.WARNING):
        planted = plant(pool, {"swapped": ALL, "numbers": ALL}, seed=0)
    assert [(s.kind, s.original) for s in planted.spans] == [("numbers", "12"), ("numbers", "7")]
    assert "noise 'swapped': 2 of 2 changes left out, where another kind's are" in caplog.text


@pytest.mark.parametrize("kind", list(NOISE_KINDS))
def test_the_seed_decides_every_kind(kind: str) -> None:
    first = plant(TOWNS, {kind: ALL}, seed=1)
    assert spans_of(first, kind)
    assert first == plant(TOWNS, {kind: ALL}, seed=1)
    assert any(first != plant(TOWNS, {kind: ALL}, seed=seed) for seed in range(2, 8))
