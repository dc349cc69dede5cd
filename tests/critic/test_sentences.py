"""What is one sentence to a critic: prose by sentences, code, formulas and rows of tables whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.critic.sentences import Sentence, judged_spans, sentences_of
from tokenclean.pool import Conversation, LabelledTokens, Turn


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in judged_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It is 3.5 m. J. Doe measured it. No. Yes.", ["It is 3.5 m.", "J. Doe measured it.", "No.", "Yes."]),
        ("Ask Dr. Smith, e.g. today. Then go.", ["Ask Dr. Smith, e.g. today.", "Then go."]),
        ("1. The Volga is long.\n2. So is the Nile. Yes.", ["1. The Volga is long.", "2. So is the Nile.", "Yes."]),
        ("Take\n- eggs\n- milk\n", ["Take", "- eggs", "- milk"]),
        ("42", ["42"]),
        ("Above.\n\n---\n\n***\nBelow.", ["Above.", "Below."]),
        ("十分です。次へ！終わり", ["十分です。", "次へ！", "終わり"]),
        ("  \n ", []),
    ],
)
def test_prose(text, expected):
    assert pieces(text) == expected


@pytest.mark.parametrize("fence", ["```", "~~~", "````"])
def test_a_code_block_is_one_piece(fence):
    code = f"{fence}python\nprint('One. Two.')\n\n# Why? Because.\nx = a | b\n{fence}"
    assert pieces(f"Run this. Then that:\n\n{code}\nDone. Well.") == ["Run this.", "Then that:", code, "Done.", "Well."]


def test_a_shorter_fence_does_not_end_a_code_block_and_one_that_is_open_goes_to_the_end():
    nested = "````\n```\nx. y.\n```\n````"
    assert pieces(f"{nested}\nEnd.") == [nested, "End."]
    assert pieces("See.\n```\nx = 1. \n\ny = 2.") == ["See.", "```\nx = 1. \n\ny = 2."]


def test_rows_of_a_table_are_whole_and_the_first_takes_the_ruled_line():
    table = ["| Name | Length. Of it |\n|---|:---:|", "| Volga | 3530 km. Long. |", "| Nile | 6650 km |"]
    assert pieces("Rivers. Here:\n" + "\n".join(table) + "\nThat is all.") == [
        *("Rivers.", "Here:"),
        *table,
        "That is all.",
    ]
    bare = ["Name | Length\n--- | ---"]
    assert pieces("\n".join([*bare, "Volga | 3530"])) == [*bare, "Volga | 3530"]
    assert pieces("a | b. c\nd") == ["a | b.", "c", "d"]  # no table


@pytest.mark.parametrize("formula", ["$$\na = b. \n c = d\n$$", "\\[\nx! \n y.\n\\]"])
def test_a_displayed_formula_is_one_piece(formula):
    assert pieces(f"So:\n{formula}\nQ.E.D. indeed.") == ["So:", formula, "Q.E.D.", "indeed."]


@given(st.text(alphabet="ab1.!?。 \n|`~-$\\[]\t", max_size=80))
def test_pieces_are_in_order_apart_and_leave_out_no_letter(text):
    spans = judged_spans(text)
    covered = np.zeros(len(text) + 1, dtype=int)
    for start, end in spans:
        assert start < end
        assert text[start:end] == text[start:end].strip()
        covered[start:end] += 1
    assert spans == sorted(spans)
    assert covered.max() <= 1
    assert all(covered[place] for place, character in enumerate(text) if character.isalnum())


def test_the_sentences_of_a_row_are_those_of_its_trained_answers():
    row = Conversation(
        "p:1:0",
        "p",
        (
            Turn("user", "Why. How."),
            Turn("assistant", "One. Two."),
            Turn("user", "And?"),
            Turn("assistant", "Not trained.", is_trained=False),
            Turn("assistant", " ", reasoning="Hm."),
            Turn("assistant", "Three.", reasoning="Think. Twice."),
        ),
    )
    assert sentences_of(row) == (Sentence(1, 0, 4), Sentence(1, 5, 9), Sentence(5, 0, 6))
    tokens = LabelledTokens(np.array([1, 2]), np.array([False, True]))
    assert sentences_of(Conversation("p:2:0", "p", (), kind="tokens", tokens=tokens)) == ()
