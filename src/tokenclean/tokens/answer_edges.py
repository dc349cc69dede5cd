"""Where a chat template's own text around an answer belongs to the answer: the one rule for every kind of answer.

Everything that the template writes behind its generation prompt, up to and including the end token, is the answer's and
is trained: a header such as ``<|channel|>final<|message|>``, an empty thought, a newline. That is what the model has to
produce at inference, where the generation prompt is what it is given. It holds for plain answers, thoughts and calls.

A template without a generation prompt writes its header in front of every answer: what stands in front of a plain
answer is then its prompt. A prompt that opens a thought is only partly there in an answer without one: the answer
begins where the two part. Spaces at the end of the prompt are the answer's: a token takes them with its word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tokenclean.errors import TemplateError
from tokenclean.tokens.chat_messages import Chat, Message
from tokenclean.tokens.outline import CONTENT, Mark, Outline
from tokenclean.tokens.role_markers import KNOWN_ENDS
from tokenclean.tokens.skeleton import Skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

# A template on a tokenizer that knows none of its tokens still ends an answer by a tag.
_TAG = re.compile(r"</?[^\s<>]{1,40}>|\[/?[A-Z_]{2,40}\]")
_KEPT = 4096
_TAG_ENDS = re.compile(r"\n|>|\]")


class Edges(NamedTuple):
    """An answer's place in a skeleton whose arguments are marked.

    ``first``/``last``: its outer marks, by number. ``start``: characters of the glue in front of ``first`` that are
    not the answer's. ``closing``: characters of the glue behind ``last`` that are, the end token included, of which
    ``end_token`` characters.
    """

    first: int
    last: int
    start: int
    closing: int
    end_token: int


@dataclass
class EdgeFinder:
    """Finds the edges of answers under one template.

    What further renderings say about one answer holds for every answer with the same turn and the same glue in front of
    it, so it is kept: a long conversation costs few of them.
    """

    _leads: dict[Hashable, int] = field(default_factory=dict)
    _usual_ends: dict[Hashable, str] = field(default_factory=dict)

    def find(self, outline: Outline, messages: list[Message], skeleton: Skeleton) -> dict[int, Edges]:
        """Edges of each answer of which a mark is written. Raises TemplateError where they cannot be known."""
        places: dict[int, list[int]] = {}
        for number, mark in enumerate(skeleton.marks):
            places.setdefault(mark.turn, []).append(number)
        edges = {}
        for index, turn in enumerate(outline.chat.turns):
            if turn.role != "assistant" or not (own := places.get(index)):
                continue
            first, last = own[0], own[-1]
            if last - first >= len(own):
                raise unlocated(index, "writes another turn in the middle of")
            around = _Around(outline, messages, index)
            start = self._start(around, skeleton.glue[first])
            closing, end_token = self._closing(around, skeleton.glue[last + 1], skeleton.marks[last])
            edges[index] = Edges(first, last, start, len(closing), len(end_token))
        return edges

    def _start(self, around: _Around, before: str) -> int:
        glue = before
        for call_id in around.ids_in_front:
            glue = glue.replace(call_id, "id")
        key = glue, around.is_plain, around.shape_before
        lead = _kept(self._leads, key, lambda: len(before) - _start(around, before))
        return len(before) - lead

    def _closing(self, around: _Around, after: str, last: Mark) -> tuple[str, str]:
        """The template's own text from the answer's last mark through its end token, and that token.

        Behind a content the end token follows at once. Behind a call it is that of a plain answer, or else the first
        special token (Llama 3 ends some calls by ``<|eom_id|>``, GLM by the tag of the turn that follows).
        """
        tokenizer, index = around.chat.tokenizer, around.index
        if last.kind == CONTENT and not around.chat.turns[index].tool_calls:
            closing = leading_end_token(after, tokenizer)
            return closing, closing.lstrip(" \n")
        usual = _kept(
            self._usual_ends,
            around.shape_before,
            lambda: leading_end_token(around.around_plain()[1], tokenizer).strip(),
        )
        for tokens in ([usual] if usual else [], special_tokens(tokenizer), KNOWN_ENDS):
            places = [(after.index(token), -len(token), token) for token in tokens if token in after]
            if places:
                place, _, token = min(places)
                return after[: place + len(token)], token
        if index == len(around.chat.turns) - 1:
            return after.rstrip(), ""
        raise TemplateError(f"the chat template writes no end token behind turns[{index}]; use template: tulu")


def _kept(known: dict[Hashable, T], key: Hashable, find: Callable[[], T]) -> T:
    if key not in known:
        found = find()
        if len(known) >= _KEPT:
            known.clear()
        known[key] = found
    return known[key]


@dataclass(frozen=True)
class _Around:
    """One answer, and further renderings of what stands in front of it."""

    outline: Outline
    messages: list[Message]
    index: int

    @property
    def chat(self) -> Chat:
        return self.outline.chat

    @property
    def is_plain(self) -> bool:
        return self.outline.turns[self.index].is_plain

    @property
    def shape_before(self) -> Hashable:
        return self.outline.shape_before(self.index)

    @property
    def ids_in_front(self) -> set[str]:
        """Ids of calls that may stand in the glue in front of the answer."""
        turns = self.chat.turns[max(self.index - 1, 0) : self.index + 1]
        return ({turn.call_id for turn in turns} | {call.id for turn in turns for call in turn.tool_calls}) - {""}

    def glue_at_end(self, *, has_prompt: bool) -> str | None:
        """What stands behind the last text in front of the answer; None where the template refuses it."""
        if not self.index:
            return None
        try:
            text = self.chat.apply(self.messages[: self.index], has_prompt=has_prompt)
        except TemplateError:
            return None
        return Skeleton.read(text, self.outline.stem).glue[-1]

    def around_plain(self) -> tuple[str, str]:
        """What would stand in front of and behind a plain answer here; empty where the template refuses it."""
        mark = Mark(self.index, CONTENT)
        plain = {"role": "assistant", "content": mark.spelled(self.outline.stem)}
        try:
            text = self.chat.apply([*self.messages[: self.index], plain])
        except TemplateError:
            return "", ""
        skeleton = Skeleton.read(text, self.outline.stem)
        if skeleton.marks.count(mark) != 1:
            return "", ""
        place = skeleton.marks.index(mark)
        return skeleton.glue[place], skeleton.glue[place + 1]

    def prompt_of_a_question(self) -> str:
        """The generation prompt behind a lone question; empty where there is none."""
        question = [{"role": "user", "content": "question"}]
        try:
            asked, prompted = self.chat.apply(question), self.chat.apply(question, has_prompt=True)
        except TemplateError:
            return ""
        return prompted.removeprefix(_common(asked, prompted))


def _start(around: _Around, before: str) -> int:
    """Where in the template's own text in front of an answer the model begins to write."""
    history, prompted = (around.glue_at_end(has_prompt=has_prompt) for has_prompt in (False, True))
    if history is None or prompted is None:
        history, prompted, prompt = "", "", around.prompt_of_a_question()
    else:
        prompt = prompted.removeprefix(_common(history, prompted))
    if prompt and prompted and before.startswith(prompted):
        start = len(prompted)
    elif prompt and (place := before.rfind(prompt)) >= 0:
        start = place + len(prompt)
    else:
        others = [prompted, history, prompt]
        if not around.is_plain:
            others.append(around.around_plain()[0])
        start = max(_shared(around.chat.tokenizer, before, other) for other in others)
        if around.is_plain and not (prompt and start):
            start = len(before)
    if before and not start:
        raise unlocated(around.index, "writes no generation prompt in front of")
    return len(before[:start].rstrip(" "))


