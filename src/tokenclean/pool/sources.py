"""Pools from JSON lines files: a row that cannot be used is set aside with its reason, never dropped silently."""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tokenclean.errors import PoolError
from tokenclean.pool.conversation import Conversation, Kind, Pool, RejectedRow, Turn
from tokenclean.pool.formats import FORMATS, RowError, check_text, parse_row
from tokenclean.store import atomic_path

logger = logging.getLogger(__name__)

EXCERPT_CHARACTERS = 200


def load_pool(paths: str | Path | Sequence[str | Path], *, source: str | None = None, format: str = "auto") -> Pool:
    """Read JSON lines files, in the given order, as one pool.

    ``source``: the source name of every row. Without it a row's own ``source`` field counts where that is a non-blank
    string, and the file's stem otherwise. ``format``: a name in FORMATS, or ``auto`` to detect it row by row.

    Blank lines are skipped (and counted as lines). A line that is not UTF-8, not JSON, not an object or not a usable
    row of its format goes to ``Pool.rejected``.

    Raises PoolError where a file is missing, unreadable, a JSON array, or without a usable row, and where two rows
    share an id; RecipeError for an unknown format.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise PoolError("no pool file given; expected the path of at least one JSON lines file")
    return merge_pools(_load_file(path, source, format) for path in files)


def merge_pools(pools: Iterable[Pool]) -> Pool:
    """The pools one after the other. Raises PoolError where two rows share an id (a file given twice)."""
    pools = tuple(pools)
    seen: dict[str, Conversation] = {}
    for conversation in (c for pool in pools for c in pool):
        if conversation.id in seen:
            first = seen[conversation.id]
            raise PoolError(
                f"two rows share the id {conversation.id!r}: {first.file}:{first.line} and "
                f"{conversation.file}:{conversation.line}; give each file once, and where two files do hold the same "
                "row, load them one by one with different source names and merge the pools"
            )
        seen[conversation.id] = conversation
    return Pool(tuple(seen.values()), tuple(row for pool in pools for row in pool.rejected))


def write_rejected(rejected: Iterable[RejectedRow], path: str | Path) -> None:
    """Write the rows set aside as JSON lines (``file``, ``line``, ``reason``, ``text``), whole or not at all.

    Raises RunFolderError where the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rejected:
            line = json.dumps(asdict(row), ensure_ascii=False) + "\n"
            # A file name that is not UTF-8 holds lone surrogates; written with a backslash they are JSON's escapes.
            file.write(line.encode("utf-8", "backslashreplace"))


def _load_file(path: Path, source: str | None, format: str) -> Pool:
    # Only a folder (".", "/") has no stem; reading it says so.
    default_source = _check_source((path.stem or str(path)) if source is None else source, path)
    conversations: list[Conversation] = []
    rejected: list[RejectedRow] = []
    for line, content in _read_lines(path):
        try:
            row = _parse_line(content)
            kind, turns = parse_row(row, format)
            name = default_source if source is not None else _row_source(row) or default_source
        except RowError as error:
            text = content.decode("utf-8", "replace")[:EXCERPT_CHARACTERS]
            rejected.append(RejectedRow(str(path), line, str(error), text))
            continue
        identity = f"{name}:{line}:{_hash_turns(kind, turns)}"
        conversations.append(Conversation(identity, name, turns, kind, str(path), line))
    if not conversations:
        raise PoolError(_describe_nothing_usable(path, rejected))
    if rejected:
        total = len(rejected) + len(conversations)
        logger.warning("%s: set aside %d of %d rows; the first is %s", path, len(rejected), total, rejected[0])
    return Pool(tuple(conversations), tuple(rejected))


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line that is not blank, without its line ending."""
    is_first = True
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                content = line.rstrip(b"\r\n")
                if number == 1:
                    content = content.removeprefix(codecs.BOM_UTF8)
                if not content.strip():
                    continue
                if is_first and content.lstrip().startswith(b"["):
                    raise PoolError(_describe_array(path))
                is_first = False
                yield number, content
    except OSError as error:
        raise PoolError(_describe_unreadable(path, error)) from error


def _parse_line(content: bytes) -> dict[str, Any]:
    try:
        row = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: byte 0x{content[error.start]:02x} at byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise RowError(f"broken JSON at character {error.pos + 1}: {error.msg}") from None
    except RecursionError:
        raise RowError("broken JSON: nested too deeply") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise RowError(f"broken JSON: {error}") from None
    if not isinstance(row, dict):
        raise RowError("expected a JSON object, found another JSON value")
    return row


def _row_source(row: dict[str, Any]) -> str | None:
    name = row.get("source")
    return check_text(name, "source") if isinstance(name, str) and name.strip() else None


def _check_source(name: str, path: Path) -> str:
    try:
        usable = bool(check_text(name, "source").strip())
    except RowError:
        usable = False
    if not usable:
        raise PoolError(f"{path}: {name!r} cannot be a source name; give one that is not blank and is valid UTF-8")
    return name


def _hash_turns(kind: Kind, turns: Sequence[Turn]) -> str:
    """First 12 hex digits of the SHA-256 of ``[kind, [[role, content], ...]]`` as compact JSON in UTF-8."""
    content = json.dumps([kind, [[t.role, t.content] for t in turns]], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _describe_nothing_usable(path: Path, rejected: Sequence[RejectedRow]) -> str:
    expected = f"expected JSON lines, one object a line, in one of the formats {', '.join(FORMATS)}"
    if not rejected:
        return f"{path}: holds no row; {expected}"
    reasons = "".join(f"\n  line {row.line}: {row.reason}" for row in rejected[:3])
    return f"{path}: no usable row ({len(rejected)} rejected); {expected}. The first reasons:{reasons}"


def _describe_array(path: Path) -> str:
    # Never the file's own name: a shell would empty it before jq reads it.
    target = path.with_name(f"{path.stem}.lines.jsonl")
    command = f"jq -c '.[]' {shlex.quote(str(path))} > {shlex.quote(str(target))}"
    return f"{path}: is a JSON array; expected JSON lines, one object a line. Turn it into them with: {command}"


def _describe_unreadable(path: Path, error: OSError) -> str:
    if path.is_dir():
        names = _list_names(path, ".jsonl", ".json")
        holds = f" (it holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
        return f"{path}: is a folder; name the JSON lines files in it{holds}"
    if isinstance(error, PermissionError):
        return f"{path}: no permission to read it; try: chmod u+r {shlex.quote(str(path))}"
    if not isinstance(error, FileNotFoundError):
        return f"{path}: cannot be read: {error.strerror or error}"
    if not path.parent.is_dir():
        return f"{path}: no such file; the folder {path.parent.absolute()} does not exist"
    close = get_close_matches(path.name, _list_names(path.parent), n=1)
    hint = f"did you mean {path.with_name(close[0])}?" if close else f"looked in {path.parent.absolute()}"
    return f"{path}: no such file; {hint}"


def _list_names(folder: Path, *suffixes: str) -> list[str]:
    """Sorted names in a folder, with one of the suffixes if any are given; none where it may not be listed."""
    try:
        return sorted(name for name in os.listdir(folder) if not suffixes or name.endswith(suffixes))
    except OSError:
        return []
