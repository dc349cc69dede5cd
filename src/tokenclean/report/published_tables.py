"""The numbers that Tables 1 to 8 of the paper print, to put beside ours, and what is wrong with them.

A row keeps two averages: the one that is printed and the one recomputed from its seven tasks. Some printed ones do not
follow from their row, so conclusions go by the recomputed. What is known to be wrong hangs on the rows and columns as
faults, and whoever shows a number shows the sentences of its faults with it. Scores are percent (accuracy or F1 × 100).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, TypedDict, Unpack

import yaml

from tokenclean.report.tables import Table

AVERAGE = "AVG"
TASKS = {
    "TruthfulQA": "truthfulqa",
    "TydiQA": "tydiqa",
    "LoqiQA": "logiqa",
    "MMLU": "mmlu",
    "HellaSwag": "hellaswag",
    "ARC-C": "arc_challenge",
    "BoolQ": "boolq",
}
"""Our name of the task in each printed column."""

WRONG_AVERAGE = "The printed average is not that of the row's seven tasks; go by the recomputed one."
COARSE_AVERAGE = "The printed average agrees with the recomputed one to one decimal only."

# On top of half a unit of the last printed digit.
_SLACK = 0.001


@dataclass(frozen=True)
class Source:
    """The paper."""

    title: str
    authors: tuple[str, ...]
    year: int
    arxiv: str

    @property
    def citation(self) -> str:
        """First author, title, year and arXiv number in one line."""
        return f"{self.authors[0]} et al., {self.title} ({self.year}), arXiv:{self.arxiv}"


@dataclass(frozen=True)
class Fault:
    """What is wrong with printed numbers, in one sentence.

    ``row`` counts a table's rows from 1 in print order, None for all of them. ``columns`` as printed, empty for the
    whole row, or for the table as such where ``row`` is None too.
    """

    sentence: str
    table: int
    row: int | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedRow:
    """A printed row: ``cells`` as printed below ``columns``; ``number`` counts from 1 in print order.

    ``strategy`` is our name, None where the row has none; ``proportion`` k of selected tokens, None where no token is
    dropped; ``round_number`` t of REFERENCE-t; ``reference`` None for the warm-up model. ``faults`` are the row's own
    and those of the table's columns.
    """

    table: int
    number: int
    name: str
    heading: str
    base_model: str | None
    strategy: str | None
    proportion: float | None
    round_number: int | None
    reference: str | None
    columns: tuple[str, ...]
    cells: tuple[str, ...]
    faults: tuple[Fault, ...] = ()

    def cell(self, column: str) -> str | None:
        """The digits printed in a column, None if the table has no such column."""
        return self.cells[self.columns.index(column)] if column in self.columns else None

    def score(self, task: str) -> float | None:
        """Percent on one of our tasks; None if the row does not print it."""
        for column, cell in zip(self.columns, self.cells, strict=True):
            if TASKS.get(column) == task:
                return float(cell)
        return None

    @property
    def printed_average(self) -> float | None:
        """Percent, None if none is printed."""
        printed = self.cell(AVERAGE)
        return None if printed is None else float(printed)

    @property
    def recomputed_average(self) -> float | None:
        """Mean of the seven printed scores in percent, None if the row does not print all seven."""
        scores = [score for score in map(self.score, TASKS.values()) if score is not None]
        return math.fsum(scores) / len(TASKS) if len(scores) == len(TASKS) else None

    def faults_at(self, column: str) -> tuple[Fault, ...]:
        """Faults that touch a column's number, by the column's printed name; ``AVG`` also where none is printed."""
        return tuple(fault for fault in self.faults if not fault.columns or column in fault.columns)


@dataclass(frozen=True)
class PublishedTable:
    """A printed table: ``columns`` without the first, whose name is ``row_label``; ``faults`` of the table as such and
    of its columns."""

    number: int
    section: str
    caption: str
    row_label: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Claim:
    """By how much the text says ``strategy`` raises the average of ``baseline``, and what the averages say: percent."""

    section: str
    base_model: str
    strategy: str
    baseline: str
    claimed: float
    from_printed: float
    from_recomputed: float

    @property
    def follows(self) -> bool:
        """True if the recomputed averages give the claimed percentage, to its one decimal."""
        return abs(self.from_recomputed - self.claimed) <= 0.05 + _SLACK

    @property
    def sentence(self) -> str:
        """What the text says and what the tables say."""
        return (
            f"Section {self.section} claims {self.claimed:.1f} % over {self.baseline.replace('_', ' ')}; the printed "
            f"averages give {self.from_printed:.1f} %, the recomputed ones {self.from_recomputed:.1f} %."
        )


@dataclass(frozen=True)
class Published:
    """All that the paper's tables print."""

    source: Source
    tables: tuple[PublishedTable, ...]
    claims: tuple[Claim, ...]

    def table(self, number: int) -> PublishedTable:
        """Table 1 to 8. Raises ValueError for another number."""
        for table in self.tables:
            if table.number == number:
                return table
        raise ValueError(f"the paper has Tables 1 to {len(self.tables)}, not a Table {number}")


