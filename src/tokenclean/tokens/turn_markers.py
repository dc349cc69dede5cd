"""Markers that begin and end a turn in the chat templates in use, found in text that came rendered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from tokenclean.pool.conversation import Role


@dataclass(frozen=True)
class Family:
    """How one kind of template marks its turns.

    ``openers``: texts that a marker begins with. ``tail``: pattern of what follows, whose group ``role`` names the
    role, or the opener names it itself. ``ends``: texts that end a turn, beside the tokenizer's EOS.
    ``closes_all``: it ends questions too, not only answers. ``is_prose``: the markers are words of a prompt, which
    begin a line and may have more prose before them.
    """

    openers: tuple[str, ...]
    tail: str = ""
    ends: tuple[str, ...] = ()
    closes_all: bool = False
    is_prose: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        openers = "|".join(map(re.escape, self.openers))
        return re.compile(("(?m:^)" if self.is_prose else "") + f"(?P<opener>{openers}){self.tail}")


# SentencePiece may put a space behind a special token, hence the " ?".
FAMILIES: dict[str, Family] = {
    "ChatML": Family(("<|im_start|>",), r" ?(?P<role>[A-Za-z_]+)(?:<\|im_sep\|>|\n|$)", ("<|im_end|>",), True),
    "Llama 3": Family(
        ("<|start_header_id|>",),
        r" ?(?P<role>[A-Za-z_]+) ?<\|end_header_id\|>\n{0,2}",
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        True,
    ),
    "Llama 4": Family(
        ("<|header_start|>",), r" ?(?P<role>[A-Za-z_]+) ?<\|header_end\|>\n{0,2}", ("<|eot|>", "<|eom|>"), True
    ),
    "Gemma": Family(("<start_of_turn>",), r" ?(?P<role>[A-Za-z_]+)(?:\n|$)", ("<end_of_turn>",), True),
    "Tulu": Family(
        ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|observation|>"), r"\n?", ("<|end|>", "<|endoftext|>")
    ),
    "Mistral": Family(
        (
            *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
            *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        ends=("</s>",),
    ),
    "DeepSeek": Family(("<｜User｜>", "<｜Assistant｜>"), ends=("<｜end▁of▁sentence｜>",)),
    "Granite": Family(("<|start_of_role|>",), r"(?P<role>[A-Za-z_]+)<\|end_of_role\|>", ("<|end_of_text|>",), True),
    "Command R": Family(
        ("<|START_OF_TURN_TOKEN|>",), r"<\|(?P<role>SYSTEM|USER|CHATBOT)_TOKEN\|>", ("<|END_OF_TURN_TOKEN|>",), True
    ),
    "Harmony": Family(("<|start|>",), r"(?P<role>[A-Za-z_]+)", ("<|end|>", "<|return|>", "<|call|>"), True),
    "Alpaca": Family(("### Instruction:", "### Input:", "### Response:"), r"\n?", is_prose=True),
}
KNOWN_OPENERS = frozenset(opener for family in FAMILIES.values() for opener in family.openers)
KNOWN_ENDS = frozenset(end for family in FAMILIES.values() for end in family.ends)

# A name that is not here is somebody else who speaks, so part of the prompt.
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("assistant", "model", "chatbot", "[/inst]", "[/tool_results]"), "assistant"),
    **dict.fromkeys(("<|assistant|>", "<｜assistant｜>", "### response:"), "assistant"),
    **dict.fromkeys(("system", "developer", "<|system|>"), "system"),
    **dict.fromkeys(("[system_prompt]", "[/system_prompt]", "[available_tools]", "[/available_tools]"), "system"),
    **dict.fromkeys(("tool", "ipython", "environment", "<|tool|>", "<|observation|>", "[tool_results]"), "tool"),
}
_BEGINNINGS = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<\|startoftext\|>)?\s*")


@dataclass(frozen=True)
class Header:
    """A role marker: characters [start, end) of the text, whose turn it opens, and the template's family."""

    start: int
    end: int
    role: Role
    family: str
    text: str
    opener: str


def find_headers(text: str, is_real: Callable[[str, int], bool] | None = None) -> tuple[Header, ...]:
    """Every role marker in the text, of any family, in order.

    ``is_real`` (opener, character): whether an opener there is the template's own. A tokenizer that knows the opener
    as a token uses that token, so an opener that is spelled out is ordinary text.
    """
    found: list[Header] = []
    for name, family in FAMILIES.items():
        if not any(opener in text for opener in family.openers):
            continue
        for match in family.pattern.finditer(text):
            opener, start = match["opener"], match.start("opener")
            if is_real is None or is_real(opener, start):
                spelled = match.groupdict().get("role") or opener
                role = _ROLES.get(spelled.lower(), "user")
                found.append(Header(start, match.end(), role, name, match[0], opener))
    return tuple(sorted(found, key=lambda header: header.start))


def choose_family(headers: Sequence[Header], preferred: str = "") -> str:
    """The family that the text was rendered with, empty for none.

    It must mark an answer. ``preferred`` (that of the other rows) wins, then the one that occurs first: a text about
    templates is inside turns.
    """
    answering = [header.family for header in headers if header.role == "assistant"]
    if preferred in answering:
        return preferred
    return next((header.family for header in headers if header.family in answering), "")


def find_nested(headers: Sequence[Header], text: str, family: str) -> Header | None:
    """The first marker in a rendered text that shows a template inside a template.

    One of the ``family`` right behind another of it (a blank system turn and a tool that returns nothing have a blank
    or an end token in between), or a turn that ``find_template`` finds a template in.
    """
    own = [header for header in headers if header.family == family]
    for outer, inner in pairwise(own):
        between = text[outer.end : inner.start]
        is_same = outer.text == inner.text
        if outer.role in ("user", "assistant"):
            if not between.strip() and (is_same or outer.role != inner.role):
                return inner
        elif not between and is_same:
            return inner
    for number, header in enumerate(own):
        end = own[number + 1].start if number + 1 < len(own) else len(text)
        others = [other for other in headers if other.family != family and header.end <= other.start < end]
        if (found := _first_of_template(others, text, header.end)) is not None:
            return found
    return None


def find_template(message: str) -> Header | None:
    """The marker that shows a message to be rendered by a template already; None for an ordinary message.

    It begins with a marker, or marks both a question and an answer. A heading such as ``### Input:`` alone proves
    nothing, and neither does a tag in the middle of a sentence.
    """
    return _first_of_template(find_headers(message), message, 0)


def _first_of_template(headers: Sequence[Header], text: str, start: int) -> Header | None:
    """The first of the markers in a message, which begins at ``start``, that shows it to be rendered."""
    beginning = _BEGINNINGS.match(text, start)
    begun = beginning.end() if beginning else start
    for header in headers:
        family = FAMILIES[header.family]
        roles = {other.role for other in headers if other.family == header.family}
        if (header.start <= begun and not family.is_prose) or {"user", "assistant"} <= roles:
            return header
    return None


def next_end(ends: Iterable[tuple[int, int]], start: int, limit: int) -> tuple[int, int] | None:
    """The first of the sorted end tokens, as characters [start, end), that is in [start, limit)."""
    return next(((first, last) for first, last in ends if first >= start and last <= limit), None)
