"""Tasks that ask prompts of local rows in the recipe's own template: restaurants described by their data, answers
compared with a reference, and multiple choice.

They measure what noise in the training data moves. The rows of the first two have the form of ``tokenclean lab``
(``lab.truth``): the answer is their clean version, the prompt what comes before it. Answers are generated greedily and
end at a line break or after 128 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenclean.errors import EvaluationError, PoolError
from tokenclean.evaluation.slot_errors import find_slot_errors, read_slots
from tokenclean.evaluation.text_overlap import chrf_scores
from tokenclean.lab.truth import read_truth
from tokenclean.pool.conversation import Conversation, Turn
from tokenclean.pool.sources import read_source
from tokenclean.recipe import SourceSettings, TokensSettings
from tokenclean.tokens.templates import render

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

ANSWER_TOKENS = 128


Rows = Iterator[tuple[Conversation, dict[str, object]] | str]
"""Of each row the conversation with its answer and the columns for its task, or what is wrong with it."""


def answer_task(name: str, file: Path, tokenizer: PreTrainedTokenizerBase, tokens: TokensSettings) -> dict[str, object]:
    """The configuration of the harness task ``name``, one of ``ANSWER_TASKS``, over the rows of ``file``.

    A prompt that several rows have is asked once, with the first one's answer, so that items are independent. Raises
    EvaluationError naming the first rows at fault, TemplateError for a prompt that the template cannot render.
    """
    read = {"e2e_slots": _slot_rows, "chrf": _reference_rows, "choice": _choice_rows}[name]
    try:
        rows = list(read(SourceSettings(path=str(file))))
    except PoolError as error:
        raise EvaluationError(f"{name}: {error}") from error
    if problems := [row for row in rows if isinstance(row, str)]:
        shown = "; ".join(problems[:3])
        raise EvaluationError(
            f"{name}: {len(problems):,} of {len(rows):,} rows have to be corrected or removed: {shown}"
        )
    asked: dict[str, dict[str, object]] = {}
    for conversation, columns in (row for row in rows if not isinstance(row, str)):
        prompt = _rendered_prompt(conversation, tokenizer, tokens)
        if not prompt:
            raise EvaluationError(
                f"{name}: {conversation.file}:{conversation.line}: has no prompt to ask; remove the row"
            )
        asked.setdefault(prompt, {"prompt": prompt, **columns})

    def load(**unused: object) -> DatasetDict:
        from datasets import Dataset, DatasetDict

        return DatasetDict({"test": Dataset.from_list(list(asked.values()))})

    return {
        "task": name,
        "custom_dataset": load,
        "test_split": "test",
        "doc_to_text": "prompt",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
        **ANSWER_TASKS[name],
    }


def _choice_rows(source: SourceSettings) -> Rows:
    for record in read_source(source):
        match record.row:
            case {"prompt": str(prompt), "choices": [_, _, *_] as choices, "answer": answer} if (
                all(isinstance(choice, str) and choice for choice in choices)
                and type(answer) is int
                and 0 <= answer < len(choices)
            ):
                turns = (Turn("user", prompt), Turn("assistant", choices[answer]))
                yield Conversation(str(record.number), "", turns), {"choices": choices, "answer": answer}
            case row:
                yield (
                    f"{source.path}:{record.line}: expected prompt (a text), choices (two texts or more) and answer "
                    f"(the number of the right one, from 0), found {record.fault or repr(row):.200}"
                )


def _slot_rows(source: SourceSettings) -> Rows:
    truth = read_truth([source])
    yield from map(str, truth.pool.rejected)
    for row in truth.pool:
        asked = row.turns[_last_answer(row) - 1].content
        try:
            read_slots(asked)
        except ValueError as error:
            yield f"{row.file}:{row.line}: the prompt states no data: {error}"
        else:
            yield row, {"data": asked}


def _reference_rows(source: SourceSettings) -> Rows:
    truth = read_truth([source])
    yield from map(str, truth.pool.rejected)
    for row, clean in zip(truth.pool, truth.clean, strict=True):
        if clean is None:
            yield f"{row.file}:{row.line}: expected the key clean, the answer as it should be, found none"
        else:
            yield row, {"answer": clean.turns[_last_answer(row)].content}


def _last_answer(row: Conversation) -> int:
    return max(number for number, turn in enumerate(row.turns) if turn.role == "assistant")


def _rendered_prompt(row: Conversation, tokenizer: PreTrainedTokenizerBase, tokens: TokensSettings) -> str:
    """The text of the row up to where its last answer begins, as in training."""
    last = _last_answer(row)
    turns = (*row.turns[:last], replace(row.turns[last], is_trained=True))
    rendered = render(replace(row, turns=turns), tokenizer, tokens.template, tokens.date)
    return rendered.text[: rendered.targets[-1][0]]


# The harness puts these functions' source text into a task's configuration, and so into the identity of every finished
# evaluation: changing them has all of them repeated.
def score_slots(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 − slot errors over slots of the text given, at least 0."""
    return {"slots": max(0.0, 1.0 - find_slot_errors(doc["data"], results[0]).rate)}


def score_chrf(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """chrF of the text given against the row's answer, as a share of 1."""
    return {"chrf": float(chrf_scores([results[0].strip()], [doc["answer"]])[0]) / 100}


_GREEDY: Mapping[str, object] = {"until": ["\n"], "do_sample": False, "max_gen_toks": ANSWER_TOKENS}

ANSWER_TASKS: Mapping[str, Mapping[str, object]] = {
    "e2e_slots": {
        "output_type": "generate_until",
        "doc_to_target": "data",
        "process_results": score_slots,
        "generation_kwargs": _GREEDY,
        "metric_list": [{"metric": "slots", "aggregation": "mean", "higher_is_better": True}],
    },
    "chrf": {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "process_results": score_chrf,
        "generation_kwargs": _GREEDY,
        "metric_list": [{"metric": "chrf", "aggregation": "mean", "higher_is_better": True}],
    },
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
}
"""What the harness is given about each task, by name."""
