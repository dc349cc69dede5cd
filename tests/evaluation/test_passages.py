from __future__ import annotations

import hashlib
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.errors import EvaluationError
from tokenclean.evaluation.extractive_qa import (
    FORMS,
    answer_f1,
    cut_passage,
    hub_questions,
    process_results,
    prompt,
    read_squad,
    sample,
)
from tokenclean.evaluation.tasks import LANGUAGES


def question(number: int, answer: str = "in May") -> dict:
    return {"id": str(number), "context": f"Passage {number}.", "question": f"Which {number}?", "answers": [answer]}


def test_the_paper_s_form():
    assert prompt(FORMS["english"], question(1), question(2)) == (
        "Answer the following question based on the information in the given passage.\n\n"
        "Passage: Passage 1.\nQuestion: Which 1?\nAnswer: in May\n\n"
        "Passage: Passage 2.\nQuestion: Which 2?\nAnswer:"
    )


def test_a_form_for_every_language():
    assert set(FORMS) == set(LANGUAGES)


@pytest.mark.parametrize(
    ("given", "right", "f1"),
    [
        ("the Eiffel Tower", "Eiffel tower.", 1.0),
        ("Eiffel", "Eiffel Tower", 2 / 3),  # precision 1, recall 1/2
        ("a red red car", "red car", 0.8),  # common 2 of 3 and of 2
        ("blue", "red", 0.0),
        ("", "red", 0.0),
        ("the", "a", 1.0),  # nothing is left of either
    ],
)
def test_f1_by_hand(given, right, f1):
    assert answer_f1(given, right) == pytest.approx(f1)


@given(st.text(max_size=20), st.text(max_size=20))
def test_f1_is_a_share_and_symmetric(a, b):
    assert 0 <= answer_f1(a, b) <= 1
    assert answer_f1(a, b) == pytest.approx(answer_f1(b, a))
    assert answer_f1(a, a) == 1


def test_the_best_fitting_answer_counts():
    assert process_results({"answers": ["June", "in May"]}, [" in May "]) == {"f1": 1.0, "exact_match": 1.0}


def test_the_source_text_in_the_identity_of_finished_evaluations_stays():
    digest = hashlib.sha256(inspect.getsource(process_results).encode()).hexdigest()
    assert digest == "d3a036ce6cf2b3844a62931b0062d3457bebdd807a3a5d1d588672d612176cf1"


def test_passages_are_cut_at_tokens(tiny_model_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    text = "river stone cloud market " * 50
    cut = cut_passage(text, tokenizer, 20)
    assert text.startswith(cut)
    assert len(tokenizer(cut, add_special_tokens=False)["input_ids"]) == 20
    assert cut_passage("river", tokenizer, 20) == "river"


def test_samples_are_seeded_and_never_larger():
    rows = [question(number) for number in range(10)]
    assert sample(rows, 4) == sample(rows, 4)
    assert len(sample(rows, 4)) == 4
    assert sample(rows, 20) == rows


def test_languages_of_tydiqa_are_told_by_the_id():
    rows = [
        {
            "id": f"{language}-1",
            "context": "c",
            "question": "q",
            "answers": {"text": ["a", "b"], "answer_start": [0, 1]},
        }
        for language in ("english", "telugu")
    ]
    assert hub_questions(rows, "telugu") == [{"id": "telugu-1", "context": "c", "question": "q", "answers": ["a", "b"]}]


def test_a_file_that_is_no_squad(tmp_path):
    file = tmp_path / "xquad.en.json"
    file.write_text('{"rows": []}')
    with pytest.raises(EvaluationError, match=r"xquad\.en\.json: expected SQuAD's JSON"):
        read_squad(file)
