"""A local server of chat completions that misbehaves as it is told, and remembers what it was asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from local_server import LocalServer, Request
from local_server import Reply as LocalReply
from tokenclean.asking.questions import AskedModel, Questions
from tokenclean.asking.settings import Sampling
from tokenclean.ds2.rating_prompt import Rating, rating_questions
from tokenclean.pool import Conversation, Turn

__all__ = ["GOOD", "RatingServer", "Reply", "Request", "completion", "conversations", "questions_about"]

GOOD = '{"rarity": 3, "complexity": 4, "informativeness": 5, "overall": 7}'


@dataclass(frozen=True)
class Reply(LocalReply):
    """``content``: of a chat completion."""

    content: Any = GOOD


class RatingServer(LocalServer):
    """Answers requests with chat completions. ``text`` of a request is the user's message."""

    def text_of(self, body: dict[str, Any]) -> str:
        return body["messages"][0]["content"]

    def written(self, content: Any) -> str:
        return completion(content)


def completion(content: Any) -> str:
    """The JSON of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})


def conversations(count: int) -> list[Conversation]:
    """Short ones, each of its own text."""
    turns = [(Turn("user", f"Question {n}?"), Turn("assistant", f"Answer {n}.")) for n in range(count)]
    return [
        Conversation(f"pool:{n + 1}:{n:012x}", "pool", t, file="pool.jsonl", line=n + 1) for n, t in enumerate(turns)
    ]


def questions_about(count: int, model: str = "some-model", sampling: Sampling | None = None) -> Questions[Rating]:
    """What a rater is asked about so many rows."""
    return rating_questions(conversations(count), AskedModel(model, sampling or Sampling()))
