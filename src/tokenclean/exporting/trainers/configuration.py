"""The files that a trainer is started with, from a template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tokenclean.exporting.cleaned_file import round_up_length
from tokenclean.exporting.dataset_card import Card


def fill(
    template: str,
    file: Path,
    card: Card,
    longest: int,
    *,
    quote: Callable[[str], str] = json.dumps,
    further: Mapping[str, str] | None = None,
) -> None:
    """Write the template with its fields filled in: model and revision, chat template, tokens of the longest row,
    maximum length, and ``further`` ones.

    ``quote`` makes a string of the file's language, by default YAML, which reads JSON's strings.
    """
    filled = template.format(
        model=quote(card.base.seen_from(file.parent)),
        revision=quote(card.base.revision or "main"),
        template=quote(card.template),
        longest=longest,
        max_length=round_up_length(longest),
        **{name: quote(value) for name, value in (further or {}).items()},
    )
    file.write_text(filled, encoding="utf-8")