@dataclass(frozen=True)
class PublishedNumber:
    """One printed score or average with its place: ``value`` in percent, ``printed`` its digits in the paper.

    ``value`` of an average is the recomputed one; ``printed`` is empty where the paper prints none.
    """

    value: float
    printed: str
    table: int
    row: int
    faults: tuple[Fault, ...]


class RunOptions(TypedDict, total=False):
    """Which run of a model and a strategy: see ``published_row``."""

    proportion: float
    round_number: int | None
    reference: str | None


@cache
def published() -> Published:
    """Read the shipped file, recompute averages and claims, and flag what does not follow."""
    text = (resources.files("tokenclean") / "data" / "published.yaml").read_text(encoding="utf-8")
    document = yaml.load(text, Loader=yaml.BaseLoader)  # nothing but strings: 53.0 and 53.00 stay apart
    tables = tuple(_read_table(values, document["faults"]) for values in document["tables"])
    claims = tuple(_read_claim(values, tables[0]) for values in document["claims"])
    source = document["source"]
    return Published(
        Source(source["title"], tuple(source["authors"]), int(source["year"]), source["arxiv"]),
        (_with_claims(tables[0], claims), *tables[1:]),
        claims,
    )


def published_row(
    model: str, strategy: str, *, proportion: float = 0.6, round_number: int | None = None, reference: str | None = None
) -> PublishedRow | None:
    """The first row, in print order, that has all seven tasks of this run; None if the paper has no such run.

    ``model`` and ``reference`` may be ids of the Hub or folders, of which the last part counts; ``reference`` None is
    the warm-up model. ``proportion`` does not matter to strategies that drop no token. ``round_number`` 1 to 4 asks for
    a model on the way of ``self_evolving``.
    """
    for table in published().tables:
        for row in table.rows:
            if (
                row.recomputed_average is not None
                and row.strategy == strategy
                and row.round_number == round_number
                and (row.proportion is None or math.isclose(row.proportion, proportion))
                and _model_key(row.base_model) == _model_key(model)
                and _model_key(row.reference) == _model_key(reference)
            ):
                return row
    return None


def published_score(model: str, strategy: str, task: str, **run: Unpack[RunOptions]) -> PublishedNumber | None:
    """What the paper prints for a task of ours, such as ``arc_challenge``; ``run``: the options of ``published_row``.

    None if the paper has no such run or no such task.
    """
    row = published_row(model, strategy, **run)
    if row is None or (value := row.score(task)) is None:
        return None
    column = next(column for column, ours in TASKS.items() if ours == task)
    return PublishedNumber(value, row.cell(column) or "", row.table, row.number, row.faults_at(column))


def published_average(model: str, strategy: str, **run: Unpack[RunOptions]) -> PublishedNumber | None:
    """The recomputed average of a run's seven tasks, with the printed digits; ``run`` as for ``published_score``."""
    row = published_row(model, strategy, **run)
    if row is None or (value := row.recomputed_average) is None:
        return None
    return PublishedNumber(value, row.cell(AVERAGE) or "", row.table, row.number, row.faults_at(AVERAGE))


def published_table(number: int) -> Table:
    """A table as printed, the recomputed averages beside it, and the faults as footnotes. Raises ValueError."""
    table = published().table(number)
    footnotes = _Footnotes()
    title = f"Table {number} as published" + footnotes.mark(f for f in table.faults if not f.columns)
    columns = [table.row_label]
    columns += [column + footnotes.mark(f for f in table.faults if column in f.columns) for column in table.columns]
    if any(row.recomputed_average is not None for row in table.rows):
        columns.append("recomputed")
    rows: list[tuple[str, ...]] = []
    heading = ""
    for row in table.rows:
        if row.heading != heading:
            heading = row.heading
            rows.append((heading, *("",) * (len(columns) - 1)))
        rows.append(_cells(row, footnotes))
    texts = (n for n, cells in enumerate(zip(*(row.cells for row in table.rows), strict=True), 1) if _is_text(cells))
    note = [table.caption, f"{published().source.citation}, section {table.section}.", *footnotes.lines]
    return Table(title, tuple(columns), tuple(rows), "\n".join(note), (0, *texts))


