"""OpenAssistant's message trees as conversations: of every tree the thread of the best-ranked replies.

A row is one message: ``message_id``, ``parent_id`` (null for a tree's first message), ``role`` (``prompter`` or
``assistant``), ``text``, ``rank`` among its siblings (0 is the best; null where nobody ranked them) and ``deleted``.
Other keys are not read. A tree gives one conversation: from its first message on always the best-ranked reply, of
prompter and assistant alike, down to the last answer. Of replies with the same rank the first in the file counts, and
one without a rank comes after those with one. Replies that are deleted, blank or out of turn are skipped, with what
follows them. The replies not taken are other conversations with the same beginning; they are not counted as rows set
aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tokenclean.pool.formats.field_types import RowError, name_type, quote, read_text
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

    A tree's messages may be anywhere among the records, so all are held in memory; the trees come in the order of
    their first messages. A message that cannot be read becomes a record with a fault, and so does one that no first
    message leads to, and the first message of a tree without an answer.
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
            roots.append(_at_fault(record, f"message_id: {quote(message.id)} is given twice"))
            continue
        known.add(message.id)
        if message.parent is None:
            roots.append(message)
        else:
            replies.setdefault(message.parent, []).append(message)
    for root in roots:
        yield root if isinstance(root, Record) else _thread_record(root, replies)
    reached = [root.id for root in roots if isinstance(root, _Message)]
    while reached:
        reached += [reply.id for reply in replies.pop(reached.pop(), ())]
    for parent, messages in replies.items():
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
    return replace(root.record, row={"messages": messages}, is_padded=False, wrapper_keys=())


def _may_follow(reply: _Message, before: _Message) -> bool:
    return not reply.is_deleted and bool(reply.text.strip()) and reply.role != before.role


def _read_message(record: Record) -> _Message | Record:
    """The message, or the record with its fault."""
    row = record.row
    if row is None:
        return record
    try:
        role = read_text(row, "role")
        if role not in ROLES:
            raise RowError(f"role: expected {' or '.join(ROLES)}, found {quote(role)}")
        id = read_text(row, "message_id")
        parent = None if row.get("parent_id") is None else read_text(row, "parent_id")
        text, rank, deleted = read_text(row, "text"), _read_rank(row.get("rank")), row.get("deleted")
        if deleted is not None and not isinstance(deleted, bool):
            raise RowError(f"deleted: expected true or false, found {name_type(deleted)}")
        return _Message(record, id, parent, role, text, rank, bool(deleted))
    except RowError as error:
        return _at_fault(record, str(error))


def _read_rank(rank: object) -> int:
    if rank is None:
        return _LAST
    # A table whose column holds nulls may give 0.0 for 0.
    if isinstance(rank, bool) or not isinstance(rank, int | float) or rank < 0 or rank % 1 != 0:
        raise RowError(f"rank: expected a number from 0, found {quote(rank)}")
    return int(rank)


def _at_fault(record: Record, fault: str) -> Record:
    return replace(record, row=None, fault=fault)
