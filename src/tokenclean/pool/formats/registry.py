"""One row into what it says: its format found, its keys accounted for (``parsers`` states the formats)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import cast

import numpy as np

from tokenclean.pool.conversation import Kind, Role
from tokenclean.pool.formats.column_mapping import (
    COMMON_KEYS,
    MESSAGE_KEYS,
    REQUIRED_KEYS,
    ROW_KEYS,
    ROW_WEIGHT_KEYS,
    check_columns,
    describe_groups,
    find_column,
    map_columns,
    maps_rows,
    read_column,
)
from tokenclean.pool.formats.context import ROLE_NAMES, Names, RowContext
from tokenclean.pool.formats.field_types import (
    Row,
    RowError,
    check_text,
    describe_keys,
    holds_nothing,
)
from tokenclean.pool.formats.parsers import FORMATS, SYSTEM_KEYS, Parsed
from tokenclean.pool.formats.preferences import refuse_preferences, take_chosen
from tokenclean.pool.formats.suggestions import suggest_columns
from tokenclean.pool.formats.tool_calls import drop_padding
from tokenclean.pool.formats.unread_keys import (
    PREFERENCE,
    SECOND_TEXT,
    TOOLS,
    check_unread,
    meaning_of,
    preference_label,
)
from tokenclean.pool.formats.weights import read_weight

_TELLING_KEYS = tuple(dict.fromkeys(key for groups in REQUIRED_KEYS.values() for group in groups for key in group))
_WEIGHING_KEYS = frozenset((*ROW_WEIGHT_KEYS, "loss", "mask"))


@dataclass(frozen=True)
class RowOptions:
    """How the rows of a source are read.

    ``format``: a name in FORMATS, or ``auto`` to go by the row's keys (``detect_format``). ``columns``, ``roles``: as
    the module says, as pairs. ``ignore``: keys, and types of parts of a content, that are left unread on purpose.
    ``preferences``: ``refuse``, or ``chosen`` to train the chosen answer of preference rows and rows labelled true.
    ``python_literals``: where a list or an object is expected, a text may hold it as Python writes it.
    ``repair_thoughts``: an answer with ``</think>`` alone gets the tag that opens the thoughts.

    Raises RecipeError for options that no row can fit.
    """

    format: str = "auto"
    columns: tuple[tuple[str, str], ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    ignore: tuple[str, ...] = ()
    preferences: str = "refuse"
    python_literals: bool = False
    repair_thoughts: bool = False

    def __post_init__(self) -> None:
        check_columns(self.format, dict(self.columns), dict(self.roles))

    @cached_property
    def names(self) -> Names:
        """The names and choices that messages are read with."""
        roles = cast("dict[str, Role]", {name.strip().lower(): role for name, role in self.roles})
        columns = {key: column for key, column in self.columns if key in MESSAGE_KEYS}
        return Names(
            {**ROLE_NAMES, **roles}, columns, frozenset(self.ignore), self.repair_thoughts, self.python_literals
        )

    @cached_property
    def column_of(self) -> dict[str, str]:
        """Our key -> the row's column."""
        return dict(self.columns)

    @cached_property
    def maps_rows(self) -> bool:
        """Whether only mapped keys of a row are read."""
        return maps_rows(self.column_of)


_DEFAULT = RowOptions()


def parse_row(row: Row, options: RowOptions = _DEFAULT, *, is_padded: bool = False) -> Parsed:
    """Kind and content of one row.

    ``is_padded``: the row comes from an Arrow table, where keys that only other rows have hold null. Of a chat, at
    least one assistant turn says something or calls a tool, and is trained. Raises RowError where the row is at fault.
    """
    context = RowContext(options.names, is_padded)
    content = map_columns(row, options.column_of) if options.maps_rows else row
    if not context.names.ignored.isdisjoint(content) and not options.maps_rows:
        content = {key: value for key, value in content.items() if key not in context.names.ignored}
    if options.preferences == "chosen":
        content = take_chosen({**_labels(row), **content} if options.maps_rows else content, context)
    elif not options.maps_rows:
        refuse_preferences(row, context)
    format = detect_format(content, row) if options.format == "auto" else options.format
    parsed = FORMATS[format](content, context)
    if parsed.tools or any(turn.tool_calls for turn in parsed.turns):
        parsed.turns, parsed.tools = drop_padding(parsed.turns, parsed.tools, context)
    _weigh(parsed, row, context)
    column = options.column_of.get("id")
    parsed.original_id = _original_id(row if column is None else {"id": read_column(row, column, "id")}, context)
    parsed.unread = _unread(row, format, options, parsed, context)
    parsed.notes = tuple(context.notes)
    return parsed