class _Footnotes:
    """Numbers sentences as they come; the same sentence keeps its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, faults: Iterable[Fault]) -> str:
        numbers = {self._numbers.setdefault(fault.sentence, len(self._numbers) + 1) for fault in faults}
        return "".join(f" [{number}]" for number in sorted(numbers))

    @property
    def lines(self) -> list[str]:
        return [f"[{number}] {sentence}" for sentence, number in self._numbers.items()]


def _cells(row: PublishedRow, footnotes: _Footnotes) -> tuple[str, ...]:
    own = [fault for fault in row.faults if fault.row is not None]  # those of columns stand at the columns' names
    cells = [row.name + footnotes.mark(f for f in own if not f.columns)]
    for column, cell in zip(row.columns, row.cells, strict=True):
        cells.append(cell + footnotes.mark(f for f in own if column in f.columns))
    if row.recomputed_average is not None:
        spoilt = (f for f in own if AVERAGE in f.columns and len(f.columns) > 1)
        cells.append(f"{row.recomputed_average:.2f}" + footnotes.mark(spoilt))
    return tuple(cells)


def _read_table(values: Mapping[str, Any], common: Iterable[Mapping[str, Any]]) -> PublishedTable:
    number = int(values["number"])
    row_label, *columns = values["columns"]
    everywhere = [fault for fault in common if set(fault["columns"]) & set(columns)]
    faults = _read_faults([*values.get("faults", ()), *everywhere], number, None)
    rows: list[PublishedRow] = []
    for group in values["groups"]:
        for entry in group["rows"]:
            row = _read_row(entry, group, number, len(rows) + 1, tuple(columns))
            of_columns = tuple(fault for fault in faults if set(fault.columns) & set(columns))
            rows.append(replace(row, faults=(*row.faults, *of_columns)))
    return PublishedTable(
        number, values["section"], values["caption"], row_label, tuple(columns), tuple(rows), tuple(faults)
    )


def _read_row(
    entry: Mapping[str, Any], group: Mapping[str, Any], table: int, number: int, columns: tuple[str, ...]
) -> PublishedRow:
    key = entry.get("key", {})
    if len(entry["cells"]) != len(columns):
        raise ValueError(f"published.yaml, Table {table}, row {number}: {len(columns)} columns, {entry['cells']}")
    row = PublishedRow(
        table=table,
        number=number,
        name=entry["name"],
        heading=group.get("heading", ""),
        base_model=key.get("base_model", group.get("base_model")),
        strategy=key.get("strategy"),
        proportion=float(key["proportion"]) if "proportion" in key else None,
        round_number=int(key["round"]) if "round" in key else None,
        reference=key.get("reference"),
        columns=columns,
        cells=tuple(entry["cells"]),
    )
    return replace(row, faults=(*_read_faults(entry.get("faults", ()), table, number), *_average_faults(row)))


def _read_faults(entries: Iterable[Mapping[str, Any]], table: int, row: int | None) -> tuple[Fault, ...]:
    return tuple(Fault(entry["sentence"], table, row, tuple(entry.get("columns", ()))) for entry in entries)


def _average_faults(row: PublishedRow) -> tuple[Fault, ...]:
    """None where the printed average is the mean of the printed scores, rounded to the digits it is printed with."""
    printed, recomputed = row.cell(AVERAGE), row.recomputed_average
    if printed is None or recomputed is None:
        return ()
    decimals = len(printed.partition(".")[2])
    difference = abs(float(printed) - recomputed)
    if difference <= 0.5 * 10**-decimals + _SLACK:
        return ()
    sentence = WRONG_AVERAGE if difference > 0.05 + _SLACK else COARSE_AVERAGE
    return (Fault(sentence, row.table, row.number, (AVERAGE,)),)


def _read_claim(values: Mapping[str, str], table: PublishedTable) -> Claim:
    ours, theirs = (_row_of(table, values["base_model"], values[key]) for key in ("strategy", "baseline"))
    return Claim(
        values["section"],
        values["base_model"],
        values["strategy"],
        values["baseline"],
        float(values["percent"]),
        _rise(ours.printed_average, theirs.printed_average),
        _rise(ours.recomputed_average, theirs.recomputed_average),
    )


def _rise(average: float | None, baseline: float | None) -> float:
    if average is None or baseline is None:
        raise ValueError("published.yaml: a claim compares rows that have no average")
    return 100 * (average / baseline - 1)


def _with_claims(table: PublishedTable, claims: Iterable[Claim]) -> PublishedTable:
    """The table with every claim that does not follow flagged at the average it is about."""
    rows = list(table.rows)
    for claim in claims:
        if not claim.follows:
            row = _row_of(table, claim.base_model, claim.strategy)
            fault = Fault(claim.sentence, table.number, row.number, (AVERAGE,))
            rows[row.number - 1] = replace(row, faults=(*row.faults, fault))
    return replace(table, rows=tuple(rows))


def _row_of(table: PublishedTable, base_model: str, strategy: str) -> PublishedRow:
    return next(row for row in table.rows if (row.base_model, row.strategy) == (base_model, strategy))


def _model_key(name: str | None) -> str | None:
    """``llama-3.1-8b`` for ``meta-llama/Meta-Llama-3.1-8B``, ``LLaMA-3.1-8B`` or a folder of that name."""
    return None if name is None else re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold().removeprefix("meta-")


def _is_text(cells: Iterable[str]) -> bool:
    return not all(re.fullmatch(r"[\d.]+", cell) for cell in cells)
