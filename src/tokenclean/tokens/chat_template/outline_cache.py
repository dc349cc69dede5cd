"""What a chat template does with conversations of one shape, cached: a pool's rows share a few shapes."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from tokenclean.tokens.chat_template.answer_edges import Edges, KnownEdges, find_edges
from tokenclean.tokens.chat_template.date import template_texts
from tokenclean.tokens.chat_template.skeleton import Skeleton
from tokenclean.tokens.chat_template.text_marks import Mark, MarkedChat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEPT_FRAMES = 512
_KEPT_TURNS = 64  # longer conversations hardly share their shape


class Frame:
    """The skeleton of a shape with its arguments marked, and the edges of its answers."""

    def __init__(self, marked: MarkedChat, known: KnownEdges) -> None:
        self._chat = marked.spelled(marks_arguments=True)
        self._known = known
        self._edges: dict[int, Edges] | None = None
        rendering = self._chat.apply()
        self.skeleton = Skeleton.read(rendering, marked.stem)
        self.writes_tools = not self._chat.tools or self._chat.apply(has_tools=False) != rendering
        self.is_sound = False
        """Whether it has passed its checks already, with nothing dropped."""

    @cached_property
    def counts(self) -> Counter[Mark]:
        """How often each mark is written."""
        return Counter(self.skeleton.marks)

    def edges(self, marked: MarkedChat) -> dict[int, Edges]:
        """Edges of each answer that is written. Raises TemplateError if they cannot be known."""
        if self._edges is None:
            self._edges = find_edges(marked, self._chat, self.skeleton, self._known)
        return self._edges


class Frames:
    """The frames of one template, those used last."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._known = KnownEdges(tuple(sorted(special, key=len, reverse=True)))
        self._frames: OrderedDict[Hashable, Frame] = OrderedDict()

    def find(self, marked: MarkedChat) -> Frame:
        """The frame of all conversations of this shape. Raises TemplateError if the template refuses it."""
        shape = marked.shape
        frame = self._frames.pop(shape, None) or Frame(marked, self._known)
        if len(marked.turns) <= _KEPT_TURNS:
            self._frames[shape] = frame
        if len(self._frames) > _KEPT_FRAMES:
            self._frames.popitem(last=False)
        return frame


def find_frame(marked: MarkedChat) -> Frame:
    """The frame of the marked chat under its template, tokenizer and date."""
    tokenizer, date = marked.chat.tokenizer, marked.chat.date
    ends = str(tokenizer.bos_token), str(tokenizer.eos_token)
    return _frames(tokenizer, template_texts(tokenizer), date, len(tokenizer), ends).find(marked)


@lru_cache(maxsize=4)
def _frames(tokenizer: PreTrainedTokenizerBase, *_key: object) -> Frames:
    """``_key``: what else the text of a template depends on."""
    return Frames(tokenizer)
