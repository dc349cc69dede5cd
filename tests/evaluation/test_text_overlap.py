from __future__ import annotations

import sys

import numpy as np
import pytest

from tokenclean.errors import MissingExtraError
from tokenclean.evaluation.text_overlap import chrf_scores


def chrf_by_definition(text: str, reference: str) -> float:
    """chrF2 of texts of at least six letters: the F score of mean precision and mean recall over n = 1 to 6."""
    text, reference = text.replace(" ", ""), reference.replace(" ", "")
    precisions, recalls = [], []
    for n in range(1, 7):
        a, b = ([t[i : i + n] for i in range(len(t) - n + 1)] for t in (text, reference))
        shared = sum(min(a.count(gram), b.count(gram)) for gram in set(a))
        precisions.append(shared / len(a))
        recalls.append(shared / len(b))
    precision, recall = np.mean(precisions), np.mean(recalls)
    return float(500 * precision * recall / (4 * precision + recall)) if precision + recall else 0.0


def test_chrf():
    pytest.importorskip("sacrebleu")
    texts = ["the mill is a pub", "the mill is a pub", "abcdefgh"]
    references = ["the mill is a pub", "the mill was a bar", "the mill"]
    scores = chrf_scores(texts, references)
    assert scores[0] == 100.0
    assert scores[2] < 10
    expected = [chrf_by_definition(*pair) for pair in zip(texts, references, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="shorter"):
        chrf_scores(texts, references[:1])


def test_without_sacrebleu_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.chrf", None)
    with pytest.raises(MissingExtraError, match=r"tokenclean\[lab\]"):
        chrf_scores(["a"], ["a"])
