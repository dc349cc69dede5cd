"""The checks of texts by name: what a finding is, why it matters, and what to do. ``look`` and ``audit`` share them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tokenclean.checks.copied_prompts import find_copied_prompt
from tokenclean.checks.cut_ends import CutEnds
from tokenclean.checks.findings import Collector, Severity, Spot, answers_of
from tokenclean.checks.loops import find_loop
from tokenclean.checks.near_duplicates import NearDuplicates
from tokenclean.checks.odd_characters import find_odd_characters
from tokenclean.checks.refusals import find_refusal
from tokenclean.checks.repeated_phrases import RepeatedPhrases
from tokenclean.checks.repeated_rows import Duplicates, RepeatedPrompts
from tokenclean.pool.conversation import Conversation
from tokenclean.pool.formats.field_types import lone_tag

Finder = TypeVar("Finder")

_REPEATED = (
    "look at the examples: a form that the task asks for is no fault. What the rows share word for word the strategy "
    "repetition, or cleaning.also: [repetition], drops where at least 3 % of them have it; reword the rest"
)


@dataclass(frozen=True)
class Check(Generic[Finder]):
    """One check. ``severity``: an error makes the training go wrong, a warning costs something or may be meant, a note
    is information. ``title``: its name in a table. ``meaning``: what a finding is and why it matters."""

    severity: Severity
    title: str
    meaning: str
    remedy: str
    find: Finder


def find_lone_thought_tag(conversation: Conversation) -> Spot | None:
    """Trained answers with a tag of thoughts that has no partner."""
    for number, turn in answers_of(conversation):
        if lone := lone_tag(turn.content):
            start = turn.content.find(lone)
            return Spot(f"an answer with {lone} alone", number, start, start + len(lone))
    return None


POOL_CHECKS: dict[str, Check[Callable[[], Collector]]] = {
    "duplicated": Check(
        "warning",
        "duplicate",
        "the row repeats an earlier one word for word: it is trained twice, and leaks into held-out rows",
        "pool.filters.duplicates: exact drops the repetitions",
        Duplicates,
    ),
    "near_duplicate": Check(
        "warning",
        "near-duplicate",
        "the row shares most of its runs of three words (Jaccard index 0.7) and half of its answer's words with an "
        "earlier row, phrases that over 1 % of the rows share aside: it teaches little more, and leaks into held-out "
        "rows",
        "pool.filters.duplicates: near keeps the first of them; near_threshold: 0.5 finds about as many",
        NearDuplicates,
    ),
    "repeated_prompt": Check(
        "note",
        "same prompt again",
        "the prompt comes again with another answer: meant where answers are sampled, else they contradict each other",
        "look at the examples; drop all but one where the answers contradict each other",
        RepeatedPrompts,
    ),
    "repeated_opener": Check(
        "note",
        "repeated opener",
        "answers of several rows begin with sentences that begin alike (the same four words, or six tenths of their "
        "words in common): the model learns the phrase above all",
        _REPEATED,
        lambda: RepeatedPhrases(is_closer=False),
    ),
    "repeated_closer": Check(
        "note",
        "repeated closer",
        "answers of several rows end with sentences that begin alike (the same four words, or six tenths of their "
        "words in common): the model learns to add them to everything",
        _REPEATED,
        lambda: RepeatedPhrases(is_closer=True),
    ),
    "cut_end": Check(
        "warning",
        "cut end",
        "an answer ends within a sentence or a code block: the model learns to stop there",
        "generate the answers with a larger limit, or drop the rows",
        CutEnds,
    ),
}

ROW_CHECKS: dict[str, Check[Callable[[Conversation], Spot | None]]] = {
    "refusal": Check(
        "warning",
        "refusal",
        "an answer declines the task or says what an AI cannot do, in a usual wording: the model learns to refuse",
        "drop the rows, unless the refusals are meant",
        find_refusal,
    ),
    "loop": Check(
        "warning",
        "loop",
        "an answer says the same words at least three times in a row, twenty words or more: the model learns to go "
        "round in circles",
        "drop the rows or cut the answers in front of the loop",
        find_loop,
    ),
    "odd_characters": Check(
        "warning",
        "odd characters",
        "a text holds characters that nobody typed (U+FFFD, wrong encoding, control, invisible or private-use "
        "characters), or escapes that were never undone (a written \\n for a line break, HTML entities): the model "
        "learns to write them",
        "of a wrong encoding, read the file with its own --encoding; of escapes, put the character meant into the "
        "texts (a line break for a written \\n); delete the others",
        find_odd_characters,
    ),
    "copied_prompt": Check(
        "note",
        "copied prompt",
        "an answer holds the whole instruction (8 words or more), or nine tenths of it (20 words or more) are one "
        "passage of the prompt: meant where a text is to be extracted or needs no correction",
        "look at the examples; drop the rows where the copy is no answer",
        find_copied_prompt,
    ),
    "lone_thought_tag": Check(
        "error",
        "lone thought tag",
        "an answer holds </think> without <think> in front of it, or <think> that never ends: the model learns a tag "
        "that means nothing, or thinks without an end",
        "--repair-thoughts puts <think> in front of thoughts that only end; drop rows that are cut off within a "
        "thought",
        find_lone_thought_tag,
    ),
}
