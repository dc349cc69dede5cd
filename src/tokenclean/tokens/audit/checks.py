"""The checks by name: those of labels and tokens, and the checks of texts that ``look`` has too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tokenclean.checks import POOL_CHECKS, ROW_CHECKS, Check
from tokenclean.tokens.audit import label_checks as labels
from tokenclean.tokens.audit import text_checks as texts
from tokenclean.tokens.audit.audit_row import AuditRow
from tokenclean.tokens.audit.dataset_facts import Facts
from tokenclean.tokens.audit.findings import RowResult

Finder = Callable[[AuditRow, Facts], RowResult]
"""A pure function of a row and the facts of the data; None for a check of all rows together."""

Other = TypeVar("Other")


def _for_labels(check: Check[Other], find: Finder | None) -> Check[Finder | None]:
    return Check(check.severity, check.title, check.meaning, check.remedy, find)


CHECKS: dict[str, Check[Finder | None]] = {
    "prompt_trained": Check(
        "error",
        "prompt trained",
        "tokens of a system, user or tool turn are targets: the model learns to write the questions",
        "set labels to -100 everywhere but on the assistant's text and its end token",
        labels.find_trained_prompt,
    ),
    "eos_cut": Check(
        "error",
        "no end token",
        "an answer ends without a trained end token: the model learns to go on and on",
        "append the end token to every answer and give it its label; where padding is done with EOS, mask by position "
        "and not by id",
        labels.find_cut_end,
    ),
    "all_masked": Check(
        "error",
        "nothing trained",
        "the row has no target: a batch of such rows has a loss of NaN, and the row is read for nothing",
        "find out why no answer was recognised (response template, roles, train flags), or drop the row",
        labels.find_all_masked,
    ),
    "labels_shifted": Check(
        "error",
        "labels shifted",
        "labels are those of the neighbouring token: the trainer shifts them again and trains two tokens ahead",
        "store labels aligned with input_ids (labels[t] == input_ids[t]); the model shifts them itself",
        labels.find_shift,
    ),
    "foreign_labels": Check(
        "error",
        "foreign labels",
        "a label is neither -100 nor the id of its token",
        "make labels a copy of input_ids with -100 where nothing is to be trained; another value for ignored "
        "positions (-1, 0, the pad id) is a target for the trainer",
        labels.find_foreign_label,
    ),
    "padding_trained": Check(
        "error",
        "padding trained",
        "padding has labels: the model learns to write padding",
        "set labels to -100 where attention_mask is 0, and behind the first end token",
        labels.find_trained_padding,
    ),
    "unknown_ids": Check(
        "error",
        "unknown ids",
        "ids are beyond the tokenizer's vocabulary: the rows come from another tokenizer",
        "name the tokenizer that made the rows, or tokenize them again",
        texts.find_unknown_id,
    ),
    "template_doubled": Check(
        "error",
        "template twice",
        "a template was applied twice (BOS twice, a marker within a turn), or a message is templated text that would "
        "be templated again",
        "give plain texts to the template and let one place add BOS: add_special_tokens=False for text that a chat "
        "template has rendered",
        texts.find_doubled_template,
    ),
    "control_in_text": Check(
        "error",
        "control token in a text",
        "the text of a message holds what the tokenizer encodes as an end, beginning or role token: turns end or begin "
        "in the wrong places",
        "write such tokens differently in the text (a space inside them is enough), or drop the rows",
        texts.find_control_in_text,
    ),
    "lone_thought_tag": _for_labels(ROW_CHECKS["lone_thought_tag"], texts.find_lone_thought_tag),
    "boundary_drift": Check(
        "warning",
        "label boundary off",
        "the label boundary is not where the answer begins, since prompt and answer were tokenized apart and together, "
        "or the mask was measured on other text",
        "tokenize the whole text once and label by character offsets; take blanks off the end of a prompt",
        labels.find_boundary_drift,
    ),
    "truncated": Check(
        "warning",
        "truncated",
        "the row loses an answer, or the end of one, at the maximum length",
        "raise the maximum length, or split or drop the rows: an answer without an end teaches not to end",
        labels.find_truncated,
    ),
    "empty_answer": Check(
        "warning",
        "empty answer",
        "an answer is empty: the model learns to stop at once",
        "drop the rows, or fill in the answers",
        labels.find_empty_answer,
    ),
    "template_missing": Check(
        "warning",
        "template missing",
        "a tokenized row has no role marker, though the others have them or a template was asked for",
        "render the conversations with the template before they are tokenized; rows that are prompt and completion "
        "without tags are fine",
        texts.find_missing_template,
    ),
    "special_in_text": Check(
        "warning",
        "special token in a text",
        "the text of a message holds what the tokenizer encodes as a special token that is no end, beginning or role",
        "look at the examples: a placeholder such as <filename> is meant as text, so write it differently",
        texts.find_special_in_text,
    ),
    "duplicated": _for_labels(POOL_CHECKS["duplicated"], texts.find_duplicate),
    "set_aside": Check(
        "warning",
        "set aside",
        "the row cannot be read or rendered, so a run leaves it out",
        "fix what the reason names, or use the option it suggests",
        texts.find_set_aside,
    ),
    "blank_boundary": Check(
        "note",
        "blank at the boundary",
        "blanks beside an answer are on the wrong side of the label boundary: a line break of the answer's own is "
        "part of the template's token, or a blank of the template is trained",
        "strip the answers; nothing else is needed",
        labels.find_misplaced_blank,
    ),
}
CHECKS |= {
    name: _for_labels(check, texts.find_by_text(check.find)) for name, check in ROW_CHECKS.items() if name not in CHECKS
}
CHECKS |= {name: _for_labels(check, None) for name, check in POOL_CHECKS.items() if name not in CHECKS}
