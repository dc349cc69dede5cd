"""The model's own chat template: the text it writes for a conversation, and where in it the answers lie.

A template is a program whose output says nothing about where a turn begins or ends. So the conversation is rendered
again with marks in place of known texts, and what differs from the real rendering is what stood for them. Nothing is
searched for in the real text, which may hold the template's own tags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, Turn
from tokenclean.tokens.chat import Chat, leading_end_token
from tokenclean.tokens.rendered import ContentSpan, Rendered
from tokenclean.tokens.structured_answers import locate_structured

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Located = dict[int, tuple[tuple[int, int], ContentSpan]]


def render_chat_template(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Render with the tokenizer's chat template, which is given reasoning, tool calls and the tools on offer too.

    The reasoning of an earlier turn may be missing from the text (Qwen3 leaves it out once the next question is
    there): the model does not see it at inference either. Raises TemplateError where the template refuses the
    conversation, or drops, repeats or rewrites anything else that an answer is made of, a tool's result, or the tools.
    """
    chat = Chat(conversation, tokenizer)
    text = chat.apply(chat.messages)
    _check_tools(chat, text)
    located = _locate_plain(chat, text)
    located |= {i: locate_structured(chat, text, i) for i, turn in enumerate(chat.turns) if _is_structured(turn)}
    targets = tuple(target for i, (target, _) in sorted(located.items()) if chat.turns[i].is_trained)
    contents = tuple(content for _, (_, content) in sorted(located.items()))
    return Rendered(text, targets, contents, adds_bos=False)


def _is_structured(turn: Turn) -> bool:
    return turn.role == "assistant" and bool(turn.reasoning.strip() or turn.tool_calls)


def _check_tools(chat: Chat, text: str) -> None:
    if chat.tools and chat.apply(chat.messages, has_tools=False) == text:
        raise TemplateError("the chat template does not write the tools on offer; use template: tulu")
    results = {index for index, turn in enumerate(chat.turns) if turn.role == "tool"}
    if results and (lost := results - {int(mark[1]) for mark in chat.marks(chat.all_marked)}):
        raise TemplateError(f"the chat template drops the tool's result in turns[{min(lost)}]; use template: tulu")


def _locate_plain(chat: Chat, text: str) -> Located:
    """Target and content of each answer that is content alone, by one rendering with a mark in place of each of them.

    The glue between the marks, filled with the real contents, must give the real text to the letter.
    """
    turns = chat.turns
    stem = chat.unused("\ue000mark")
    plain = [i for i, turn in enumerate(turns) if turn.role == "assistant" and not _is_structured(turn)]
    marks = {i: f"{stem}{i}\ue001" for i in plain}
    marked = chat.apply([m | {"content": marks.get(i, m["content"])} for i, m in enumerate(chat.messages)])
    glue: list[str] = []
    rest = marked
    for mark in marks.values():
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise TemplateError("the chat template drops, repeats or rewrites an assistant turn; use template: tulu")
        glue.append(before)
    glue.append(rest)
    for strip in (False, True):
        filled = [turns[i].content.strip() if strip else turns[i].content for i in marks]
        if "".join(a + b for a, b in zip(glue, [*filled, ""], strict=True)) == text:
            break
    else:
        raise TemplateError("the chat template rewrites an assistant's content, so it cannot be located; use tulu")
    located, position = {}, 0
    for number, (index, content) in enumerate(zip(marks, filled, strict=True)):
        before = glue[number]
        position += len(before)
        start, end = position, position + len(content)
        skipped = len(turns[index].content) - len(turns[index].content.lstrip()) if strip else 0
        spaces = len(before) - len(before.rstrip(" "))
        end_token = leading_end_token(glue[number + 1], chat.tokenizer)
        located[index] = (start - spaces, end + len(end_token)), ContentSpan(index, start, end, skipped)
        position = end
    return located
