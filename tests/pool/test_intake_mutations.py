"""More than 100,000 damaged rows through ``load_pool``: no error but our own, and no row lost without a reason."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutated_rows import (
    SOUND,
    change_row,
    check_pool,
    damage_bytes,
    describe_content,
    encode,
    find_unaccounted,
    write_json,
)

from tokenclean.errors import PoolError
from tokenclean.pool import Conversation, load_pool, write_rejected
from tokenclean.pool.formats import FORMATS, RowError, detect_format, parse_row

FILE_ROWS = 1000
DAMAGED_ROWS_EACH = 2000  # of every format in every kind of file
DAMAGED_SHARE = 0.75

Row = dict[str, Any]


class Piece(NamedTuple):
    """A row as it is written. ``sound``: index of the sound row that it is, None for a damaged one."""

    content: Any
    sound: int | None


class Layout(NamedTuple):
    """What a file was written to hold: ``sound``, line -> index of the sound row that stands there; ``damaged``, the
    lines on which a damaged row, or what is left of it, stands; ``damaged_rows``, how many rows were damaged."""

    sound: dict[int, int]
    damaged: list[int]
    damaged_rows: int


def draw_pieces(random: Random, sound: list[Any], damage: Callable[[int], Any], count: int) -> list[Piece]:
    """Every sound row, then ``count`` rows most of which are damaged."""
    pieces = [Piece(content, index) for index, content in enumerate(sound)]
    for _ in range(count):
        index = random.randrange(len(sound))
        content = damage(index) if random.random() < DAMAGED_SHARE else sound[index]
        pieces.append(Piece(content, index if content == sound[index] else None))
    return pieces


def lay_out(pieces: list[Piece], first: int, find_records: Callable[[bytes], list[int]] = lambda _: [0]) -> Layout:
    """The layout of pieces that stand below each other. ``find_records``: lines of a damaged one that hold a record."""
    sound: dict[int, int] = {}
    damaged: list[int] = []
    line = first
    for piece in pieces:
        if piece.sound is None:
            damaged += [line + offset for offset in find_records(piece.content)]
        else:
            sound[line] = piece.sound
        line += piece.content.count(b"\n") + 1
    return Layout(sound, damaged, sum(piece.sound is None for piece in pieces))


def pack(path: Path, content: bytes) -> None:
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=1)
    elif path.suffix == ".zst":
        content = bytes(pa.compress(content, codec="zstd", asbytes=True))
    path.write_bytes(content)


def write_json_lines(path: Path, random: Random, rows: Sequence[Row], count: int) -> Layout:
    sound = [json.dumps(row, ensure_ascii=False).encode() for row in rows]

    def damage(index: int) -> bytes:
        if random.random() < 0.6:
            return damage_bytes(random, sound[index])
        return encode(write_json(change_row(random, rows[index]), has_escapes=random.random() < 0.7))

    pieces = draw_pieces(random, sound, damage, count)
    head = random.choice((b"", b"\xef\xbb\xbf", b"\r\n \n"))
    pack(path, head + random.choice((b"\n", b"\r\n")).join(piece.content for piece in pieces))
    return lay_out(pieces, 1 + head.count(b"\n"), find_filled_lines)


def find_filled_lines(content: bytes) -> list[int]:
    return [offset for offset, line in enumerate(content.split(b"\n")) if line.strip()]


def write_json_array(path: Path, random: Random, rows: Sequence[Row], count: int) -> Layout:
    sound = [json.dumps(row, ensure_ascii=False).encode() for row in rows]

    def damage(index: int) -> bytes:
        return encode(write_json(change_row(random, rows[index]), has_escapes=random.random() < 0.7))

    pieces = draw_pieces(random, sound, damage, count)
    pack(path, b"[\n" + b",\n".join(piece.content for piece in pieces) + b"\n]\n")
    return lay_out(pieces, 2)


def write_csv(path: Path, random: Random, rows: Sequence[Row], count: int) -> Layout:
    (row,) = rows  # the header is the same for all

    def write_cells(changed: Any) -> bytes:
        values = changed.values() if isinstance(changed, dict) else [changed]
        cells = [value if isinstance(value, str) else write_json(value) for value in values]
        return encode(",".join('"' + cell.replace('"', '""') + '"' for cell in cells) or '""')

    pieces = draw_pieces(random, [write_cells(row)], lambda _: write_cells(change_row(random, row)), count)
    header = Piece(",".join(row).encode(), None)
    pack(path, random.choice((b"\n", b"\r\n")).join(piece.content for piece in (header, *pieces)))
    return lay_out(pieces, 2)


def write_json_columns(path: Path, random: Random, rows: Sequence[Row], count: int) -> Layout:
    """Parquet whose cells are of Arrow's JSON type, so that each may hold anything, broken JSON and bytes too."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def damage(index: int) -> list[bytes | None]:
        changed = change_row(random, rows[index])
        cells = write_cells(changed if isinstance(changed, dict) else dict.fromkeys(columns, changed))
        return [damage_bytes(random, cell) if cell and random.random() < 0.1 else cell for cell in cells]

    def write_cells(row: Row) -> list[bytes | None]:
        return [encode(write_json(row[key])) if key in row else None for key in columns]

    pieces = draw_pieces(random, [write_cells(row) for row in rows], damage, count)
    arrays = [
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(cells, pa.binary()).view(pa.string()))
        for cells in zip(*(piece.content for piece in pieces), strict=True)
    ]
    pq.write_table(pa.table(arrays, columns), path)
    return number(pieces)


