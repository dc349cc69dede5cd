"""Where an answer with reasoning or tool calls lies in the text of a chat template."""

from __future__ import annotations

from tokenclean.errors import TemplateError
from tokenclean.tokens.chat import Chat, leading_end_token, special_tokens, unlocated
from tokenclean.tokens.rendered import ContentSpan


def locate_structured(chat: Chat, text: str, index: int) -> tuple[tuple[int, int], ContentSpan]:
    """The target [start, end) of an assistant turn in the text of the whole conversation, and its content's span.

    A rendering in which this turn alone is marked differs from the text between the turn's outer marks only. From
    there outward the template's own text belongs to the answer: back to the generation prompt, on to the end token.
    Both are looked for where every turn is marked, so that no text of the conversation can be taken for them.

    Raises TemplateError where the template does anything else than write the turn's parts once each.
    """
    alone = chat.with_message(index, chat.marked[index])
    first, last = _outer_marks(chat, alone, index)
    before, after = chat.glue_around(chat.all_marked, index)
    as_plain = chat.apply([*chat.marked[:index], {"role": "assistant", "content": f"{chat.stem}{index}c_"}])
    plain_before, plain_after = chat.glue_around(as_plain, index)

    lead = before[_generation_start(chat, index, before, plain_before) :]
    closing, end_token = _closing(chat, index, after, plain_after)
    # Arguments have no fixed first or last sign ({} holds no quote), so only what lies outside the answer has to agree.
    start, rest = first - len(lead), alone[last + len(closing) - len(end_token) :]
    end = len(text) - len(rest) + len(end_token)
    is_sure = (
        alone.startswith(lead, start)
        and alone.startswith(closing, last)
        and text.startswith(alone[:start])
        and text.endswith(rest)
        and 0 <= start <= end
        and all(call.name in text[start:end] for call in chat.turns[index].tool_calls)
    )
    if not is_sure:
        raise unlocated(index)
    return (start, end), _locate_content(chat, text, index, (start, end))


def _outer_marks(chat: Chat, rendering: str, index: int) -> tuple[int, int]:
    """Characters from the first of the turn's marks to the end of the last, all of which have to be there once."""
    own = [mark for mark in chat.marks(rendering) if int(mark[1]) == index]
    found = [mark[0] for mark in own]
    stem, turn = f"{chat.stem}{index}", chat.turns[index]
    expected = [f"{stem}{kind}{number}_" for number in range(len(turn.tool_calls)) for kind in "kv"]
    if turn.content.strip():
        expected.append(f"{stem}c_")
    if f"{stem}r_" in found:
        expected.append(f"{stem}r_")
    elif turn.reasoning.strip() and all(later.role not in ("user", "assistant") for later in chat.turns[index + 1 :]):
        raise TemplateError(f"the chat template does not write the reasoning in turns[{index}]; use template: tulu")
    if not own or sorted(found) != sorted(expected):
        raise unlocated(index)
    return own[0].start(), own[-1].end()


def _generation_start(chat: Chat, index: int, before: str, plain_before: str) -> int:
    """Where in the template's own text in front of the answer the model begins to write.

    Behind the generation prompt. A template that knows none writes it in front of every answer, so behind what stands
    in front of a plain answer too; and a prompt that opens the reasoning is only partly there in an answer without.
    Spaces at the end of the prompt are the answer's: a token takes them with its word.
    """
    history = chat.glue_at_end(chat.apply(chat.marked[:index]))
    prompted = chat.glue_at_end(chat.apply(chat.marked[:index], has_prompt=True))
    if prompted != history and before.startswith(prompted):
        start = len(prompted)
    else:
        start = max(_shared(chat, before, text) for text in (history, prompted, plain_before))
    if before and not start:
        raise unlocated(index)
    return len(before[:start].rstrip(" "))


def _shared(chat: Chat, before: str, other: str) -> int:
    """Length of the common beginning; where the two part inside a tag (``<think>``, ``<tool_call>``), up to the tag."""
    length = next(
        (n for n, (a, b) in enumerate(zip(before, other, strict=False)) if a != b), min(len(before), len(other))
    )
    if length == len(other):
        return length
    common = before[:length]
    ends = [common.rfind(token) + len(token) for token in special_tokens(chat.tokenizer) if token in common]
    return max([common.rfind("\n") + 1, *ends])


def _closing(chat: Chat, index: int, after: str, plain_after: str) -> tuple[str, str]:
    """The template's own text from the answer's last mark through its end token, and that token.

    The end token is the one of a plain answer, or else the first special token (Llama 3 ends some calls by
    ``<|eom_id|>``, GLM by the tag of the turn that follows).
    """
    usual = leading_end_token(plain_after, chat.tokenizer).lstrip(" \n")
    has_calls = bool(chat.turns[index].tool_calls)
    if not usual and not has_calls:
        closing = leading_end_token(after, chat.tokenizer)
        return closing, closing.lstrip(" \n")
    tokens = [usual] if usual and usual in after else special_tokens(chat.tokenizer)
    places = [(after.index(token), -len(token), token) for token in tokens if token in after]
    if places:
        place, _, token = min(places)
        return after[: place + len(token)], token
    if index == len(chat.turns) - 1:
        return after.rstrip(), ""
    raise TemplateError(f"the chat template writes no end token behind turns[{index}]; use template: tulu")


def _locate_content(chat: Chat, text: str, index: int, target: tuple[int, int]) -> ContentSpan:
    """The content's own span, by a rendering in which it alone is marked."""
    content = chat.turns[index].content
    if not content.strip():
        return ContentSpan(index, target[0], target[0], len(content))
    mark = chat.marked[index]["content"]
    marked = chat.with_message(index, chat.messages[index] | {"content": mark})
    before, _, after = marked.partition(mark)
    start, end = len(before), len(text) - len(after)
    written = text[start:end]
    skipped = (len(content) - len(content.lstrip())) - (len(written) - len(written.lstrip()))
    is_sure = (
        text.startswith(before)
        and text.endswith(after)
        and written.strip() == content.strip()
        and target[0] <= start <= end <= target[1]
        and skipped >= 0
    )
    if not is_sure:
        raise unlocated(index)
    return ContentSpan(index, start, end, skipped)
