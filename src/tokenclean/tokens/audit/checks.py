"""The checks by name: how bad a finding is, what it means, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenclean.tokens.audit import label_checks as labels
from tokenclean.tokens.audit import text_checks as texts
from tokenclean.tokens.audit.audit_row import AuditRow
from tokenclean.tokens.audit.dataset_facts import Facts
from tokenclean.tokens.audit.findings import Severity, Verdict


@dataclass(frozen=True)
class Check:
    """One check. ``severity``: an error makes the training go wrong, a warning costs something or may be meant, a note
    is information. ``find``: a pure function of a row and the facts of the data."""

    severity: Severity
    meaning: str
    remedy: str
    find: Callable[[AuditRow, Facts], Verdict]


CHECKS: dict[str, Check] = {
    "prompt_trained": Check(
        "error",
        "tokens of a system, user or tool turn are targets: the model learns to write the questions",
        "set labels to -100 everywhere but on the assistant's text and its end token",
        labels.find_trained_prompt,
    ),
    "eos_cut": Check(
        "error",
        "an answer ends without a trained end token: the model learns to go on and on",
        "append the end token to every answer and give it its label; where padding is done with EOS, mask by position "
        "and not by id",
        labels.find_cut_end,
    ),
    "all_masked": Check(
        "error",
        "the row has no target: a batch of such rows has a loss of NaN, and the row is read for nothing",
        "find out why no answer was recognised (response template, roles, train flags), or drop the row",
        labels.find_all_masked,
    ),
    "labels_shifted": Check(
        "error",
        "labels are those of the neighbouring token: the trainer shifts them again and trains two tokens ahead",
        "store labels aligned with input_ids (labels[t] == input_ids[t]); the model shifts them itself",
        labels.find_shift,
    ),
    "foreign_labels": Check(
        "error",
        "a label is neither -100 nor the id of its token",
        "make labels a copy of input_ids with -100 where nothing is to be trained; another value for ignored "
        "positions (-1, 0, the pad id) is a target for the trainer",
        labels.find_foreign_label,
    ),
    "padding_trained": Check(
        "error",
        "padding has labels: the model learns to write padding",
        "set labels to -100 where attention_mask is 0, and behind the first end token",
        labels.find_trained_padding,
    ),
    "unknown_ids": Check(
        "error",
        "ids are beyond the tokenizer's vocabulary: the rows come from another tokenizer",
        "name the tokenizer that made the rows, or tokenize them again",
        texts.find_unknown_id,
    ),
    "template_doubled": Check(
        "error",
        "a template was applied twice (BOS twice, a marker within a turn), or a message is templated text that would "
        "be templated again",
        "give plain texts to the template and let one place add BOS: add_special_tokens=False for text that a chat "
        "template has rendered",
        texts.find_doubled_template,
    ),
    "control_in_text": Check(
        "error",
        "the text of a message holds what the tokenizer encodes as an end, beginning or role token: turns end or begin "
        "in the wrong places",
        "write such tokens differently in the text (a space inside them is enough), or drop the rows",
        texts.find_control_in_text,
    ),
    "lone_thought_tag": Check(
        "error",
        "an answer holds </think> without <think> in front of it, or <think> that never ends: the model learns a tag "
        "that means nothing, or thinks without an end",
        "--repair-thoughts puts <think> in front of thoughts that only end; drop rows that are cut off within a "
        "thought",
        texts.find_lone_thought_tag,
    ),
    "boundary_drift": Check(
        "warning",
        "the label boundary is not where the answer begins, since prompt and answer were tokenized apart and together, "
        "or the mask was measured on other text",
        "tokenize the whole text once and label by character offsets; take blanks off the end of a prompt",
        labels.find_boundary_drift,
    ),
    "truncated": Check(
        "warning",
        "the row loses an answer, or the end of one, at the maximum length",
        "raise the maximum length, or split or drop the rows: an answer without an end teaches not to end",
        labels.find_truncated,
    ),
    "empty_answer": Check(
        "warning",
        "an answer is empty: the model learns to stop at once",
        "drop the rows, or fill in the answers",
        labels.find_empty_answer,
    ),
    "template_missing": Check(
        "warning",
        "a tokenized row has no role marker, though the others have them or a template was asked for",
        "render the conversations with the template before they are tokenized; rows that are prompt and completion "
        "without tags are fine",
        texts.find_missing_template,
    ),
    "special_in_text": Check(
        "warning",
        "the text of a message holds what the tokenizer encodes as a special token that is no end, beginning or role",
        "look at the examples: a placeholder such as <filename> is meant as text, so write it differently",
        texts.find_special_in_text,
    ),
    "duplicated": Check(
        "warning",
        "the row repeats an earlier one word for word: it is trained twice, and leaks into held-out rows",
        "drop the repetitions",
        texts.find_duplicate,
    ),
    "set_aside": Check(
        "warning",
        "the row cannot be read or rendered, so a run leaves it out",
        "fix what the reason names, or use the option it suggests",
        texts.find_set_aside,
    ),
    "blank_boundary": Check(
        "note",
        "blanks beside an answer are on the wrong side of the label boundary: a line break of the answer's own is "
        "part of the template's token, or a blank of the template is trained",
        "strip the answers; nothing else is needed",
        labels.find_misplaced_blank,
    ),
}
