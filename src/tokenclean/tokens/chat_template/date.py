"""Today's date in chat templates: a setting, so that a pool rendered tomorrow has the same tokens."""

from __future__ import annotations

import re
from datetime import date as Date
from datetime import datetime, time
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_DATE = "2024-07-26"
"""The day that Llama 3's own template falls back to where it has no clock."""

# The codes of strftime, including those without a leading zero.
_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", "-j", "-y", *"aAbBcCdDeFGgHIjklmMnprRsSTuUVwWxXyYzZf")
_CLOCK = re.compile(r"\b(?:strftime_now|date_string)\b")


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's chat template asks for today's date, so that its text depends on ``date``."""
    return any(map(_CLOCK.search, template_texts(tokenizer)))


def template_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokenizer's chat templates, most often one."""
    template: object = tokenizer.chat_template
    if isinstance(template, dict):
        return tuple(template.values())
    return (str(template),) if template else ()


@lru_cache(maxsize=16)
def stop_clock(template: str, date: str) -> str:
    """The template with ``date`` for today; unchanged if it does not ask.

    transformers passes no functions into a template, so ``strftime_now`` becomes a macro. The macro is on a line of
    its own in front of the template: Jinja drops the line break after a block.
    """
    if not _CLOCK.search(template):
        return template
    midnight = datetime.combine(Date.fromisoformat(date), time())
    written = "".join(f" | replace({f'%{d}'!r}, {midnight.strftime(f'%{d}')!r})" for d in _DIRECTIVES)
    macro = "{% macro strftime_now(format) %}{{ format" + written + " | replace('%%', '%') }}{% endmacro %}"
    return f"{macro}\n{template}"
