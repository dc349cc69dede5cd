"""A whole pool looked at in one pass: what it holds, and what the checks find."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice

import numpy as np

from tokenclean.checks.findings import Collector, Example, Found, Group, Severity, Spot, Tally, example_of
from tokenclean.checks.languages import language_of
from tokenclean.checks.registry import POOL_CHECKS, ROW_CHECKS
from tokenclean.pool.conversation import Conversation, RejectedRow
from tokenclean.pool.intake import Intake
from tokenclean.pool.shards import count_characters, count_response_characters

_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class TextResult:
    """What one check found. ``rows``: rows with a finding; ``share``: of all usable rows. The other fields are those of
    the check and of ``Found``."""

    name: str
    title: str
    severity: Severity
    rows: int
    share: float
    examples: tuple[Example, ...]
    groups: tuple[Group, ...]
    note: str
    meaning: str
    remedy: str


@dataclass(frozen=True)
class Lengths:
    """Characters: the median, the 95th percentile, the longest and its place."""

    median: int
    p95: int
    longest: int
    place: str


@dataclass(frozen=True)
class Survey:
    """``formats``, ``sources``, ``languages``: name -> usable rows. ``tokenized``: rows that hold ids and no text, so
    that no check looks at them. ``prompt``/``response``: lengths; ``turns``: answers in a row -> rows."""

    intake: Intake
    formats: dict[str, int]
    sources: dict[str, int]
    languages: dict[str, int]
    tokenized: int
    with_system: int
    with_tools: int
    prompt: Lengths
    response: Lengths
    turns: dict[int, int]
    results: tuple[TextResult, ...]

    @property
    def found(self) -> tuple[TextResult, ...]:
        """The results with at least one row."""
        return tuple(result for result in self.results if result.rows)

    def to_json(self) -> dict[str, object]:
        """The survey as JSON can hold it."""
        values: dict[str, object] = asdict(replace(self, intake=Intake()))
        return values | {"intake": self.intake.to_json()}


class PoolChecks:
    """The checks of a pool as a whole, by name, at work on its rows."""

    def __init__(self, names: Iterable[str] = tuple(POOL_CHECKS)) -> None:
        self._collectors = {name: POOL_CHECKS[name].find() for name in names}

    def add(self, conversation: Conversation) -> None:
        for collector in self._collectors.values():
            collector.add(conversation)

    def found(self) -> dict[str, Found]:
        return {name: collector.found() for name, collector in self._collectors.items()}


def survey_texts(rows: Iterable[Conversation | RejectedRow]) -> Survey:
    """Count a stream of rows and run every check of texts on the usable ones."""
    counts = _Counts()
    collectors: dict[str, Collector] = {name: check.find() for name, check in POOL_CHECKS.items()}
    collectors |= {name: _EachRow(check.find) for name, check in ROW_CHECKS.items()}
    for block in _blocks(rows):
        usable_rows = [row for row in block if isinstance(row, Conversation)]
        for row in block:
            counts.intake.add(row)
        for collector in (counts, *collectors.values()):
            for row in usable_rows:
                collector.add(row)
    usable = counts.intake.usable
    results = tuple(_result(name, collector.found(), usable) for name, collector in collectors.items())
    return counts.survey(results)


def _blocks(rows: Iterable[Conversation | RejectedRow]) -> Iterator[list[Conversation | RejectedRow]]:
    """The rows some at a time: a check that runs on many in a row stays in the processor's cache."""
    rows = iter(rows)
    while block := list(islice(rows, _BLOCK_ROWS)):
        yield block


class _EachRow:
    """A check of single rows at work."""

    def __init__(self, find: Callable[[Conversation], Spot | None]) -> None:
        self._find, self._tally = find, Tally()

    def add(self, conversation: Conversation) -> None:
        if spot := self._find(conversation):
            self._tally.add(example_of(conversation, spot))

    def found(self) -> Found:
        return self._tally.found()


def _result(name: str, found: Found, rows: int) -> TextResult:
    check = POOL_CHECKS[name] if name in POOL_CHECKS else ROW_CHECKS[name]
    share = found.rows / rows if rows else 0.0
    described = {"meaning": check.meaning, "remedy": check.remedy}
    return TextResult(name, check.title, check.severity, share=share, **described, **vars(found))


class _Longest:
    """Lengths of rows, and where the longest is."""

    def __init__(self) -> None:
        self._values, self._longest, self._place = array("q"), -1, ""

    def add(self, length: int, conversation: Conversation) -> None:
        self._values.append(length)
        if length > self._longest:
            self._longest, self._place = length, f"{conversation.file}:{conversation.line}"

    def lengths(self) -> Lengths:
        if not self._values:
            return Lengths(0, 0, 0, "")
        median, p95 = np.percentile(np.frombuffer(self._values, dtype=np.int64), [50, 95])
        return Lengths(round(median), round(p95), self._longest, self._place)


class _Counts:
    """What is counted of every usable row."""

    def __init__(self) -> None:
        self.intake = Intake()
        self._formats, self._sources, self._languages = Counter[str](), Counter[str](), Counter[str]()
        self._turns = Counter[int]()
        self._tokenized = self._with_system = self._with_tools = 0
        self._prompt, self._response = _Longest(), _Longest()

    def add(self, row: Conversation) -> None:
        self._formats[row.format or row.kind] += 1
        self._sources[row.source] += 1
        if row.tokens is not None:
            self._tokenized += 1
            return
        self._languages[language_of(row)] += 1
        self._turns[sum(turn.role == "assistant" for turn in row.turns)] += 1
        self._with_system += any(turn.role == "system" for turn in row.turns)
        self._with_tools += bool(row.tools) or any(turn.tool_calls for turn in row.turns)
        response = count_response_characters(row)
        self._response.add(response, row)
        self._prompt.add(count_characters(row) - len(row.tools) - response, row)

    def survey(self, results: tuple[TextResult, ...]) -> Survey:
        return Survey(
            self.intake,
            dict(self._formats.most_common()),
            dict(self._sources.most_common()),
            dict(self._languages.most_common()),
            self._tokenized,
            self._with_system,
            self._with_tools,
            self._prompt.lengths(),
            self._response.lengths(),
            dict(self._turns.most_common()),
            results,
        )
