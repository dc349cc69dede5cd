"""Coverage-guided fuzzing of the intake: ``python tests/pool/fuzz_intake.py -runs=100000`` (needs atheris).

Further arguments are libFuzzer's: ``-max_total_time=600``, a folder to keep the corpus in, or the file of a crash, to
see it again. Nothing is left behind but that file, in a temporary folder that is named at the end.

The first byte of an input chooses how the rest becomes a file. Behind a sound row, whatever follows must be read with
no error (but for a CSV quote that never closes), and each further row must be accepted or rejected. Bytes that are the
whole file may also end in a PoolError.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import atheris

# Only what is not imported yet can be instrumented, so this comes before all that imports json.
with atheris.instrument_imports(include=["tokenclean.pool", "json", "csv"]):  # pyright: ignore[reportAttributeAccessIssue]
    from tokenclean.pool import Pool, load_pool

import json

import pyarrow as pa
import pyarrow.parquet as pq
from mutated_rows import ROWS, SOUND, change_row, check_pool, damage_bytes, encode, write_json

from tokenclean.errors import PoolError
from tokenclean.pool.formats.known_names import MESSAGE_KEYS, ROLES, ROW_KEYS

FOLDER_VARIABLE = "FUZZ_INTAKE_FOLDER"  # set for the process that fuzzes, which ends without cleaning up
SOUND_ROW = b'{"prompt": "a", "completion": "b"}'
SOUND_SHEET = b"instruction,output\na,b\n"
COLUMNS = ("messages", "prompt", "completion", "text")
WORDS = (
    *("\\ud800", "\\u0000", "null", "true", "NaN", "-Infinity", "1e999", "9" * 50, "\ufeff", "}, {", '"}]}'),
    *("[[[[", '""', '"function": {"name": "f", "arguments": {}}', '"type": "text"', '"weight": 1'),
)


def read_lines(path: Path, content: bytes) -> None:
    """JSON lines: every line that is not blank is a row or a rejected one."""
    content = SOUND_ROW + b"\n" + content
    lines = list_lines(load_sound(path.with_suffix(".jsonl"), content))
    filled = [number for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    assert lines == filled, f"lines {filled} gave records on {lines}"


def read_array(path: Path, content: bytes) -> None:
    """A JSON array: as many records as elements, and a rejected one where it is no JSON."""
    content = b"[" + SOUND_ROW + b",\n" + content
    pool = load_sound(path.with_suffix(".json"), content)
    try:
        elements = json.loads(content.decode())
    except (ValueError, RecursionError):
        assert pool.rejected, "broken JSON left no trace"
    else:
        assert len(list_lines(pool)) == len(elements), f"{len(elements)} elements gave {len(list_lines(pool))} records"


def read_csv(path: Path, content: bytes) -> None:
    """CSV: a line that is not blank starts a record, or lies behind a quote of one."""
    content = SOUND_SHEET + content
    try:
        starts = set(list_lines(load_sound(path.with_suffix(".csv"), content)))
    except PoolError as error:
        if "never closes" not in str(error):
            raise
        return
    has_quote = False
    for number, line in enumerate(content.split(b"\n")[1:], start=2):
        has_quote = has_quote and number not in starts
        assert number in starts or has_quote or not line.strip(b"\r"), f"line {number} is lost"
        has_quote = has_quote or b'"' in line


def read_cells(path: Path, content: bytes) -> None:
    """A small Parquet file of JSON columns, one row a line, one cell between tabs: every row is a record."""
    rows: list[list[bytes | None]] = [[None, b'"a"', b'"b"', None]]
    for line in content.split(b"\n", 3):
        cells = line.split(b"\t", len(COLUMNS) - 1)
        rows.append([cell or None for cell in cells] + [None] * (len(COLUMNS) - len(cells)))
    arrays = [pa.array(cells, pa.binary()).view(pa.string()) for cells in zip(*rows, strict=True)]
    path = path.with_suffix(".parquet")
    table = pa.table([pa.ExtensionArray.from_storage(pa.json_(), array) for array in arrays], COLUMNS)
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    lines = list_lines(load_sound(path))
    assert lines == list(range(1, len(rows) + 1)), f"{len(rows)} rows gave records {lines}"


def read_any(suffix: str) -> Callable[[Path, bytes], None]:
    """The bytes are the whole file: a pool, or a PoolError."""

    def read(path: Path, content: bytes) -> None:
        try:
            load(path.with_suffix(suffix), content)
        except PoolError:
            return

    return read


KINDS = (read_lines, read_array, read_csv, read_cells, *map(read_any, (".jsonl", ".json.gz", ".csv", ".json", ".json")))


def load(path: Path, content: bytes | None = None) -> Pool:
    if content is not None:
        path.write_bytes(content)
    pool = load_pool(path)
    check_pool(pool, str(path))
    return pool


def load_sound(path: Path, content: bytes | None = None) -> Pool:
    """The pool of a file whose first row is sound, and stays so whatever follows."""
    pool = load(path, content)
    assert [turn.content for turn in pool[0].turns] == ["a", "b"], f"the sound row became {pool[0].turns}"
    return pool


def list_lines(pool: Pool) -> list[int]:
    """Where the records of a pool stood, sorted."""
    return sorted(row.line for row in (*pool.conversations, *pool.rejected))


def change_input(data: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's own mutations half of the time; otherwise one line gets other values, damage or a neighbour."""
    random = Random(seed)
    if random.random() < 0.5:
        return atheris.Mutate(data, max_size)
    lines = data[1:].split(b"\n")
    at = random.randrange(len(lines))
    draw = random.random()
    if draw < 0.1:
        lines.insert(at, json.dumps(random.choice(ROWS)).encode())
    elif draw < 0.4:
        lines[at] = damage_bytes(random, lines[at])
    else:
        lines[at] = change_line(random, lines[at])
    return (data[:1] + b"\n".join(lines))[:max_size]


