"""Message trees, as OpenAssistant writes them, to conversations: of every tree the thread of the best-ranked replies.

A row is one message: ``message_id``, ``parent_id`` (null for a tree's first message), ``role`` (``prompter`` or
``assistant``), ``text``, ``rank`` among its siblings (0 is the best; null where nobody ranked them) and ``deleted``.
Other keys are not read. A tree gives one conversation: from its first message on always the best-ranked reply, of
prompter and assistant alike, down to the last answer. Of replies of one rank the first in the file counts, and one
without a rank comes after those with one. Replies that are deleted, blank or of another role than it is the turn of are
passed over, with what follows them. The replies not taken are other conversations with the same beginning; they are no
rows that were set aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenclean.pool.formats.field_types import Row, RowError, check_text, name_type, quote
from tokenclean.pool.reading.record import Record

ROLES = {"prompter": "user", "assistant": "assistant"}
_LAST = 1 << 62


@dataclass(frozen=True)
class _Message:
    record: Record
    id: str
    parent: str | None
    role: str
    text: str
    rank: int
    is_deleted: bool


def read_threads(records: Iterable[Record]) -> Iterator[Record]:
    """One record a tree, whose row holds ``messages``; its number, line and excerpt are those of the first message.

    A tree's messages may lie anywhere among the records, so all are held in memory; the trees come in the order of
    their first messages. A message that cannot be read is a record with a fault, and so is one that no first message
    leads to, and the first message of a tree without an answer.
    """
    roots: list[_Message | Record] = []
    replies: dict[str, list[_Message]] = {}
    known: set[str] = set()
    for record in records:
        message = _read_message(record)
        if isinstance(message, Record):
            roots.append(message)
            continue
        if message.id in known:
            roots.append(_at_fault(record, f"message_id: {quote(message.id)} stands there twice"))
            continue
        known.add(message.id)
        if message.parent is None:
            roots.append(message)
        else:
            replies.setdefault(message.parent, []).append(message)
    for root in roots:
        yield root if isinstance(root, Record) else _thread_record(root, replies)
    reached = _reached([root.id for root in roots if isinstance(root, _Message)], replies)
    for parent, messages in replies.items():
        if parent not in reached:
            why = "leads to no first message" if parent in known else "is not in the source"
            yield from (_at_fault(m.record, f"parent_id: the message {quote(parent)} {why}") for m in messages)


def _thread_record(root: _Message, replies: dict[str, list[_Message]]) -> Record:
    if root.role != "prompter":
        return _at_fault(root.record, f"role: expected a tree to begin with a prompter, found {quote(root.role)}")
    if root.is_deleted:
        return _at_fault(root.record, "deleted: the first message of the tree")
    if not root.text.strip():
        return _at_fault(root.record, "text: the first message of the tree is blank")
    thread = [root]
    while following := [reply for reply in replies.get(thread[-1].id, ()) if _may_follow(reply, thread[-1])]:
        thread.append(min(following, key=lambda reply: reply.rank))  # the first of equals
    if thread[-1].role == "prompter":
        thread.pop()
    if not thread:
        return _at_fault(root.record, "the tree holds no answer to its first message")
    messages = [{"role": ROLES[message.role], "content": message.text} for message in thread]
    record = root.record
    return Record(record.number, record.line, {"messages": messages}, origin=record.origin)


def _reached(ids: list[str], replies: dict[str, list[_Message]]) -> set[str]:
    """Ids of the messages that these lead to, and these."""
    reached: set[str] = set()
    while ids:
        id = ids.pop()
        reached.add(id)
        ids += [reply.id for reply in replies.get(id, ())]
    return reached


def _may_follow(reply: _Message, before: _Message) -> bool:
    return not reply.is_deleted and bool(reply.text.strip()) and reply.role != before.role


def _read_message(record: Record) -> _Message | Record:
    """The message, or the record with its fault."""
    if record.row is None:
        return record
    try:
        return _parse_message(record, record.row)
    except RowError as error:
        return _at_fault(record, str(error))


def _parse_message(record: Record, row: Row) -> _Message:
    role = _read_text(row, "role")
    if role not in ROLES:
        raise RowError(f"role: expected {' or '.join(ROLES)}, found {quote(role)}")
    parent = row.get("parent_id")
    return _Message(
        record,
        _read_text(row, "message_id"),
        None if parent is None else check_text(parent, "parent_id"),
        role,
        _read_text(row, "text"),
        _read_rank(row.get("rank")),
        _read_deleted(row.get("deleted")),
    )


def _read_text(row: Row, key: str) -> str:
    if row.get(key) is None:
        raise RowError(f"{key}: missing")
    return check_text(row[key], key)


def _read_rank(rank: Any) -> int:
    if rank is None:
        return _LAST
    # A table whose column holds nulls may give 0.0 for 0.
    is_whole = rank.is_integer() if isinstance(rank, float) else isinstance(rank, int) and not isinstance(rank, bool)
    if not is_whole or rank < 0:
        raise RowError(f"rank: expected a number from 0, found {quote(rank)}")
    return int(rank)


def _read_deleted(deleted: Any) -> bool:
    if deleted is not None and not isinstance(deleted, bool):
        raise RowError(f"deleted: expected true or false, found {name_type(deleted)}")
    return bool(deleted)


def _at_fault(record: Record, fault: str) -> Record:
    return Record(record.number, record.line, None, fault, record.origin)
