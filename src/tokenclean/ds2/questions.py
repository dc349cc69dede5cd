"""The questions a rater is asked about a pool, how it samples its answers, and what asking will cost."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tokenclean.ds2.rater_settings import Sampling
from tokenclean.ds2.rating_prompt import Rating, RatingPrompt, Shorten, first_characters, parse_answer, rating_prompt
from tokenclean.ds2.ratings import Ratings
from tokenclean.pool import Conversation
from tokenclean.store import fingerprint

ATTEMPTS = 3
"""How often a question is asked, at most, until an answer can be read."""
CHARACTERS_PER_TOKEN = 4
"""Estimates the number of tokens where the rater's tokenizer is not available."""


@dataclass(frozen=True)
class Question:
    """The question about one row. ``key``: hash of rater, prompt and sampling. ``prompt_tokens``: an estimate.
    ``cut_characters``: how many of the sample the prompt leaves out."""

    key: str
    prompt_tokens: int
    cut_characters: int


@dataclass(frozen=True)
class Questions:
    """A rater's questions about conversations, ``items[i]`` about ``conversations[i]``.

    ``rater``: its name, by which a server knows it. Prompts are built again when they are asked, since together they
    are several times as large as the pool.
    """

    conversations: Sequence[Conversation]
    rater: str
    sampling: Sampling
    shorten: Shorten
    items: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.items)

    def prompt(self, row: int) -> RatingPrompt:
        return rating_prompt(self.conversations[row], self.shorten)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(conversation.id for conversation in self.conversations)

    @property
    def cut(self) -> int:
        """Number of rows whose sample is too long to be shown whole."""
        return sum(question.cut_characters > 0 for question in self.items)


def prepare_questions(
    conversations: Sequence[Conversation],
    rater: str,
    *,
    sampling: Sampling | None = None,
    shorten: Shorten | None = None,
    count_tokens: Callable[[str], int] | None = None,
    identity: str | None = None,
) -> Questions:
    """The questions about every conversation.

    ``sampling``: ``Sampling()`` by default. ``shorten``: ``first_characters()`` by default. ``count_tokens`` of a
    prompt: by default a quarter of its characters. ``identity``: what the keys hold for the rater where its name is
    not enough (a local folder). Rows of the same text are separate questions: their ratings must err independently,
    since the transition matrix is estimated from such errors. Raises TemplateError for a row without text.
    """
    sampling = sampling or Sampling()
    shorten = shorten or first_characters()
    count_tokens = count_tokens or (lambda text: math.ceil(len(text) / CHARACTERS_PER_TOKEN))
    settings = fingerprint({"rater": rater if identity is None else identity, "sampling": sampling.model_dump()})
    copies: Counter[bytes] = Counter()
    items = []
    for conversation in conversations:
        prompt = rating_prompt(conversation, shorten)
        digest = hashlib.sha256(prompt.text.encode()).digest()
        key = hashlib.sha256(f"{settings}:{digest.hex()}:{copies[digest]}".encode()).hexdigest()
        copies[digest] += 1
        items.append(Question(key, count_tokens(prompt.text), prompt.cut_characters))
    return Questions(conversations, rater, sampling, shorten, tuple(items))


def known_rating(
    answers: Mapping[tuple[str, int], str], question: Question, attempts: int = ATTEMPTS
) -> tuple[Rating | None, int]:
    """The first readable answer, and how many attempts were used; without a rating and with fewer than ``attempts``
    used, the question is still to be asked."""
    for attempt in range(1, attempts + 1):
        text = answers.get((question.key, attempt))
        if text is None:
            return None, attempt - 1
        if (rating := parse_answer(text)) is not None:
            return rating, attempt
    return None, attempts


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
    questions: Questions,
    answers: Mapping[tuple[str, int], str],
    *,
    attempts: int = ATTEMPTS,
    price_in: float | None = None,
    price_out: float | None = None,
) -> CostEstimate:
    """What asking the questions without an answer will take. Prices are per million tokens; where only one is given,
    the other is 0. Requests that a server fails to answer are repeated and usually cost nothing."""
    requests = most_requests = prompt_tokens = most_prompt_tokens = 0
    for question in questions.items:
        rating, used = known_rating(answers, question, attempts)
        if rating is None and used < attempts:
            requests += 1
            most_requests += attempts - used
            prompt_tokens += question.prompt_tokens
            most_prompt_tokens += question.prompt_tokens * (attempts - used)
    longest, money, most_money = questions.sampling.max_tokens, None, None
    if price_in is not None or price_out is not None:
        of_prompt, of_output = price_in or 0.0, price_out or 0.0
        money = (prompt_tokens * of_prompt + requests * longest * of_output) / 1e6
        most_money = (most_prompt_tokens * of_prompt + most_requests * longest * of_output) / 1e6
    return CostEstimate(requests, most_requests, prompt_tokens, requests * longest, money, most_money)


@dataclass(frozen=True)
class RatingRun:
    """The outcome of asking.

    ``asked``: answers that arrived now. ``found``: rows that needed none. ``refused``: rows that the server would not
    rate. ``prompt_tokens``, ``output_tokens`` of the new answers, by the server's own count.
    """

    ratings: Ratings
    asked: int
    found: int
    refused: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
