"""What became of the rows read: used or set aside, with grouped reasons, keys not used and what was done to rows.

One function, ``check_usable``, says whether a pool is usable; every command that reads one asks it. The listings
of rows set aside or left out are JSON lines with their reasons.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from tokenclean.errors import PoolError
from tokenclean.pool.conversation import Conversation, Pool, RejectedRow, RemovedRow
from tokenclean.store import atomic_path

_PLACES = re.compile(r"\[\d+\]")
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d[\d,.]*")
_QUOTED = re.compile(r"('[^']*'|\"[^\"]*\")")
_SHOWN = 8
_GROUPS = 500  # of reasons, and of keys of a source: rows with keys or values of their own must not fill the memory
_FURTHER = "further keys"
_REASON_CHARACTERS = 300
_SHORT = 40


@dataclass
class ReasonGroup:
    """Rows set aside for one reason. ``reason``: of the first of them; ``place``: its file and line."""

    reason: str
    place: str
    remedy: str
    is_chosen: bool
    rows: int = 0


@dataclass(frozen=True)
class LeftOutThoughts:
    """Thoughts of earlier turns that a chat template does not write, as it would not at inference."""

    rows: int = 0
    turns: int = 0
    tokens: int = 0

    def __add__(self, other: LeftOutThoughts) -> LeftOutThoughts:
        return LeftOutThoughts(self.rows + other.rows, self.turns + other.turns, self.tokens + other.tokens)

    def __str__(self) -> str:
        return (
            f"{self.rows:,} row{'s' * (self.rows != 1)}: the chat template leaves out the thoughts of "
            f"{self.turns:,} earlier turn{'s' * (self.turns != 1)} ({self.tokens:,} token{'s' * (self.tokens != 1)}), "
            "and those answers are trained without them; tokens.targets: last_turn trains the last answer alone, "
            "tokens.template: tulu keeps all thoughts"
        )


@dataclass(frozen=True)
class RenderedRows:
    """What became of rows when they were rendered and tokenized: how many, those without a target with the reason,
    what rendering did so that they can be used -> rows, trained tokens, and thoughts left out."""

    rows: int
    unusable: tuple[RejectedRow, ...]
    notes: Mapping[str, int]
    targets: int
    left_out: LeftOutThoughts = field(default_factory=LeftOutThoughts)


@dataclass
class Intake:
    """Counts of a pool's rows.

    ``readable``: rows that could be read. ``rendered``: of these, the rows that were rendered and tokenized, which a
    draw or a filter may make fewer; ``unrendered``: those of them without a target. ``reasons``: what rows were set
    aside for, by the reason without its numbers. ``unread``: source -> key -> rows in which it holds something that was
    not used. ``notes``: what was done to rows so that they can be used -> rows. ``weighted``: readable rows with loss
    weights of their own. ``targets``: trained tokens of the rows rendered; None before any was.
    ``left_out``: thoughts that the chat template left out.
    """

    readable: int = 0
    rendered: int = 0
    unrendered: int = 0
    weighted: int = 0
    targets: int | None = None
    left_out: LeftOutThoughts = field(default_factory=LeftOutThoughts)
    reasons: dict[str, ReasonGroup] = field(default_factory=dict)
    unread: dict[str, Counter[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, rows: Pool | Iterable[Conversation | RejectedRow]) -> Intake:
        """Counts of a pool and its rejected rows, or of a stream of rows."""
        intake = cls()
        for row in chain(rows, rows.rejected) if isinstance(rows, Pool) else rows:
            intake.add(row)
        return intake

    def after_rendering(self, *parts: RenderedRows) -> Intake:
        """The same counts with what became of readable rows when they were rendered and tokenized."""
        intake = deepcopy(self)
        for part in parts:
            intake.notes.update(part.notes)
            intake.rendered += part.rows
            intake.left_out += part.left_out
            intake.targets = (intake.targets or 0) + part.targets
            for row in part.unusable:
                intake.unrendered += 1
                intake._add_reason(row)
        return intake

    @property
    def set_aside(self) -> int:
        """Rows set aside, those left out by choice included."""
        return sum(group.rows for group in self.reasons.values())

    @property
    def faulty(self) -> int:
        """Rows set aside for a fault of theirs."""
        return sum(group.rows for group in self.reasons.values() if not group.is_chosen)

    @property
    def rows(self) -> int:
        """All rows that were read."""
        return self.readable + self.set_aside - self.unrendered

    @property
    def usable(self) -> int:
        """Rows that can be used, as far as they were looked at."""
        return self.readable - self.unrendered

    @property
    def faulty_share(self) -> float:
        """Share of the rows that cannot be used for a fault of theirs: unreadable ones, and of the readable ones the
        share without a target among those rendered. Rows left out by an option count as neither fault nor row."""
        rows = self.rows - (self.set_aside - self.faulty)
        unreadable = (rows - self.readable) / rows if rows else 0.0
        return unreadable + (1 - unreadable) * (self.unrendered / self.rendered if self.rendered else 0.0)

    def add(self, row: Conversation | RejectedRow) -> None:
        """Count one more row."""
        if isinstance(row, RejectedRow):
            self._add_reason(row)
            return
        self.readable += 1
        self.weighted += row.has_weights
        if row.unread:
            keys = self.unread.setdefault(row.source, Counter())
            counted = (key if key in keys or len(keys) < _GROUPS else _FURTHER for key in row.unread)
            keys.update(list(dict.fromkeys(counted)))
        self.notes.update(row.notes)

    def _add_reason(self, row: RejectedRow) -> None:
        key = group_key(row.reason)
        if key not in self.reasons and len(self.reasons) >= _GROUPS:
            key = _QUOTED.sub("''", key)[:_SHORT]
        if key not in self.reasons:
            self.reasons[key] = ReasonGroup(row.reason, f"{row.file}:{row.line}", row.remedy, row.is_chosen)
        self.reasons[key].rows += 1

    def to_json(self) -> dict[str, object]:
        """The counts for a JSON document."""
        return {
            "rows": self.rows,
            "usable_rows": self.usable,
            "rows_set_aside": self.set_aside,
            "weighted_rows": self.weighted,
            "reasons": [asdict(group) for group in self._sorted_reasons()],
            "keys_not_used": {source: dict(keys) for source, keys in self.unread.items()},
            "notes": dict(self.notes),
            "thoughts_left_out": asdict(self.left_out),
        }

    def lines(self) -> Iterator[str]:
        """Lines for the user: reasons with counts and the options that help, keys not used, notes."""
        if self.set_aside:
            yield f"{self.set_aside:,} of {self.rows:,} rows set aside:"
            yield from self._reason_lines()
        for source, keys in self.unread.items():
            named = ", ".join(f"{key} ({rows:,} row{'s' * (rows != 1)})" for key, rows in keys.most_common())
            yield f"not used in {source}: {named}"
        for text, rows in self.notes.most_common():
            yield f"{rows:,} row{'s' * (rows != 1)}: {text}"
        if self.left_out.rows:
            yield str(self.left_out)
        if self.weighted:
            yield f"{self.weighted:,} row{'s' * (self.weighted != 1)} with loss weights of their own"

    def describe_reasons(self) -> str:
        """The reasons, the commonest first, each with count, first place and the option that helps; a line each."""
        return "\n".join(self._reason_lines())

    def _reason_lines(self) -> Iterator[str]:
        groups = self._sorted_reasons()
        for group in groups[:_SHOWN]:
            reason = group.reason
            if len(reason) > _REASON_CHARACTERS:
                reason = reason[: _REASON_CHARACTERS - 1] + "…"
            by_choice = "left out by choice, " if group.is_chosen else ""
            yield f"  {group.rows:,} × {by_choice}{reason} (first: {group.place})"
            if group.remedy:
                yield f"      try: {group.remedy}"
        if len(groups) > _SHOWN:
            yield f"  and {len(groups) - _SHOWN:,} further reasons"

    def _sorted_reasons(self) -> list[ReasonGroup]:
        return sorted(self.reasons.values(), key=lambda group: -group.rows)


def group_key(reason: str) -> str:
    """What reasons of one kind have in common: the reason without places and numbers; quoted texts stay."""
    parts = _QUOTED.split(reason)
    return "".join(part if n % 2 else _NUMBERS.sub("#", _PLACES.sub("[]", part)) for n, part in enumerate(parts))


def check_usable(intake: Intake, max_share: float, *, listing: object = None, are_reasons_shown: bool = False) -> None:
    """Raise PoolError where a pool cannot be used: no usable row, no target token, or too large a share set aside.

    ``max_share``: the largest share of rows at fault; rows that an option leaves out do not count. ``listing``: the
    file that lists the rows, if there is one. ``are_reasons_shown``: the user has them before their eyes already.
    """
    where = f"; all are listed in {listing} with file, line and reason" if listing else ""
    reasons = "" if are_reasons_shown else "\n" + intake.describe_reasons()
    if (intake.readable and not intake.usable) or (intake.rows and not intake.readable):
        raise PoolError(f"no usable row ({intake.set_aside:,} set aside{where}){reasons}")
    if intake.faulty_share > max_share:
        raise PoolError(
            f"{intake.faulty:,} of {intake.rows:,} rows cannot be used ({intake.faulty_share:.1%}), more than "
            f"the {max_share:.1%} of pool.max_rejected_share{where}. Fix the rows, use an option that helps, or raise "
            f"the share (of a single command: --max-rejected-share){reasons}"
        )
    if intake.targets == 0:
        raise PoolError(f"no row has a token to train on{reasons}".rstrip())


def write_rejected(rejected: Iterable[RejectedRow], path: str | Path) -> None:
    """Write the rows set aside one by one (the fields of a RejectedRow), all of them or none.

    Raises RunFolderError where the file cannot be written.
    """
    write_lines(map(asdict, rejected), path)


def write_removed(removed: Iterable[RemovedRow], path: str | Path) -> None:
    """Write the rows that a mixture leaves out, all of them or none; keys without a value are omitted.

    Raises RunFolderError where the file cannot be written.
    """
    write_lines(({key: v for key, v in asdict(row).items() if v not in ("", None)} for row in removed), path)


def join_rejected(parts: Iterable[str | Path], path: str | Path) -> None:
    """Write the lines of several listings as one, in constant memory; ``path`` may be one of them.

    Raises RunFolderError where the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for part in parts:
            with Path(part).open("rb") as lines:
                shutil.copyfileobj(lines, file)


def read_rejected(path: str | Path) -> Iterator[RejectedRow]:
    """The rows of a listing, one by one."""
    with Path(path).open("rb") as lines:
        for line in lines:
            yield RejectedRow(**json.loads(line))


def write_lines(rows: Iterable[Mapping[str, object]], path: str | Path) -> None:
    """Write rows as JSON lines, all of them or none. Raises RunFolderError where the file cannot be written."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False) + "\n"
            # A file name that is not UTF-8 holds lone surrogates; written with a backslash they are JSON's escapes.
            file.write(line.encode("utf-8", "backslashreplace"))