def detect_format(row: Row, raw: Row | None = None) -> str:
    """The one format whose required keys are all in the row with a value other than null.

    ``text`` counts only where no other format fits, since many pools carry the rendered text beside the messages.
    ``raw``: the row before its columns were mapped, for the message.

    Raises RowError where no format fits, or more than one: which of two texts is meant is never guessed.
    """
    fitting = _list_fitting(frozenset(key for key in _TELLING_KEYS if row.get(key) is not None))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        reason = f"keys fit {' and '.join(fitting)}: name the format, or remove the keys of the others"
        raise RowError(reason, f"--format {fitting[0]}")
    if len(meant := _list_fitting(frozenset(key for key in _TELLING_KEYS if key in row))) == 1:
        return meant[0]  # a key that it needs holds null, which its reading tells
    raw = row if raw is None else raw
    reason, remedy = f"keys fit no format: found {describe_keys(raw)}", suggest_columns(raw)
    if not remedy:
        needs = "; ".join(f"{name} needs {describe_groups(groups)}" for name, groups in REQUIRED_KEYS.items())
        reason += f"; {needs}"
    raise RowError(reason, remedy)


@lru_cache
def _list_fitting(given: frozenset[str]) -> tuple[str, ...]:
    fitting = tuple(name for name in REQUIRED_KEYS if _fits(name, given))
    return tuple(name for name in fitting if name != "text") or fitting


def _fits(format: str, given: frozenset[str]) -> bool:
    return all(any(key in given for key in group) for group in REQUIRED_KEYS[format])


def _labels(row: Row) -> Row:
    """The preference labels of a row whose columns are mapped."""
    return {key: value for key, value in row.items() if preference_label(str(key), value) is not None}


@lru_cache
def _keys_of_others(given: frozenset[str], format: str) -> frozenset[str]:
    """Keys of the row's other formats, which naming one of them leaves out."""
    others = (name for name in REQUIRED_KEYS if name != format and _fits(name, given))
    return given.intersection(key for name in others for group in REQUIRED_KEYS[name] for key in group)


def _unread(row: Row, format: str, options: RowOptions, parsed: Parsed, context: RowContext) -> tuple[str, ...]:
    """Keys of the row, and of its messages, that hold something and were not used. Raises as ``check_unread``."""
    exempt: tuple[str, ...] = ()
    ignored, places = context.names.ignored, frozenset[str]()
    if options.maps_rows:
        places = frozenset(options.column_of.values())
        read = {*COMMON_KEYS, *places, *(place.split(".", 1)[0] for place in places)}
        read -= {place for place in places if place in ignored}
        exempt = (SECOND_TEXT, *((PREFERENCE,) if any(meaning_of(place) == PREFERENCE for place in places) else ()))
    else:
        read = _read_keys(format, parsed.kind)
        if (
            read.issuperset(row)
            and ignored.isdisjoint(row)
            and (row.get("source") is None or isinstance(row["source"], str))
        ):
            return tuple(context.unread)
        if options.format != "auto":  # the user has chosen between the formats that the keys fit
            ignored |= _keys_of_others(frozenset(key for key in _TELLING_KEYS if row.get(key) is not None), format)
        if parsed.kind in ("text", "tokens"):
            exempt = (SECOND_TEXT, TOOLS, *((PREFERENCE,) if parsed.kind == "text" else ()))
    if parsed.kind == "completion" and not options.maps_rows:
        _refuse_in_completion(row, ignored)
    texts = [turn.content for turn in parsed.turns]
    unread = check_unread(row, read | context.consumed, ignored, texts, exempt=exempt, is_mapped=options.maps_rows)
    for parent, read_there in _parents(places if options.maps_rows else ()).items():
        if isinstance(inner := find_column(row, parent), dict):
            found = check_unread(inner, read_there, ignored, texts, prefix=f"{parent}.", exempt=exempt, is_mapped=True)
            unread += [f"{parent}.{key}" for key in found]
    if not isinstance(row.get("source"), str) and not holds_nothing(row.get("source")):
        unread.append("source")
    return (*unread, *context.unread)


