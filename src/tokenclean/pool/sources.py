"""Pools from files and datasets: a row that cannot be used is set aside with its reason, never dropped silently."""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from tokenclean.errors import PoolError
from tokenclean.pool.conversation import Conversation, Pool, RejectedRow, Turn
from tokenclean.pool.formats import FORMATS, Parsed, RowError, RowOptions, check_text, parse_row, read_column
from tokenclean.pool.formats.oasst import read_threads
from tokenclean.pool.formats.unread_keys import shown_key
from tokenclean.pool.intake import Intake
from tokenclean.pool.reading import Record, read_hub, read_records
from tokenclean.recipe import SourceSettings, source_from

logger = logging.getLogger(__name__)

_NOTHING_FURTHER = ("", (), True, "", "")


def load_pool(paths: str | Path | Sequence[str | Path], *, source: str | None = None, **options: object) -> Pool:
    """Read local files, in the given order, as one pool.

    A file is JSON lines, a JSON array or CSV (each also ``.gz`` or ``.zst``), Parquet, or a folder that
    ``datasets`` wrote with ``save_to_disk`` (``split`` names one of its splits). ``source``: the source name of every
    row. Without it a row's own ``source`` field counts where that is a non-blank string, and the file's stem
    otherwise. ``options``: further keys of ``SourceSettings``, such as ``columns`` (our key -> the row's column),
    ``roles`` (further role names -> ours), ``format``, ``delimiter``, ``encoding``, ``ignore`` and ``preferences``.

    A row that cannot be read, or is no usable row of its format, goes to ``Pool.rejected``. Warnings give the reasons
    with counts, keys that were not used, and what was done to rows so that they can be used (``Intake``).

    Raises PoolError where a file is missing, unreadable or without a usable row, and where two rows share an id;
    RecipeError for an unknown option, format, key or role.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise PoolError("no pool file given; expected the path of at least one file of conversations")
    pool = load_sources(source_from({"path": str(path), "name": source, **options}) for path in files)
    for line in Intake.of(pool).lines():
        logger.warning("%s", line)
    return pool


def load_sources(sources: Iterable[SourceSettings]) -> Pool:
    """All sources, local files and Hub datasets, as one pool. Raises as ``load_pool`` does."""
    conversations: list[Conversation] = []
    rejected: list[RejectedRow] = []
    for row in stream_sources(sources):
        if isinstance(row, Conversation):
            conversations.append(row)
        else:
            rejected.append(row)
    return Pool(tuple(conversations), tuple(rejected))


def stream_sources(
    sources: Iterable[SourceSettings], *, is_first_reading: bool = True
) -> Iterator[Conversation | RejectedRow]:
    """All rows of all sources in their order, usable or set aside, in constant memory.

    Raises as ``load_pool`` does, after the rows before the fault; two rows that share an id are found after the last
    row, from 8 bytes a row, which are kept only where there are several sources. ``is_first_reading``: False for
    sources that were read to their end before; shared ids are then not looked for again.
    """
    sources = tuple(sources)
    compares = is_first_reading and len(sources) > 1  # rows of one source differ in their number
    hashes = array("q")  # of ids, far smaller than the ids
    for settings in sources:
        for row in _stream_source(settings):
            if compares and isinstance(row, Conversation):
                hashes.append(hash(row.id))
            yield row
    if compares:
        _refuse_shared_ids(sources, hashes)


def merge_pools(pools: Iterable[Pool]) -> Pool:
    """The pools one after the other. Raises PoolError where two rows share an id (a file given twice)."""
    pools = tuple(pools)
    seen: dict[str, Conversation] = {}
    for second in (conversation for pool in pools for conversation in pool):
        if (first := seen.get(second.id)) is not None:
            raise PoolError(
                f"two rows share the id {second.id!r}: {first.file}:{first.line} and {second.file}:{second.line}; give "
                "each file once, and where two files do hold the same row, give them different source names"
            )
        seen[second.id] = second
    return Pool(tuple(seen.values()), tuple(row for pool in pools for row in pool.rejected))


def _stream_source(settings: SourceSettings) -> Iterator[Conversation | RejectedRow]:
    place, columns = settings.place, dict(settings.columns)
    is_tree = settings.format == "oasst"  # its rows are messages, and what the pool takes are threads of them
    options = _row_options(settings, columns)
    default_source = _check_source(_default_name(settings) if settings.name is None else settings.name, place)
    intake = Intake()
    records = read_source(settings)
    for record in islice(read_threads(records) if is_tree else records, settings.first_rows):
        try:
            if record.row is None:
                raise RowError(record.fault)
            parsed = parse_row(record.row, options, is_padded=record.is_padded)
            name = default_source if settings.name is not None else _row_source(record.row, columns) or default_source
            parsed = replace(parsed, unread=(*parsed.unread, *map(shown_key, record.wrapper_keys)))
            parsed = replace(parsed, format="oasst") if is_tree else parsed
            id = f"{name}:{record.number}:{_hash_content(parsed)}"
            row = Conversation(id, name, file=place, line=record.line, **vars(parsed))
        except RowError as error:
            row = RejectedRow(place, record.line, str(error), record.excerpt(), error.remedy, error.is_chosen)
        intake.add(row)
        yield row
    if not intake.readable:
        found = f"no usable row ({intake.rows:,} set aside)" if intake.rows else "holds no row"
        reasons = f". The reasons:\n{intake.describe_reasons()}" if intake.rows else ""
        raise PoolError(f"{place}: {found}; expected rows in one of the formats {', '.join(FORMATS)}{reasons}")


def _row_options(settings: SourceSettings, columns: Mapping[str, str]) -> RowOptions:
    """How the rows of a source are read. Raises RecipeError for options that no row can satisfy."""
    format = "messages" if settings.format == "oasst" else settings.format
    s, ignored = settings, frozenset(settings.ignore)
    return RowOptions(format, columns, dict(s.roles), ignored, s.preferences, s.python_literals, s.repair_thoughts)


def _refuse_shared_ids(sources: tuple[SourceSettings, ...], hashes: array[int]) -> None:
    """Raise PoolError where two ids are the same, after reading the sources again for the places of both.

    ``hashes``: of the ids.
    """
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.int64), return_counts=True)
    repeated = set(values[counts > 1].tolist())  # of one id, or of two ids with one hash
    if repeated:
        again = stream_sources(sources, is_first_reading=False)
        merge_pools([Pool((row,)) for row in again if isinstance(row, Conversation) and hash(row.id) in repeated])


def read_source(settings: SourceSettings) -> Iterator[Record]:
    """The source's rows as stored, in their order, ``first_rows`` not yet applied. Raises PoolError for what cannot be
    read."""
    if settings.hub is not None:
        return read_hub(settings)
    path, delimiter = Path(settings.place).expanduser(), settings.delimiter
    return read_records(path, split=settings.split, delimiter=delimiter, encoding=settings.encoding)


def _default_name(settings: SourceSettings) -> str:
    if settings.hub is not None:
        return settings.hub.rsplit("/", 1)[-1]
    name = Path(settings.place).name
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix)
    return Path(name).stem or settings.place  # only a folder (".", "/") has no stem; reading it says so


def _row_source(row: Mapping[str, object], columns: Mapping[str, str]) -> str | None:
    name = read_column(row, columns["source"], "source") if "source" in columns else row.get("source")
    return check_text(name, "source") if isinstance(name, str) and name.strip() else None


def _check_source(name: str, place: str) -> str:
    try:
        if check_text(name, "source").strip():
            return name
    except RowError:
        pass
    raise PoolError(f"{place}: {name!r} cannot be a source name; give one that is not blank and is valid UTF-8")


def _hash_content(parsed: Parsed) -> str:
    """First 12 hex digits of the SHA-256 of the row's content: ``[kind, [[role, content], ...]]`` as compact JSON in
    UTF-8, followed by everything else the row holds (tools, tool calls, reasoning, flags, token ids and labels)."""
    content: list[object] = [parsed.kind, [[turn.role, turn.content] for turn in parsed.turns]]
    further = [_further(turn) for turn in parsed.turns]
    if parsed.tools or any(fields != _NOTHING_FURTHER for fields in further):
        content += [parsed.tools, further]
    digest = hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())
    if parsed.tokens is not None:
        digest.update(parsed.tokens.input_ids.tobytes() + parsed.tokens.is_response.tobytes())
        if parsed.tokens.weight is not None:
            digest.update(parsed.tokens.weight.tobytes())
    return digest.hexdigest()[:12]


def _further(turn: Turn) -> tuple[object, ...]:
    calls = tuple((call.name, call.arguments, call.id) for call in turn.tool_calls)
    weights = (turn.weight, turn.spans) if turn.weight != 1 or turn.spans else ()
    return (turn.reasoning, calls, turn.is_trained, turn.name, turn.call_id, *weights)
