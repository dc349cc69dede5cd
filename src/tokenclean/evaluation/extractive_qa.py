"""Questions on a given passage in several languages, with one solved example before each: TyDi QA as in the paper.

The prompt is one instruction line in the question's language, a solved example of that language and the question, each
with passage, question and answer (§10.2 and the evaluation code that the paper builds on). Passages are cut at 512
tokens, at most 200 questions per language are asked, answers end at a line break or after 50 tokens, and F1 is SQuAD's
against the best-fitting answer. XQuAD's questions are asked in the same form, under its own name.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tokenclean.errors import EvaluationError

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

CONTEXT_TOKENS = 512
ANSWER_TOKENS = 50
QUESTIONS_PER_LANGUAGE = 200
SEED = 42


@dataclass(frozen=True)
class Form:
    """The instruction, and the labels before passage, question and answer, in one language."""

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
        "Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.", "Bagian:", "Pertanyaan:", "Jawaban:"
    ),
    "korean": Form("주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.", "문단:", "질문:", "답변:"),
    "russian": Form(
        "Ответьте на следующий вопрос на основе информации в данном отрывке.", "Отрывок:", "Вопрос:", "Ответ:"
    ),
    "swahili": Form(
        "Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.", "Kifungu:", "Swali:", "Jibu:"
    ),
    "telugu": Form("ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.", "పేరా:", "ప్రశ్న:", "సమాధానం:"),
}


class Question(TypedDict):
    """``answers``: texts, at least one."""

    id: str
    context: str
    question: str
    answers: list[str]


def prompt(form: Form, example: Question, asked: Question) -> str:
    """Everything before the answer."""
    solved = f"{_asked(form, example)} {example['answers'][0]}"
    return f"{form.instruction}\n\n{solved}\n\n{_asked(form, asked)}"


def _asked(form: Form, question: Question) -> str:
    return f"{form.passage} {question['context']}\n{form.question} {question['question']}\n{form.answer}"


def cut_passage(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int = CONTEXT_TOKENS) -> str:
    """The text up to its first ``tokens`` tokens, as the tokenizer decodes them; all of it where it has no more."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if len(ids) <= tokens else str(tokenizer.decode(ids[:tokens], skip_special_tokens=True))


def sample(questions: Sequence[Question], count: int) -> list[Question]:
    """At most ``count`` of them, drawn with the fixed seed."""
    if len(questions) <= count:
        return list(questions)
    return random.Random(SEED).sample(list(questions), count)


def hub_questions(rows: Iterable[Any], language: str = "") -> list[Question]:
    """Questions from the rows of a data set with SQuAD's columns: those whose ``id`` begins with the language, as in
    TyDi QA."""
    return [
        _question(row, row["context"], row["answers"]["text"]) for row in rows if str(row["id"]).startswith(language)
    ]


def read_squad(file: Path) -> list[Question]:
    """Questions of a file in SQuAD's JSON. Raises EvaluationError where it has another form."""
    try:
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        return [
            _question(question, paragraph["context"], [answer["text"] for answer in question["answers"]])
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{file}: expected SQuAD's JSON (data > paragraphs > context and qas > id, question, answers), found "
            f"{type(error).__name__}: {error}"
        ) from error


def _question(row: Mapping[str, Any], context: str, answers: Iterable[str]) -> Question:
    return {"id": row["id"], "context": context, "question": row["question"], "answers": list(answers)}


def passage_task(
    name: str,
    language: str,
    questions: Sequence[Question],
    examples: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, object]:
    """The configuration of a harness task that asks these questions in the form of their language.

    One example, drawn from ``examples`` with the fixed seed, comes before every question. Where it is one of the
    questions (XQuAD has no training split), it is not asked.
    """
    example = random.Random(SEED).choice(list(examples))
    solved: Question = {**example, "context": cut_passage(example["context"], tokenizer)}
    rows = []
    for question in questions:
        if question["id"] != example["id"]:
            asked: Question = {**question, "context": cut_passage(question["context"], tokenizer)}
            text = prompt(FORMS[language], solved, asked)
            rows.append({"id": question["id"], "prompt": text, "answers": question["answers"]})

    def load(**unused: object) -> DatasetDict:
        from datasets import Dataset, DatasetDict

        return DatasetDict({"validation": Dataset.from_list(rows)})

    return {
        "task": name,
        "custom_dataset": load,
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


# The harness puts this function's source text into the task's configuration, and so into the identity of every
# finished evaluation: changing as much as its docstring has all of them repeated.
def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """SQuAD's F1 and exact match of the answer given, against the best-fitting right one."""
    given = results[0].strip()
    return {
        "f1": max(answer_f1(given, right) for right in doc["answers"]),
        "exact_match": max(float(_words(given) == _words(right)) for right in doc["answers"]),
    }


def answer_f1(given: str, right: str) -> float:
    """Harmonic mean of precision and recall of the words, normalised as in SQuAD; 1 where both have none."""
    ours, theirs = _words(given), _words(right)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    """Words in lower case, without ASCII punctuation and English articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()
