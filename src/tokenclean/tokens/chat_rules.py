"""The rules of rendering with a chat template: what it has to write of a conversation, and what it may leave out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Turn
from tokenclean.tokens.chat_messages import Chat
from tokenclean.tokens.frames import Frame
from tokenclean.tokens.outline import CONTENT, KEY, THOUGHT_TAGS, VALUE, Mark, Outline


def check_marks(outline: Outline, frame: Frame) -> frozenset[int]:
    """Raise TemplateError for what the template loses or repeats; the turns that it rewrites past recognition."""
    chat = outline.chat
    _check_tools(chat, frame)
    rewritten = {mark.turn for mark, said in outline.texts.items() if _is_lost(outline, frame, mark, said)}
    _check_arguments(chat, frame)
    order = [mark.turn for mark in frame.skeleton.marks if chat.turns[mark.turn].role != "system"]
    if moved := next((first for first, second in pairwise(order) if first > second), 0):
        raise TemplateError(f"the chat template writes turns[{moved}] in front of an earlier turn; use template: tulu")
    frame.is_sound = all(frame.counts[mark] for mark in outline.texts)
    return frozenset(rewritten)


def _is_lost(outline: Outline, frame: Frame, mark: Mark, said: str) -> bool:
    """Whether a turn that is no answer is written past recognition; a TemplateError where a text is lost."""
    count, turn = frame.counts[mark], outline.chat.turns[mark.turn]
    if count > 1:
        raise _refusal("repeats", mark, turn)
    if count:
        return False
    if mark.kind != CONTENT:
        _check_thought(outline.chat, mark, said)
        return False
    is_ignored = _is_ignored(outline, mark.turn)
    if is_ignored or turn.role == "assistant":
        raise _refusal("drops" if is_ignored else "rewrites", mark, turn)
    return True


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
    if not chat.tools:
        return
    if not frame.writes_tools:
        raise TemplateError("the chat template does not write the tools on offer; use template: tulu")
    for tool in chat.tools:
        name = _tool_name(tool)
        if name and not any(name in glue for glue in frame.skeleton.glue):
            raise TemplateError(f"the chat template does not write the tool {name!r} on offer; use template: tulu")


def _tool_name(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _check_thought(chat: Chat, mark: Mark, thought: str) -> None:
    """A thought that is not written: fine where the model does not see it at inference either."""
    later = chat.turns[mark.turn + 1 :]
    if chat.turns[mark.turn].is_trained and not any(turn.role in ("user", "assistant") for turn in later):
        raise TemplateError(
            f"the chat template drops the thoughts in turns[{mark.turn}] ({len(thought.strip())} characters), so the "
            "model would not learn to think; template: tulu keeps them"
        )


def _is_ignored(outline: Outline, index: int) -> bool:
    """Whether the template writes the same whatever the turn's content is."""
    chat = outline.chat
    texts = set()
    for content in ("question", "answer"):
        message = chat.messages[index] | {"content": content}
        texts.add(chat.apply([*chat.messages[:index], message, *chat.messages[index + 1 :]]))
    return len(texts) == 1


def _refusal(verb: str, mark: Mark, turn: Turn) -> TemplateError:
    if turn.role == "assistant":
        part = "thoughts" if mark.kind != CONTENT else "text beside the calls" if turn.tool_calls else "answer"
        return TemplateError(f"the chat template {verb} the {part} in turns[{mark.turn}]; use template: tulu")
    remedy = "use template: tulu"
    if turn.role == "system":
        remedy += ", or put its text in front of the first question"
    return TemplateError(f"the chat template {verb} the {turn.role} turn in turns[{mark.turn}]; {remedy}")


def rewritten(outline: Outline, mark: Mark | None) -> TemplateError:
    """The error for a conversation whose texts are not what the template wrote: one of its answers is rewritten.

    ``mark``: the first one that does not fit, or the text behind it does not.
    """
    turns = outline.chat.turns
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    near = [index for index in answers if mark is None or index >= mark.turn] or answers[-1:]
    if not near:
        return TemplateError("the chat template rewrites the conversation, which holds no answer; use template: tulu")
    for index in near[:2]:
        if fault := _odd_tags(turns[index].content):
            return TemplateError(f"the chat template rewrites the answer in turns[{index}]: its content holds {fault}")
    return TemplateError(
        f"the chat template rewrites the answer in turns[{near[0]}], so it cannot be located; use template: tulu"
    )


def _odd_tags(content: str) -> str:
    """What is wrong with the thought tags in a content, and what to do; empty where nothing is."""
    for opening, closing in THOUGHT_TAGS:
        opened, closed = content.count(opening), content.count(closing)
        if opened != closed:
            more, fewer = (opening, closing) if opened > closed else (closing, opening)
            remedy = "--repair-thoughts completes the tags; or use template: tulu"
            return f"`{more.strip()}` without `{fewer.strip()}`; {remedy}"
        if opened and (opened > 1 or not content.lstrip().startswith(opening)):
            return f"`{opening.strip()}` not once at its start, where thoughts are; use template: tulu"
    return ""
