"""What a chat template does with conversations of one shape, cached: a pool's rows share a few shapes.

Where its own text around an answer belongs to the answer is one rule for every kind of answer.
Everything that the template writes after its generation prompt, up to and including the end token, is the answer's and
is trained: a header such as ``<|channel|>final<|message|>``, an empty thought, a newline. That is what the model has to
produce at inference, where it is given the generation prompt. It holds for plain answers, thoughts and calls.

A template without a generation prompt writes its header in front of every answer: what comes before a plain answer is
then its prompt. A prompt that opens a thought is only partly there in an answer without one: the answer begins where
the two differ. Spaces at the end of the prompt are the answer's: a token takes them with its word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tokenclean.errors import TemplateError
from tokenclean.tokens.tokenizer_template.chat import template_texts
from tokenclean.tokens.tokenizer_template.marks import CONTENT, Mark, MarkedChat, Skeleton
from tokenclean.tokens.turn_markers import KNOWN_ENDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

# A template on a tokenizer that knows none of its tokens still ends an answer by a tag.
_TAG = re.compile(r"</?[^\s<>]{1,40}>|\[/?[A-Z_]{2,40}\]")
_TAG_ENDS = re.compile(r"\n|>|\]")
_REMEMBERED = 4096
_KEPT_FRAMES = 512
_KEPT_TURNS = 64  # longer conversations hardly share their shape


class Edges(NamedTuple):
    """An answer's place in a skeleton whose arguments are marked.

    ``first``/``last``: its outer marks, by number. ``start``: characters of the glue before ``first`` that are not the
    answer's. ``closing``: characters of the glue after ``last`` that are, including the end token of ``end_token``
    characters.
    """

    first: int
    last: int
    start: int
    closing: int
    end_token: int


@dataclass
class _KnownTemplate:
    """What is known about one template and tokenizer.

    ``special``: texts of the special tokens, longest first; listing Gemma's 6,000 takes 7 ms. ``frames``: those used
    last, by shape. What a further rendering shows holds for every answer with the same turn and the same glue in front
    of it, so a long conversation costs few of them: ``leads``: characters of the glue before an answer that are the
    answer's; ``end_tokens``: those of plain answers.
    """

    special: tuple[str, ...]
    frames: dict[Hashable, Frame] = field(default_factory=dict)
    leads: dict[Hashable, int] = field(default_factory=dict)
    end_tokens: dict[Hashable, str] = field(default_factory=dict)


class Frame:
    """What the template does with all conversations of one shape: their skeleton, with the arguments of calls marked,
    and the edges of their answers."""

    def __init__(self, marked: MarkedChat, known: _KnownTemplate) -> None:
        self._marked, self._known = marked, known
        self._chat = marked.spelled(marks_arguments=True)
        rendering = self._chat.apply()
        self.skeleton = Skeleton.read(rendering, marked.stem)
        self.writes_tools = not self._chat.tools or self._chat.apply(has_tools=False) != rendering
        self.is_sound = False
        """Whether it has passed its checks already, with nothing dropped."""

    @cached_property
    def counts(self) -> Counter[Mark]:
        """How often each mark is written."""
        return Counter(self.skeleton.marks)

    @cached_property
    def edges(self) -> dict[int, Edges]:
        """Edges of each answer of which a mark is written. Raises TemplateError if they cannot be known."""
        places: dict[int, list[int]] = {}
        for number, mark in enumerate(self.skeleton.marks):
            places.setdefault(mark.turn, []).append(number)
        edges = {}
        for index, turn in enumerate(self._chat.turns):
            if turn.role != "assistant" or not (own := places.get(index)):
                continue
            first, last = own[0], own[-1]
            if last - first >= len(own):
                raise unlocated(index, "writes another turn in the middle of")
            closing, end_token = self._closing(index, self.skeleton.glue[last + 1], self.skeleton.marks[last])
            start = self._start(index, self.skeleton.glue[first])
            edges[index] = Edges(first, last, start, len(closing), len(end_token))
        return edges

    def _start(self, index: int, before: str) -> int:
        """Where in the glue before the answer the model begins to write."""
        glue = before  # without the ids of calls, which differ from answer to answer
        for turn in self._chat.turns[max(index - 1, 0) : index + 1]:
            for call_id in {turn.call_id, *(call.id for call in turn.tool_calls)} - {""}:
                glue = glue.replace(call_id, "id")
        key = glue, self._marked.turns[index].is_plain, self._marked.shape_before(index)
        return len(before) - _remember(self._known.leads, key, lambda: len(before) - self._find_start(index, before))

    def _closing(self, index: int, after: str, last: Mark) -> tuple[str, str]:
        """The template's own text from the answer's last mark through its end token, and that token.

        After a content the end token follows at once. After a call it is that of a plain answer, or else the first
        special token (Llama 3 ends some calls by ``<|eom_id|>``, GLM by the tag of the turn that follows).
        """
        special, turns = self._known.special, self._chat.turns
        if last.kind == CONTENT and not turns[index].tool_calls:
            closing = _leading_end_token(after, special)
            return closing, closing.lstrip(" \n")
        usual = _remember(
            self._known.end_tokens,
            self._marked.shape_before(index),
            lambda: _leading_end_token(self._around_plain(index)[1], special).strip(),
        )
        for tokens in ([usual] if usual else [], special, KNOWN_ENDS):
            places = [(after.index(token), -len(token), token) for token in tokens if token in after]
            if places:
                place, _, token = min(places)
                return after[: place + len(token)], token
        if index == len(turns) - 1:
            return after.rstrip(), ""
        raise TemplateError(f"the chat template writes no end token after turns[{index}]; use template: tulu")

    def _find_start(self, index: int, before: str) -> int:
        is_plain = self._marked.turns[index].is_plain
        history, prompted = (self._glue_in_front(index, has_prompt=has_prompt) for has_prompt in (False, True))
        if history is None or prompted is None:
            history, prompted, prompt = "", "", self._prompt_of_a_question()
        else:
            prompt = _what_follows(history, prompted)
        if prompt and prompted and before.startswith(prompted):
            start = len(prompted)
        elif prompt and (place := before.rfind(prompt)) >= 0:
            start = place + len(prompt)
        else:
            others = [prompted, history, prompt]
            if not is_plain:
                others.append(self._around_plain(index)[0])
            start = max(_shared(before, other, self._known.special) for other in others)
            if is_plain and not (prompt and start):
                start = len(before)
        if before and not start:
            raise unlocated(index, "writes no generation prompt in front of")
        return len(before[:start].rstrip(" "))

    def _glue_in_front(self, index: int, *, has_prompt: bool) -> str | None:
        """The glue after the last text in front of the answer; None if the template refuses these messages."""
        text = self._chat.try_apply(self._chat.messages[:index], has_prompt=has_prompt) if index else None
        return None if text is None else Skeleton.read(text, self._marked.stem).glue[-1]

    def _around_plain(self, index: int) -> tuple[str, str]:
        """The glue before and after a plain answer in the same place; empty if the template refuses it."""
        mark = Mark(index, CONTENT)
        plain = {"role": "assistant", "content": mark.spelled(self._marked.stem)}
        skeleton = Skeleton.read(self._chat.try_apply([*self._chat.messages[:index], plain]) or "", self._marked.stem)
        if skeleton.marks.count(mark) != 1:
            return "", ""
        place = skeleton.marks.index(mark)
        return skeleton.glue[place], skeleton.glue[place + 1]

    def _prompt_of_a_question(self) -> str:
        """The generation prompt after a lone question; empty if there is none."""
        question = [{"role": "user", "content": "question"}]
        asked, prompted = self._chat.try_apply(question), self._chat.try_apply(question, has_prompt=True)
        return "" if asked is None or prompted is None else _what_follows(asked, prompted)


def find_frame(marked: MarkedChat) -> Frame:
    """The frame of the marked chat under its template, tokenizer and date. Raises TemplateError if the template refuses
    it."""
    tokenizer, date = marked.chat.tokenizer, marked.chat.date
    ends = str(tokenizer.bos_token), str(tokenizer.eos_token)
    known = _known_template(tokenizer, template_texts(tokenizer), date, len(tokenizer), ends)
    shape = marked.shape
    frame = known.frames.pop(shape, None) or Frame(marked, known)
    if len(marked.turns) <= _KEPT_TURNS:
        known.frames[shape] = frame
    if len(known.frames) > _KEPT_FRAMES:
        known.frames.pop(next(iter(known.frames)))
    return frame


@lru_cache(maxsize=4)
def _known_template(tokenizer: PreTrainedTokenizerBase, *_key: object) -> _KnownTemplate:
    """``_key``: what else the text of a template depends on."""
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return _KnownTemplate(tuple(sorted(special, key=len, reverse=True)))


def _remember(known: dict[Hashable, T], key: Hashable, find: Callable[[], T]) -> T:
    if key not in known:
        found = find()
        if len(known) >= _REMEMBERED:
            known.clear()
        known[key] = found
    return known[key]


def _what_follows(history: str, prompted: str) -> str:
    return prompted.removeprefix(_common(history, prompted))


def _common(one: str, other: str) -> str:
    """What both texts begin with."""
    length = min(len(one), len(other))
    return one[: next((n for n in range(length) if one[n] != other[n]), length)]


def _shared(before: str, other: str, special: tuple[str, ...]) -> int:
    """Length of the common beginning; if the two differ inside a tag (``<think>``, ``<tool_call>``), up to the tag."""
    common = _common(before, other)
    if len(common) in (len(before), len(other)):
        return len(common)
    ends = [match.end() for match in _TAG_ENDS.finditer(common)]
    ends += [common.rfind(token) + len(token) for token in special if token in common]
    return max(ends, default=0)


def _leading_end_token(text: str, special: tuple[str, ...]) -> str:
    """The special token (if there is none, the tag) that the text begins with, and the blanks in front of it."""
    blank = len(text) - len(text.lstrip(" \n"))
    token = next((t for t in special if text.startswith(t, blank)), "")
    if not token and (tag := _TAG.match(text, blank)):
        token = tag[0]
    return text[:blank] + token if token else ""


def unlocated(index: int, what: str = "drops, repeats or rewrites part of") -> TemplateError:
    """The error for an answer that the template does not write word for word."""
    return TemplateError(
        f"the chat template {what} the answer in turns[{index}], so it cannot be located; use template: tulu"
    )
