"""The numbers that Tables 1 to 8 of the paper print, to put beside ours, and what is wrong with them.

``data/published.yaml`` holds both. Some printed averages do not follow from their row, so conclusions go by the average
recomputed from the row's seven tasks. Whoever shows a number shows the sentences of its faults with it. Scores are
percent (accuracy or F1 × 100).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict

from tokenclean.report.tables import Table

AVERAGE = "AVG"
COLUMNS = {
    "truthfulqa": "TruthfulQA",
    "tydiqa": "TydiQA",
    "logiqa": "LoqiQA",
    "mmlu": "MMLU",
    "hellaswag": "HellaSwag",
    "arc_challenge": "ARC-C",
    "boolq": "BoolQ",
}
"""Our name of each of the seven tasks -> the column that prints it."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Record):
    """What is wrong with printed numbers, in one sentence.

    ``columns``: the columns concerned, by their printed names; empty for the whole row or table.
    """

    sentence: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedNumber:
    """One score or average. ``value``: percent, recomputed for an average; ``printed``: the paper's digits, empty where
    it prints none; ``faults``: sentences."""

    value: float
    printed: str
    faults: tuple[str, ...]


class PublishedRow(_Record):
    """A printed row: ``cells`` as printed, by column, without the first, which is ``name``.

    ``strategy``: our name, None where the row has none; ``proportion``: k of selected tokens, None where no token is
    dropped; ``round_number``: t of REFERENCE-t; ``reference``: None for the warm-up model; ``faults``: the row's own.
    """

    table: int
    name: str
    heading: str
    base_model: str | None
    strategy: str | None = None
    proportion: float | None = None
    round_number: int | None = None
    reference: str | None = None
    cells: dict[str, str]
    faults: tuple[Fault, ...] = ()

    def score(self, task: str) -> PublishedNumber | None:
        """What is printed for a task of ours, such as ``arc_challenge``; None if it is not printed."""
        column = COLUMNS.get(task, "")
        if column not in self.cells:
            return None
        return PublishedNumber(float(self.cells[column]), self.cells[column], self._sentences(column))

    @property
    def average(self) -> PublishedNumber | None:
        """The mean of the seven printed scores, with the printed average; None if the row does not print all seven."""
        if not self.cells.keys() >= set(COLUMNS.values()):
            return None
        mean = math.fsum(float(self.cells[column]) for column in COLUMNS.values()) / len(COLUMNS)
        return PublishedNumber(mean, self.cells.get(AVERAGE, ""), self._sentences(AVERAGE))

    def _sentences(self, column: str) -> tuple[str, ...]:
        faults = (*self.faults, *published().column_faults)
        return tuple(fault.sentence for fault in faults if not fault.columns or column in fault.columns)


class PublishedTable(_Record):
    """A printed table. ``columns``: the first is the heading of the rows' names; ``faults``: of the whole table."""

    number: int
    section: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    faults: tuple[Fault, ...] = ()


class Published(_Record):
    """The paper's tables. ``column_faults`` apply to every table that has their columns."""

    citation: str
    column_faults: tuple[Fault, ...]
    tables: tuple[PublishedTable, ...]

    def table(self, number: int) -> PublishedTable:
        """Table 1 to 8. Raises ValueError for another number."""
        for table in self.tables:
            if table.number == number:
                return table
        raise ValueError(f"the paper has Tables 1 to {len(self.tables)}, not a Table {number}")


@cache
def published() -> Published:
    """Read the shipped file, in which rows that share a heading and a base model form a group."""
    text = (resources.files("tokenclean") / "data" / "published.yaml").read_text(encoding="utf-8")
    document = yaml.load(text, Loader=yaml.BaseLoader)  # all values as strings: 53.0 and 53.00 stay different
    for table in document["tables"]:
        table["rows"] = [
            {
                "table": table["number"],
                "name": row["name"],
                "heading": group.get("heading", ""),
                "base_model": group.get("base_model"),
                **row.get("key", {}),
                "cells": dict(zip(table["columns"][1:], row["cells"], strict=True)),
                "faults": row.get("faults", ()),
            }
            for group in table.pop("groups")
            for row in group["rows"]
        ]
    return Published.model_validate(document)


def published_row(
    model: str, strategy: str, *, proportion: float = 0.6, round_number: int | None = None, reference: str | None = None
) -> PublishedRow | None:
    """The first row, in print order, that has all seven tasks of this run; None if the paper has no such run.

    ``model`` and ``reference`` may be Hub ids or folders, of which the last part counts; ``reference`` None is the
    warm-up model. ``proportion`` is ignored for strategies that drop no token. ``round_number`` 1 to 4 asks for an
    intermediate model of ``self_evolving``.
    """
    for row in (row for table in published().tables for row in table.rows):
        if (
            row.average is not None
            and (row.strategy, row.round_number) == (strategy, round_number)
            and (row.proportion is None or math.isclose(row.proportion, proportion))
            and _model_key(row.base_model) == _model_key(model)
            and _model_key(row.reference) == _model_key(reference)
        ):
            return row
    return None


def _model_key(name: str | None) -> str | None:
    """``llama-3.1-8b`` for ``meta-llama/Meta-Llama-3.1-8B``, ``LLaMA-3.1-8B`` or a folder of that name."""
    return None if name is None else re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold().removeprefix("meta-")


def published_table(number: int) -> Table:
    """A table as printed, the recomputed averages beside it, and the faults as footnotes. Raises ValueError."""
    table = published().table(number)
    footnotes: dict[str, int] = {}

    def marked(text: str, faults: Iterable[Fault]) -> str:
        """The text with the numbers of its footnotes; the same sentence keeps its number."""
        numbers = {footnotes.setdefault(fault.sentence, len(footnotes) + 1) for fault in faults}
        return text + "".join(f" [{number}]" for number in sorted(numbers))

    title = marked(f"Table {number} as published", table.faults)
    columns = [marked(c, (f for f in published().column_faults if c in f.columns)) for c in table.columns]
    columns += ["recomputed"] if any(row.average for row in table.rows) else []
    rows: list[tuple[str, ...]] = []
    heading = ""
    for row in table.rows:
        if row.heading != heading:
            heading = row.heading
            rows.append((heading, *("",) * (len(columns) - 1)))
        cells = [marked(row.name, (f for f in row.faults if not f.columns))]
        cells += [marked(cell, (f for f in row.faults if column in f.columns)) for column, cell in row.cells.items()]
        if row.average is not None:
            # A fault of the average and of tasks spoils the recomputed average too.
            spoilt = (f for f in row.faults if AVERAGE in f.columns and len(f.columns) > 1)
            cells.append(marked(f"{row.average.value:.2f}", spoilt))
        rows.append(tuple(cells))
    notes = [table.caption, f"{published().citation}, section {table.section}."]
    notes += [f"[{number}] {sentence}" for sentence, number in footnotes.items()]
    texts = [
        place
        for place, column in enumerate(table.columns)
        if place == 0 or not all(re.fullmatch(r"[\d.]+", row.cells[column]) for row in table.rows)
    ]
    return Table(title, tuple(columns), tuple(rows), "\n".join(notes), tuple(texts))
