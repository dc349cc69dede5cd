"""Questions to a model about conversations, how its answers are read, and what asking will cost."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tokenclean.asking.prompts import Prompt, Shorten, first_characters
from tokenclean.asking.settings import Sampling
from tokenclean.pool import Conversation
from tokenclean.store import fingerprint

ATTEMPTS = 3
"""How often a question is asked, at most, until an answer can be read."""
CHARACTERS_PER_TOKEN = 4
"""Estimates the number of tokens where the model's tokenizer is not available."""

T = TypeVar("T")


def about_tokens(text: str) -> int:
    """A quarter of the text's characters."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


@dataclass(frozen=True)
class AskedModel:
    """``name``: by which a server knows it, or as the user gave it. ``shorten``: where samples are cut for it.
    ``count_tokens``: of a prompt. ``identity``: what keys hold in place of the name where that is not enough (a local
    folder)."""

    name: str
    sampling: Sampling = field(default_factory=Sampling)
    shorten: Shorten = field(default_factory=first_characters)
    count_tokens: Callable[[str], int] = about_tokens
    identity: str | None = None


@dataclass(frozen=True)
class Question:
    """The question about one row. ``key``: hash of model, prompt and sampling. ``prompt_tokens``: an estimate.
    ``cut_characters``: how many of the sample the prompt leaves out."""

    key: str
    prompt_tokens: int
    cut_characters: int


@dataclass(frozen=True)
class Questions(Generic[T]):
    """Questions about conversations, ``items[i]`` about ``conversations[i]``.

    ``write``: the prompt of question i; it is written again when it is asked, since prompts together are several times
    as large as the pool. ``read``: what the answer to question i says, None where it cannot be read.
    """

    conversations: Sequence[Conversation]
    model: AskedModel
    write: Callable[[int], Prompt]
    read: Callable[[int, str], T | None]
    items: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.items)

    def prompt(self, number: int) -> Prompt:
        return self.write(number)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(conversation.id for conversation in self.conversations)

    @property
    def cut(self) -> int:
        """Number of questions whose sample is too long to be shown whole."""
        return sum(question.cut_characters > 0 for question in self.items)

    def known(
        self, number: int, answers: Mapping[tuple[str, int], str], attempts: int = ATTEMPTS
    ) -> tuple[T | None, int]:
        """The first readable answer, and how many attempts were used; without an answer and with fewer than
        ``attempts`` used, the question is still to be asked."""
        for attempt in range(1, attempts + 1):
            text = answers.get((self.items[number].key, attempt))
            if text is None:
                return None, attempt - 1
            if (answer := self.read(number, text)) is not None:
                return answer, attempt
        return None, attempts


def prepare_questions(
    conversations: Sequence[Conversation],
    model: AskedModel,
    write: Callable[[int], Prompt],
    read: Callable[[int, str], T | None],
) -> Questions[T]:
    """One question about each of the conversations, of which several may be the same row.

    Questions of the same text are separate: their answers must err independently. Raises what ``write`` raises.
    """
    name = model.name if model.identity is None else model.identity
    settings = fingerprint({"rater": name, "sampling": model.sampling.model_dump()})
    copies: Counter[bytes] = Counter()
    items = []
    for number in range(len(conversations)):
        prompt = write(number)
        digest = hashlib.sha256(prompt.text.encode()).digest()
        key = hashlib.sha256(f"{settings}:{digest.hex()}:{copies[digest]}".encode()).hexdigest()
        copies[digest] += 1
        items.append(Question(key, model.count_tokens(prompt.text), prompt.cut_characters))
    return Questions(conversations, model, write, read, tuple(items))


@dataclass(frozen=True)
class CostEstimate:
    """What is still to be asked.

    ``requests``: if every answer can be read at once; ``most_requests``: if none can. ``prompt_tokens``: about how many
    ``requests`` hold; ``output_tokens``: at most how many their answers hold. ``money`` for these, in the currency of
    the prices, None without prices; ``most_money`` for ``most_requests``.
    """

    requests: int
    most_requests: int
    prompt_tokens: int
    output_tokens: int
    money: float | None = None
    most_money: float | None = None


def estimate_cost(
    questions: Sequence[Questions[T]],
    answers: Mapping[tuple[str, int], str],
    *,
    attempts: int = ATTEMPTS,
    price_in: float | None = None,
    price_out: float | None = None,
) -> CostEstimate:
    """What asking the questions without an answer will take. Prices are per million tokens; where only one is given,
    the other is 0. A question that occurs twice is asked once. Requests that a server fails to answer are repeated and
    usually cost nothing."""
    requests = most_requests = prompt_tokens = most_prompt_tokens = output_tokens = most_output_tokens = 0
    seen: set[str] = set()
    for some in questions:
        longest = some.model.sampling.max_tokens
        for number, question in enumerate(some.items):
            answer, used = some.known(number, answers, attempts)
            if answer is not None or used == attempts or question.key in seen:
                continue
            seen.add(question.key)
            left = attempts - used
            requests, most_requests = requests + 1, most_requests + left
            prompt_tokens, output_tokens = prompt_tokens + question.prompt_tokens, output_tokens + longest
            most_prompt_tokens += question.prompt_tokens * left
            most_output_tokens += longest * left
    money = most_money = None
    if price_in is not None or price_out is not None:
        of_prompt, of_output = price_in or 0.0, price_out or 0.0
        money = (prompt_tokens * of_prompt + output_tokens * of_output) / 1e6
        most_money = (most_prompt_tokens * of_prompt + most_output_tokens * of_output) / 1e6
    return CostEstimate(requests, most_requests, prompt_tokens, output_tokens, money, most_money)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """``answers``: one a question, None where none could be read.

    ``asked``: answers that arrived now. ``found``: questions that needed none. ``refused``: questions that the server
    would not answer. ``prompt_tokens``, ``output_tokens`` of the new answers, by the server's own count.
    """

    answers: tuple[T | None, ...]
    asked: int
    found: int
    refused: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
