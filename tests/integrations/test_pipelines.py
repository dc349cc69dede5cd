"""Rows scored and filtered in the pipelines themselves, against the losses by their definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from tokenclean.errors import ModelError
from tokenclean.integrations.row_scores import RowScorer

QUESTIONS = [("Why is the sky blue?", "Air scatters blue light."), ("What is 2 + 2?", "4"), ("Who?", "Nobody at all.")]
ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in QUESTIONS
]
TEXT = {"text": "A plain text."}
UNREADABLE = {"messages": [{"role": "user", "content": "No answer?"}]}


def mean_loss(folder: Path, prompt: str, answer: str) -> float:
    """The mean loss of the answer's tokens, from full logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    before, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
    first = max(1, len(before))
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0]
    return float(cross_entropy(logits[first - 1 : -1], torch.tensor(whole[first:])))


@pytest.fixture
def expected(tiny_model_folder: Path, other_model_folder: Path) -> list[float | None]:
    """The scores of ROWS, TEXT and UNREADABLE."""
    texts = [(f"<|user|>\n{question}\n<|assistant|>\n", answer + "</s>") for question, answer in QUESTIONS]
    pairs = [*texts, ("", TEXT["text"] + "</s>")]
    return [*(mean_loss(tiny_model_folder, *p) - mean_loss(other_model_folder, *p) for p in pairs), None]


def test_a_score_is_the_mean_difference_of_losses(tiny_model_folder, other_model_folder, expected):
    scores = RowScorer(str(tiny_model_folder), str(other_model_folder)).score([*ROWS, TEXT, UNREADABLE])
    assert scores == pytest.approx(expected, abs=1e-5)
    alone = RowScorer(str(tiny_model_folder)).score(ROWS[:1])
    question, answer = QUESTIONS[0]
    prompt = f"<|user|>\n{question}\n<|assistant|>\n"
    assert alone == pytest.approx([mean_loss(tiny_model_folder, prompt, answer + "</s>")], abs=1e-5)


def test_a_reference_that_is_the_base_is_refused(tiny_model_folder):
    with pytest.raises(ModelError, match="the reference is the base itself"):
        RowScorer(str(tiny_model_folder), str(tiny_model_folder)).score(ROWS)


def test_datatrove_scores_and_drops_documents(tiny_model_folder, other_model_folder, expected):
    data = pytest.importorskip("datatrove.data")
    from tokenclean.integrations.datatrove import TokenScoreFilter

    documents = [data.Document(text="", id=str(number), metadata=dict(row)) for number, row in enumerate(ROWS)]
    documents += [data.Document(text=TEXT["text"], id="3"), data.Document(text="", id="4")]
    minimum = sorted(expected[:4])[1]
    scorer = RowScorer(str(tiny_model_folder), str(other_model_folder))
    step = TokenScoreFilter(scorer, minimum - 1e-5, batch_size=2)
    kept = list(step.run(iter(documents)))
    found = {int(document.id): document.metadata["token_score"] for document in kept}
    assert found == pytest.approx({n: s for n, s in enumerate(expected[:4]) if s >= minimum}, abs=1e-5)
    assert (step.stats["dropped_low_score"].total, step.stats["dropped_no_score"].total) == (1, 1)


def test_data_juicer_scores_and_drops_rows(tiny_model_folder, other_model_folder, expected):
    pytest.importorskip("data_juicer")
    from data_juicer.core.data import NestedDataset
    from data_juicer.utils.constant import Fields

    from tokenclean.integrations.data_juicer import TokenScoreFilter

    rows: list[dict[str, Any]] = [*ROWS, UNREADABLE]
    models, alone = (str(tiny_model_folder), str(other_model_folder)), {"num_proc": 1}
    scored = TokenScoreFilter(*models, **alone).run(NestedDataset.from_list(rows))
    scores = [statistics["token_score"] for statistics in scored[Fields.stats]]
    assert scores[:3] == pytest.approx(expected[:3], abs=1e-5)
    assert scores[3] is None or math.isnan(scores[3])
    assert len(scored) == 4
    minimum = sorted(expected[:3])[1]
    kept = TokenScoreFilter(*models, minimum - 1e-5, **alone).run(NestedDataset.from_list(rows))
    assert [row["messages"] for row in kept] == [
        row["messages"] for row, score in zip(ROWS, expected, strict=False) if score >= minimum
    ]