def change_line(random: Random, line: bytes) -> bytes:
    body = line.rstrip(b", \t\r]")
    try:
        row = json.loads(body)
    except (ValueError, RecursionError):
        row = None
    row = row if isinstance(row, dict) and row else random.choice(ROWS)
    try:
        return encode(write_json(change_row(random, row), has_escapes=random.random() < 0.7)) + line[len(body) :]
    except (ValueError, RecursionError):  # a row too deep or with numbers too long to be written again
        return line


def write_seeds(folder: Path) -> None:
    """Rows of each format as an input of each kind."""
    for name, rows in SOUND.items():
        texts = [json.dumps(row) for row in rows]
        cells = ["\t".join(json.dumps(row[key]) if key in row else "" for key in COLUMNS) for row in rows]
        sheet = 'instruction,output,input\na,"b\nc ""d""",\n,1\n'
        lines = "\n".join(texts)
        objects = "\n".join(json.dumps(row, indent=1) for row in rows)
        wrapper = json.dumps({"version": 1, "data": rows}, indent=1)
        contents = (lines, ",\n".join(texts) + "]", sheet, "\n".join(cells), lines, f"[{', '.join(texts)}]", sheet)
        contents = (*contents, objects, wrapper)
        for kind, content in enumerate(contents):
            packed = gzip.compress(content.encode()) if kind == 5 else content.encode()
            (folder / f"{name}-{kind}").write_bytes(bytes([kind]) + packed)


def write_dictionary(path: Path) -> None:
    """The keys, roles and texts that mean something in a row, as libFuzzer reads them."""
    keys = dict.fromkeys([*MESSAGE_KEYS, *ROLES, *(key for keys in ROW_KEYS.values() for key in sorted(keys))])
    words = [json.dumps(key) for key in keys] + [f"{json.dumps(key)}: " for key in keys] + list(WORDS)
    escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode("utf-8", "surrogatepass")) for word in words)
    path.write_text("".join(f'"{word}"\n' for word in escaped), encoding="ascii")


def fuzz(folder: Path, arguments: list[str]) -> None:
    """Does not return: libFuzzer ends the process."""
    logging.disable()
    warnings.simplefilter("error")
    path = folder / "fuzzed"

    def read_input(data: bytes) -> None:
        if data:
            KINDS[data[0] % len(KINDS)](path, data[1:])

    atheris.Setup([sys.argv[0], *arguments], read_input, custom_mutator=change_input)
    atheris.Fuzz()


def start_fuzzing(arguments: list[str]) -> int:
    """Fuzz in a process of its own and clear up behind it; its exit status."""
    crashes = Path(tempfile.mkdtemp(prefix="fuzz-intake-"))
    # Thousands of files a second are written, which memory takes faster than a disk.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        write_dictionary(folder / "words.dict")
        options = [f"-artifact_prefix={crashes}/", f"-dict={folder / 'words.dict'}", "-timeout=20"]
        command = [sys.executable, __file__, *options, *arguments]
        if not any(Path(argument).is_file() for argument in arguments):
            (folder / "seeds").mkdir()
            write_seeds(folder / "seeds")
            command.append(str(folder / "seeds"))
        status = subprocess.run(command, env=os.environ | {FOLDER_VARIABLE: name}, check=False).returncode
    if any(crashes.iterdir()):
        print(f"the input that failed is in {crashes}", file=sys.stderr)
    else:
        shutil.rmtree(crashes)
    return status


if __name__ == "__main__":
    if FOLDER_VARIABLE in os.environ:
        fuzz(Path(os.environ[FOLDER_VARIABLE]), sys.argv[1:])
    else:
        sys.exit(start_fuzzing(sys.argv[1:]))
