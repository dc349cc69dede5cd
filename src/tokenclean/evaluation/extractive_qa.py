"""Questions on a given passage in several languages, one solved example before each: TyDi QA as the paper asks it.

The prompt is one instruction line in the question's language, a solved example of that language and the question, as
passage, question and answer (§10.2 and the evaluation code the paper builds on). Passages are cut at 512 tokens, at
most 200 questions a language are asked, answers end at a line break or after 50 tokens, and F1 is SQuAD's against the
best-fitting answer. XQuAD's questions are asked in the same form, under its own name.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenclean.errors import EvaluationError

CONTEXT_TOKENS = 512
ANSWER_TOKENS = 50
QUESTIONS_A_LANGUAGE = 200
SEED = 42


@dataclass(frozen=True)
class Form:
    """The instruction and the labels before passage, question and answer in one language."""

    instruction: str
    passage: str
    question: str
    answer: str


FORMS = {
    "arabic": Form("أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.", "المقطع:", "السؤال:", "الإجابة:"),
    "bengali": Form("প্রদত্ত অনুচ্ছেদের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।", "অনুচ্ছেদ:", "প্রশ্ন:", "উত্তর:"),
    "english": Form(
        "Answer the following question based on the information in the given passage.",
        "Passage:",
        "Question:",
        "Answer:",
    ),
    "finnish": Form(
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.", "Kappale:", "Kysymys:", "Vastaus:"
    ),
    "indonesian": Form(
        "Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.",
        "Bagian:",
        "Pertanyaan:",
        "Jawaban:",
    ),
    "korean": Form("주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.", "문단:", "질문:", "답변:"),
    "russian": Form(
        "Ответьте на следующий вопрос на основе информации в данном отрывке.", "Отрывок:", "Вопрос:", "Ответ:"
    ),
    "swahili": Form(
        "Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.",
        "Kifungu:",
        "Swali:",
        "Jibu:",
    ),
    "telugu": Form("ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.", "పేరా:", "ప్రశ్న:", "సమాధానం:"),
}

Question = dict[str, Any]
"""``id``, ``context``, ``question``, ``answers`` (texts, at least one)."""


def prompt(form: Form, example: Question, asked: Question) -> str:
    """Everything before the answer."""
    solved = f"{_asked(form, example)} {example['answers'][0]}"
    return f"{form.instruction}\n\n{solved}\n\n{_asked(form, asked)}"


def _asked(form: Form, question: Question) -> str:
    return f"{form.passage} {question['context']}\n{form.question} {question['question']}\n{form.answer}"


def cut_passage(text: str, tokenizer: Any, tokens: int = CONTEXT_TOKENS) -> str:
    """The text up to its first ``tokens`` tokens, as the tokenizer writes them back; whole where it has no more."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if len(ids) <= tokens else tokenizer.decode(ids[:tokens], skip_special_tokens=True)


def sample(questions: Sequence[Question], count: int, seed: int = SEED) -> list[Question]:
    """At most ``count`` of them, drawn with the seed."""
    if len(questions) <= count:
        return list(questions)
    return random.Random(seed).sample(list(questions), count)


def read_tydiqa(rows: Sequence[Mapping[str, Any]], language: str) -> list[Question]:
    """Questions of one language out of rows of the gold-passage task (``id`` begins with the language)."""
    return [
        {
            "id": row["id"],
            "context": row["context"],
            "question": row["question"],
            "answers": list(row["answers"]["text"]),
        }
        for row in rows
        if str(row["id"]).startswith(language)
    ]


def read_squad(file: Path) -> list[Question]:
    """Questions of a file in SQuAD's JSON. Raises EvaluationError where it is none."""
    try:
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        return [
            {
                "id": question["id"],
                "context": paragraph["context"],
                "question": question["question"],
                "answers": [answer["text"] for answer in question["answers"]],
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{file}: expected SQuAD's JSON (data > paragraphs > context and qas > id, question, answers), found "
            f"{type(error).__name__}: {error}"
        ) from error


def passage_task(
    name: str,
    form: Form,
    questions: Sequence[Question],
    examples: Sequence[Question],
    tokenizer: Any,
    *,
    seed: int = SEED,
) -> dict[str, Any]:
    """The configuration of a harness task that asks these questions in this form.

    One example, drawn with the seed from ``examples``, stands before all questions; where it is among the questions
    itself (XQuAD has no training split), it is not asked.
    """
    example = random.Random(seed).choice(list(examples))
    example = {**example, "context": cut_passage(example["context"], tokenizer)}
    rows = [
        {
            "id": question["id"],
            "prompt": prompt(form, example, {**question, "context": cut_passage(question["context"], tokenizer)}),
            "answers": question["answers"],
        }
        for question in questions
        if question["id"] != example["id"]
    ]
    return {
        "task": name,
        "custom_dataset": _dataset_of(rows),
        "validation_split": "validation",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answers[0]}}",
        "process_results": process_results,
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": ANSWER_TOKENS},
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("f1", "exact_match")
        ],
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }


def _dataset_of(rows: list[dict[str, Any]]) -> Callable[..., Any]:
    def load(**unused: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({"validation": Dataset.from_list(rows)})

    return load


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """SQuAD's F1 and exact match of the answer given, against the best-fitting right one."""
    given = results[0].strip()
    return {
        "f1": max(answer_f1(given, right) for right in doc["answers"]),
        "exact_match": max(float(_words(given) == _words(right)) for right in doc["answers"]),
    }


def answer_f1(given: str, right: str) -> float:
    """Harmonic mean of precision and recall of the words, as SQuAD normalises them; 1 where both have none."""
    ours, theirs = _words(given), _words(right)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    """Lower case, without ASCII punctuation and English articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()
