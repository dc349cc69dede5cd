"""The checks of what a chat template wrote: what of a conversation it has to write, and what it may leave out."""

from __future__ import annotations

from itertools import pairwise

from tokenclean.errors import TemplateError
from tokenclean.tokens.tokenizer_template.chat import Chat
from tokenclean.tokens.tokenizer_template.frames import Frame
from tokenclean.tokens.tokenizer_template.marks import CONTENT, KEY, THOUGHT_TAGS, VALUE, Mark, MarkedChat


def check_frame(marked: MarkedChat, frame: Frame) -> frozenset[int]:
    """The turns, none of them an answer, that the template rewrites beyond recognition.

    Raises TemplateError for a text that it loses or repeats.
    """
    chat = marked.chat
    _check_tools(chat, frame)
    rewritten = frozenset([mark.turn for mark in marked.texts if _is_rewritten(marked, frame, mark)])
    _check_arguments(chat, frame)
    order = [mark.turn for mark in frame.skeleton.marks if chat.turns[mark.turn].role != "system"]
    if moved := next((first for first, second in pairwise(order) if first > second), 0):
        raise TemplateError(f"the chat template writes turns[{moved}] in front of an earlier turn; use template: tulu")
    frame.is_sound = all(frame.counts[mark] for mark in marked.texts)
    return rewritten


def _is_rewritten(marked: MarkedChat, frame: Frame, mark: Mark) -> bool:
    count = frame.counts[mark]
    if count == 1:
        return False
    if not count and mark.kind != CONTENT:
        _check_dropped_thought(marked, mark)
        return False
    role = marked.chat.turns[mark.turn].role
    is_ignored = not count and _is_ignored(marked.chat, mark.turn)
    if not (count or is_ignored or role == "assistant"):
        return True
    verb = "repeats" if count else "drops" if is_ignored else "rewrites"
    part, remedy = f"{role} turn", "use template: tulu"
    if role == "system":
        remedy += ", or put its text in front of the first question"
    elif role == "assistant":
        has_calls = marked.chat.turns[mark.turn].tool_calls
        part = "thoughts" if mark.kind != CONTENT else "text beside the calls" if has_calls else "answer"
    raise TemplateError(f"the chat template {verb} the {part} in turns[{mark.turn}]; {remedy}")


def _is_ignored(chat: Chat, index: int) -> bool:
    """Whether the template writes the same for any content of the turn."""
    before, message, after = chat.messages[:index], chat.messages[index], chat.messages[index + 1 :]
    texts = {chat.apply([*before, message | {"content": content}, *after]) for content in ("question", "answer")}
    return len(texts) == 1


def _check_dropped_thought(marked: MarkedChat, mark: Mark) -> None:
    """A thought may be dropped if the model does not see it at inference either."""
    turns = marked.chat.turns
    if turns[mark.turn].is_trained and not any(turn.role in ("user", "assistant") for turn in turns[mark.turn + 1 :]):
        raise TemplateError(
            f"the chat template drops the thoughts in turns[{mark.turn}] ({len(marked.texts[mark].strip())} "
            "characters), so the model would not learn to think; template: tulu keeps them"
        )


def _check_arguments(chat: Chat, frame: Frame) -> None:
    for index, turn in enumerate(chat.turns):
        for number, call in enumerate(turn.tool_calls):
            counts = {frame.counts[Mark(index, kind, number)] for kind in (KEY, VALUE)}
            if counts != {1}:
                verb = "repeats" if max(counts) > 1 else "drops"
                raise TemplateError(
                    f"the chat template {verb} the arguments of the call {call.name!r}, part of the answer in "
                    f"turns[{index}]; use template: tulu"
                )


def _check_tools(chat: Chat, frame: Frame) -> None:
    if not frame.writes_tools:
        raise TemplateError("the chat template does not write the tools on offer; use template: tulu")
    for tool in chat.tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if name and isinstance(name, str) and not any(name in glue for glue in frame.skeleton.glue):
            raise TemplateError(f"the chat template does not write the tool {name!r} on offer; use template: tulu")


def rewritten_answer(chat: Chat, mark: Mark | None) -> TemplateError:
    """The error for a conversation whose texts are not what the template wrote, because it rewrites an answer.

    ``mark``: the first one that does not fit, or the text after it does not.
    """
    answers = [index for index, turn in enumerate(chat.turns) if turn.role == "assistant"]
    near = [index for index in answers if mark is None or index >= mark.turn] or answers[-1:]
    if not near:
        return TemplateError("the chat template rewrites the conversation, which holds no answer; use template: tulu")
    for index in near[:2]:
        if fault := _odd_tags(chat.turns[index].content):
            return TemplateError(f"the chat template rewrites the answer in turns[{index}]: its content holds {fault}")
    return TemplateError(
        f"the chat template rewrites the answer in turns[{near[0]}], so it cannot be located; use template: tulu"
    )


def _odd_tags(content: str) -> str:
    """What is wrong with the thought tags in a content, and what to do; empty if nothing is."""
    for opening, closing in THOUGHT_TAGS:
        opened, closed = content.count(opening), content.count(closing)
        if opened != closed:
            more, fewer = (opening, closing) if opened > closed else (closing, opening)
            remedy = "--repair-thoughts completes the tags; or use template: tulu"
            return f"`{more.strip()}` without `{fewer.strip()}`; {remedy}"
        if opened and (opened > 1 or not content.lstrip().startswith(opening)):
            return f"`{opening.strip()}` not once at its start, where thoughts are; use template: tulu"
    return ""
