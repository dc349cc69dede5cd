"""Coverage-guided fuzzing of the intake: ``python tests/pool/fuzz_intake.py -runs=100000`` (needs atheris).

Whatever the bytes of a file, reading it ends in a pool or in one of our own errors, and each line that is not blank is
either a conversation or a rejected row with its reason.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tokenclean.pool", "json"]):
    from tokenclean.pool import load_pool

from tokenclean.errors import PoolError

SUFFIXES = (".jsonl", ".json", ".csv")
SEEDS = (
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]}\n',
    b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[]"}\n',
    b'{"instruction": "a", "input": "", "output": "b"}\n{"prompt": "a", "completion": "b"}\n{"text": "\\ud800"}\n',
    b'[{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},\n {"text": "a"}]',
    b'instruction,output\na,"b\nc"\n',
)


def read_file(data: bytes) -> None:
    """One input: the first byte chooses the kind of file, the others are its content."""
    suffix = SUFFIXES[data[0] % len(SUFFIXES)] if data else SUFFIXES[0]
    content = data[1:]
    path = Path(FOLDER) / f"fuzzed{suffix}"
    path.write_bytes(content)
    try:
        pool = load_pool(path)
    except PoolError:
        return
    is_lines = suffix != ".csv" and not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    if is_lines:
        lines = sum(bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        if len(pool) + len(pool.rejected) != lines:
            raise AssertionError(f"{lines} lines gave {len(pool)} rows and {len(pool.rejected)} rejected ones")
    if not all(row.reason and row.line > 0 for row in pool.rejected):
        raise AssertionError("a rejected row lacks its line or its reason")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as FOLDER:
        corpus = Path(FOLDER) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(SEEDS):
            for kind in range(len(SUFFIXES)):
                (corpus / f"{number}-{kind}").write_bytes(bytes([kind]) + seed)
        os.environ.setdefault("PYTHONHASHSEED", "0")
        atheris.Setup([*sys.argv, str(corpus)], read_file)
        atheris.Fuzz()