def write_typed_columns(path: Path, random: Random, rows: Sequence[Row], count: int) -> Layout:
    """Parquet whose columns have the types of the one sound row; a value that does not fit its column is null."""
    (row,) = rows
    types = {key: find_type(value) for key, value in row.items()}

    def damage(_: int) -> list[Any]:
        changed = change_row(random, row)
        return [fit_type(changed.get(key), types[key]) if isinstance(changed, dict) else None for key in row]

    sound = [fit_type(value, types[key]) for key, value in row.items()]
    pieces = draw_pieces(random, [sound], damage, count)
    cells = zip(*(piece.content for piece in pieces), strict=True)
    arrays = [pa.array(column, types[key]) for key, column in zip(row, cells, strict=True)]
    pq.write_table(pa.table(arrays, list(row)), path)
    return number(pieces)


def find_type(value: Any) -> pa.DataType:
    try:
        return pa.array([value]).type
    except pa.ArrowInvalid:  # texts and lists mixed, which stand as JSON text
        return pa.string()


def fit_type(value: Any, kind: pa.DataType) -> Any:
    try:
        return pa.array([value], kind)[0].as_py()
    except (TypeError, ValueError, OverflowError, pa.ArrowException):
        return json.dumps(value) if kind == pa.string() and isinstance(value, list | dict) else None


def number(pieces: list[Piece]) -> Layout:
    """The layout of a table, whose rows count as lines."""
    placed = list(enumerate(pieces, start=1))
    damaged = [row for row, piece in placed if piece.sound is None]
    return Layout({row: piece.sound for row, piece in placed if piece.sound is not None}, damaged, len(damaged))


class Kind(NamedTuple):
    """A kind of file. ``takes_one_row``: all its rows come from one sound row, since they share a header or types."""

    name: str
    write: Callable[[Path, Random, Sequence[Row], int], Layout]
    takes_one_row: bool = False


KINDS = (
    Kind("lines.jsonl", write_json_lines),
    Kind("packed.jsonl.gz", write_json_lines),
    Kind("array.json", write_json_array),
    Kind("packed.json.zst", write_json_array),
    Kind("sheet.csv", write_csv, takes_one_row=True),
    Kind("packed.csv.gz", write_csv, takes_one_row=True),
    Kind("mixed.parquet", write_json_columns),
    Kind("typed.parquet", write_typed_columns, takes_one_row=True),
)


def test_the_rows_are_enough_and_of_every_format():
    assert len(KINDS) * len(SOUND) * DAMAGED_ROWS_EACH >= 100_000
    assert {detect_format(row) for rows in SOUND.values() for row in rows} == set(FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("format", SOUND)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_only_damaged_rows_are_rejected_each_with_a_reason(tmp_path, kind, format):
    random = Random(f"{kind.name} {format}")
    path = tmp_path / kind.name
    groups = [(row,) for row in SOUND[format]] if kind.takes_one_row else [SOUND[format]]
    damaged_rows = 0
    while damaged_rows < DAMAGED_ROWS_EACH:
        for rows in groups:
            kind.write(path, random, rows, 0)
            reported = [describe_content(conversation) for conversation in load_pool(path)]
            assert len(reported) == len(rows)
            layout = kind.write(path, random, rows, FILE_ROWS)
            check_file(path, layout, reported)
            damaged_rows += layout.damaged_rows


def check_file(path: Path, layout: Layout, reported: list[Any]) -> None:
    """Each sound row tells what it tells alone; each other line is a row, or rejected and listed."""
    pool = load_pool(path)
    check_pool(pool, str(path))
    found = {conversation.line: conversation for conversation in pool}
    changed = [line for line, index in layout.sound.items() if describe_content(found[line]) != reported[index]]
    assert changed == []
    lines = [row.line for row in (*pool.conversations, *pool.rejected)]
    assert sorted(lines) == sorted([*layout.sound, *layout.damaged])
    listing = path.with_name("rejected.jsonl")
    write_rejected(pool.rejected, listing)
    listed = [json.loads(line)["line"] for line in listing.read_bytes().splitlines()]
    assert listed == [row.line for row in pool.rejected]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_damaged_anywhere_is_read_or_refused(tmp_path, kind):
    random = Random(kind.name)
    path = tmp_path / kind.name
    kind.write(path, random, SOUND["messages"][:1], 20)
    content = path.read_bytes()
    for _ in range(300):
        path.write_bytes(damage_bytes(random, content))
        with suppress(PoolError):
            check_pool(load_pool(path), str(path))


def test_the_text_of_a_rejected_table_row_is_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"sound"', '"\\ud800"']))
    pq.write_table(pa.table({"text": texts}), path)
    (row,) = load_pool(path).rejected
    assert (row.reason, row.text) == ("text: lone surrogate at character 1", '{"text": "\\ud800"}')


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="needs atheris (on Linux, with a Python that it supports)")
def test_fuzzing_finds_nothing_and_leaves_nothing(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("fuzz_intake.py")), "-runs=50000", "-seed=1"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 50000 runs" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_key_of_a_usable_row_is_passed_over():
    random = Random(5)
    accepted = 0
    for _ in range(20_000):
        row = change_row(random, random.choice([row for rows in SOUND.values() for row in rows]))
        if not isinstance(row, dict):
            continue
        row |= {random.choice(("score", "label", "note", "images", "question")): random.choice((None, "", [], 3, "x"))}
        with suppress(RowError):
            parsed = parse_row(row, is_padded=random.random() < 0.5)
            conversation = Conversation("s:1:x", "s", parsed.turns, parsed.kind, unread=parsed.unread)
            printable = {key: value for key, value in row.items() if key.isprintable() and key.strip()}
            assert not find_unaccounted(printable, conversation), row
            accepted += 1
    assert accepted > 4_000
