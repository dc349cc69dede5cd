"""What a chat template does with conversations of one outline, kept: a pool's rows share a few outlines."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from tokenclean.tokens.answer_edges import EdgeFinder, Edges
from tokenclean.tokens.chat_messages import Chat, Message, template_texts
from tokenclean.tokens.outline import Mark, Outline
from tokenclean.tokens.skeleton import Skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEPT_FRAMES = 512
_KEPT_TURNS = 64  # longer conversations hardly share their outline


class Frame:
    """The skeleton of an outline with its arguments marked, and the edges of its answers."""

    def __init__(self, outline: Outline, finder: EdgeFinder) -> None:
        messages = outline.messages(marks_arguments=True)
        rendering = outline.chat.apply(messages)
        self.skeleton = Skeleton.read(rendering, outline.stem)
        self.writes_tools = not outline.chat.tools or outline.chat.apply(messages, has_tools=False) != rendering
        self.is_sound = False
        """Whether its rules are checked already, with nothing dropped."""
        self._finder = finder
        self._messages: list[Message] = messages
        self._edges: dict[int, Edges] | None = None

    @cached_property
    def counts(self) -> Counter[Mark]:
        """How often each mark is written."""
        return Counter(self.skeleton.marks)

    def edges(self, outline: Outline) -> dict[int, Edges]:
        """Edges of each answer that is written. Raises TemplateError where they cannot be known."""
        if self._edges is None:
            self._edges = self._finder.find(outline, self._messages, self.skeleton)
        return self._edges


class Frames:
    """The frames of one template, those used last."""

    def __init__(self) -> None:
        self._frames: OrderedDict[Hashable, Frame] = OrderedDict()
        self._finder = EdgeFinder()

    def find(self, outline: Outline) -> Frame:
        """The frame of all conversations with this outline. Raises TemplateError where the template refuses it."""
        shape = outline.shape
        if (frame := self._frames.get(shape)) is None:
            frame = Frame(outline, self._finder)
            if len(outline.turns) <= _KEPT_TURNS:
                self._frames[shape] = frame
            if len(self._frames) > _KEPT_FRAMES:
                self._frames.popitem(last=False)
        else:
            self._frames.move_to_end(shape)
        return frame


def frames_of(chat: Chat) -> Frames:
    """The frames of the conversation's template; they depend on its tokenizer and date too."""
    tokenizer: Any = chat.tokenizer
    texts = template_texts(tokenizer)
    return _frames(tokenizer, texts, chat.date, len(tokenizer), tokenizer.bos_token, tokenizer.eos_token)


@lru_cache(maxsize=4)
def _frames(_tokenizer: PreTrainedTokenizerBase, _texts: tuple[str, ...], _date: str, *_tokens: object) -> Frames:
    return Frames()