def _parents(places: Iterable[str]) -> dict[str, set[str]]:
    """Objects that mapped columns lead into -> the keys of theirs that are read."""
    found: dict[str, set[str]] = {}
    for place in places:
        parts = place.split(".")
        for depth in range(1, len(parts)):
            found.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
    return found


def _refuse_in_completion(row: Row, ignored: frozenset[str]) -> None:
    """Raise RowError where a prompt and completion of text, which are joined without tags, have what needs a chat."""
    further = [key for key in (*SYSTEM_KEYS, "tools") if key not in ignored and not holds_nothing(row.get(key))]
    if further:
        columns = {"instruction": "prompt", "output": "completion"} | {
            "tools" if key == "tools" else "system": key for key in further
        }
        options = " ".join(f"--column {ours}={theirs}" for ours, theirs in columns.items())
        reason = f"{further[0]}: given beside a prompt and a completion of text, which are joined without tags"
        raise RowError(reason, f"{options} (reads the row as a chat)")


@lru_cache
def _read_keys(format: str, kind: Kind) -> frozenset[str]:
    keys = {*ROW_KEYS[format], *COMMON_KEYS, *ROW_WEIGHT_KEYS}
    if kind == "completion":
        return frozenset(keys - {"tools", "system"})  # a completion has neither: refused where it is given
    return frozenset(keys | ({*SYSTEM_KEYS, "functions"} if kind == "chat" else set()))


def _original_id(row: Row, context: RowContext) -> str:
    """The row's own id as text; empty for none, and for one that is neither text nor a whole number."""
    key = next((key for key in ("original_id", "id") if not holds_nothing(row.get(key))), None)
    if key is None:
        return ""
    value = row[key]
    if isinstance(value, float) and value.is_integer():  # as pandas writes a column with gaps
        value = int(value)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            return check_text(str(value), key)
        except (RowError, ValueError):  # ValueError: of more digits than Python writes
            pass
    context.unread[key] = None
    return ""


def _weigh(parsed: Parsed, row: Row, context: RowContext) -> None:
    """Put the row's own loss weight on everything it trains. Raises RowError for a weight of 0."""
    if _WEIGHING_KEYS.isdisjoint(row):
        return
    stated = {key: row[key] for key in ROW_WEIGHT_KEYS if key in row and key not in context.names.ignored}
    if isinstance(row.get("loss"), bool):
        stated["loss"] = row["loss"]
        context.consumed.add("loss")
    if isinstance(mask := row.get("mask"), str) and context.names.roles.get(mask.strip().lower()) == "user":
        context.consumed.add("mask")  # NeMo's name of the role that is not trained
    if parsed.tokens is not None:
        stated = {key: value for key, value in stated.items() if not isinstance(value, list | np.ndarray)}
    weight = read_weight(stated, "")
    if weight is None or weight == 1:
        return
    if weight == 0:
        raise RowError(f"{' and '.join(stated)}: the row is marked as not trained", is_chosen=True)
    if parsed.tokens is not None:
        own = parsed.tokens.weight
        weights = np.full(len(parsed.tokens.input_ids), weight, dtype=np.float32)
        parsed.tokens = replace(parsed.tokens, weight=weights if own is None else own * weights)
    parsed.turns = tuple(
        replace(turn, weight=turn.weight * weight, spans=tuple((a, b, w * weight) for a, b, w in turn.spans))
        if turn.role == "assistant" and turn.is_trained
        else turn
        for turn in parsed.turns
    )