def _shared(tokenizer: PreTrainedTokenizerBase, before: str, other: str) -> int:
    """Length of the common beginning; where the two part inside a tag (``<think>``, ``<tool_call>``), up to the tag."""
    common = _common(before, other)
    if len(common) in (len(before), len(other)):
        return len(common)
    ends = [match.end() for match in _TAG_ENDS.finditer(common)]
    ends += [common.rfind(token) + len(token) for token in special_tokens(tokenizer) if token in common]
    return max(ends, default=0)


def _common(one: str, other: str) -> str:
    """What two texts begin with both."""
    length = min(len(one), len(other))
    return one[: next((n for n in range(length) if one[n] != other[n]), length)]


def leading_end_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The special token or, for want of one, the tag that the text begins with, and the blanks in front of it."""
    blank = len(text) - len(text.lstrip(" \n"))
    token = next((t for t in special_tokens(tokenizer) if text.startswith(t, blank)), "")
    if not token and (tag := _TAG.match(text, blank)):
        token = tag[0]
    return text[:blank] + token if token else ""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts of the special tokens, longest first."""
    return _special_tokens(tokenizer, len(tokenizer))


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, _vocabulary_size: int) -> tuple[str, ...]:
    """Kept, since listing Gemma's 6,000 takes 7 ms, for every row."""
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(sorted(special, key=len, reverse=True))


def unlocated(index: int, what: str = "drops, repeats or rewrites part of") -> TemplateError:
    """The error for an answer that the template does not write as it is."""
    return TemplateError(
        f"the chat template {what} the answer in turns[{index}], so it cannot be located; use template: tulu"
    )
