"""A trainer's configuration file, filled in from the data set and its card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card


def write_configuration(
    file: Path, text: str, cleaned: CleanedDataset, card: Card, *, quote: Callable[[str], str] = json.dumps
) -> None:
    """Write ``text`` with its fields filled in: model and revision, chat template, longest row and maximum length.

    ``quote`` makes a string of the file's language, by default YAML, which reads JSON's strings.
    """
    filled = text.format(
        model=quote(card.base.seen_from(file.parent)),
        revision=quote(card.base.revision or "main"),
        template=quote(card.template),
        longest=cleaned.longest_row_tokens,
        max_length=cleaned.max_length,
    )
    file.write_text(filled, encoding="utf-8")
