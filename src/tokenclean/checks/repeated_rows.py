"""Rows that repeat an earlier row, and prompts that come again with another answer."""

from __future__ import annotations

from hashlib import blake2b

from tokenclean.checks.findings import Example, Found, Tally, excerpt_of, place_of, short_place
from tokenclean.pool.conversation import Conversation
from tokenclean.pool.duplicates import content_key


class Duplicates:
    """Rows that say the same as an earlier row, case and spaces aside."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}
        self._tally = Tally()

    def add(self, conversation: Conversation) -> None:
        place = place_of(conversation)
        of = self._first.setdefault(content_key(conversation), place)
        if of is not place:
            text = f"the same as {short_place(of)}"
            self._tally.add(Example(conversation.id, place, text, _beginning(conversation)))

    def found(self) -> Found:
        return self._tally.found()


class RepeatedPrompts:
    """Rows whose prompt an earlier row has, with another answer."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, set[bytes]]] = {}
        self._tally = Tally()

    def add(self, conversation: Conversation) -> None:
        if conversation.kind in ("text", "tokens"):
            return
        prompt = "\0".join(turn.content for turn in conversation.turns if turn.role != "assistant") + conversation.tools
        answer = "\0".join(turn.content for turn in conversation.turns if turn.role == "assistant")
        place, prompt_key, answer_key = place_of(conversation), _key(prompt), _key(answer)
        of, answers = self._first.setdefault(prompt_key, (place, set()))
        if of is not place and answer_key not in answers:
            text = f"the prompt of {short_place(of)}"
            self._tally.add(Example(conversation.id, place, text, _beginning(conversation)))
        answers.add(answer_key)

    def found(self) -> Found:
        return self._tally.found()


def _key(text: str) -> bytes:
    return blake2b(" ".join(text.casefold().split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _beginning(conversation: Conversation) -> str:
    return excerpt_of("\n".join(turn.content for turn in conversation.turns), 0)
