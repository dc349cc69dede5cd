"""Pools from files and datasets: a row that cannot be used is set aside with its reason, never dropped silently."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenclean.errors import PoolError
from tokenclean.pool.conversation import Conversation, Pool, RejectedRow, Turn
from tokenclean.pool.formats import FORMATS, Parsed, RowError, check_columns, check_text, parse_row, read_column
from tokenclean.pool.reading import Record, read_hub, read_records
from tokenclean.recipe import SourceSettings, source_from

logger = logging.getLogger(__name__)

_NOTHING_FURTHER = ("", (), True, "", "")


def load_pool(
    paths: str | Path | Sequence[str | Path],
    *,
    source: str | None = None,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    split: str | None = None,
) -> Pool:
    """Read local files, in the given order, as one pool.

    A file is JSON lines, a JSON array or CSV (each also ``.gz`` or ``.zst``), Parquet, or a folder that
    ``datasets`` wrote with ``save_to_disk`` (``split`` names one of its splits). ``source``: the source name of every
    row. Without it a row's own ``source`` field counts where that is a non-blank string, and the file's stem
    otherwise. ``format``: a name in FORMATS, or ``auto`` to detect it row by row. ``columns``: our key -> the row's
    column. ``roles``: further role names -> ours.

    A row that cannot be read, or is no usable row of its format, goes to ``Pool.rejected``.

    Raises PoolError where a file is missing, unreadable or without a usable row, and where two rows share an id;
    RecipeError for an unknown format, key or role.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise PoolError("no pool file given; expected the path of at least one file of conversations")
    options = {"format": format, "columns": tuple((columns or {}).items()), "roles": tuple((roles or {}).items())}
    return load_sources(source_from({"path": str(path), "name": source, "split": split, **options}) for path in files)


def load_sources(sources: Iterable[SourceSettings]) -> Pool:
    """All sources, local files and Hub datasets, as one pool. Raises as ``load_pool`` does."""
    return merge_pools(_load_source(settings) for settings in sources)


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
                "row, give them different source names"
            )
        seen[conversation.id] = conversation
    return Pool(tuple(seen.values()), tuple(row for pool in pools for row in pool.rejected))


def _load_source(settings: SourceSettings) -> Pool:
    place, columns, roles = settings.place, dict(settings.columns), dict(settings.roles)
    check_columns(settings.format, columns, roles)
    default_source = _check_source(_default_name(settings) if settings.name is None else settings.name, place)
    conversations: list[Conversation] = []
    rejected: list[RejectedRow] = []
    for record in islice(_read(settings), settings.first_rows):
        try:
            if record.row is None:
                raise RowError(record.fault)
            parsed = parse_row(record.row, settings.format, columns, roles)
            name = default_source if settings.name is not None else _row_source(record.row, columns) or default_source
        except RowError as error:
            rejected.append(RejectedRow(place, record.line, str(error), record.excerpt()))
            continue
        identity = f"{name}:{record.number}:{_hash_content(parsed)}"
        conversations.append(
            Conversation(identity, name, parsed.turns, parsed.kind, place, record.line, parsed.tools, parsed.tokens)
        )
    if not conversations:
        raise PoolError(_describe_nothing_usable(place, rejected))
    if rejected:
        total = len(rejected) + len(conversations)
        logger.warning("%s: set aside %d of %d rows; the first is %s", place, len(rejected), total, rejected[0])
    return Pool(tuple(conversations), tuple(rejected))


def _read(settings: SourceSettings) -> Iterator[Record]:
    if settings.hub is None:
        return read_records(Path(settings.place).expanduser(), split=settings.split)
    return read_hub(
        settings.hub,
        config=settings.config,
        split=settings.split,
        revision=settings.revision,
        streaming=settings.streaming,
    )


def _default_name(settings: SourceSettings) -> str:
    if settings.hub is not None:
        return settings.hub.rsplit("/", 1)[-1]
    name = Path(settings.place).name
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix)
    return Path(name).stem or settings.place  # only a folder (".", "/") has no stem; reading it says so


def _row_source(row: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    name = read_column(row, columns["source"], "source") if "source" in columns else row.get("source")
    return check_text(name, "source") if isinstance(name, str) and name.strip() else None


def _check_source(name: str, place: str) -> str:
    try:
        usable = bool(check_text(name, "source").strip())
    except RowError:
        usable = False
    if not usable:
        raise PoolError(f"{place}: {name!r} cannot be a source name; give one that is not blank and is valid UTF-8")
    return name


def _hash_content(parsed: Parsed) -> str:
    """First 12 hex digits of the SHA-256 of the row's content: ``[kind, [[role, content], ...]]`` as compact JSON in
    UTF-8, followed by whatever else the row holds (tools, tool calls, reasoning, flags, token ids and labels)."""
    content: list[Any] = [parsed.kind, [[turn.role, turn.content] for turn in parsed.turns]]
    further = [_further(turn) for turn in parsed.turns]
    if parsed.tools or any(fields != _NOTHING_FURTHER for fields in further):
        content += [parsed.tools, further]
    digest = hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())
    if parsed.tokens is not None:
        digest.update(parsed.tokens.input_ids.tobytes() + parsed.tokens.is_response.tobytes())
    return digest.hexdigest()[:12]


def _further(turn: Turn) -> tuple[Any, ...]:
    calls = tuple((call.name, call.arguments, call.id) for call in turn.tool_calls)
    return (turn.reasoning, calls, turn.is_trained, turn.name, turn.call_id)


def _describe_nothing_usable(place: str, rejected: Sequence[RejectedRow]) -> str:
    expected = f"expected rows in one of the formats {', '.join(FORMATS)}"
    if not rejected:
        return f"{place}: holds no row; {expected}"
    reasons = "".join(f"\n  line {row.line}: {row.reason}" for row in rejected[:3])
    return f"{place}: no usable row ({len(rejected)} rejected); {expected}. The first reasons:{reasons}"
