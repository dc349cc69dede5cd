"""Every answer of a rater on disk as it comes, so that a stopped rating goes on and nothing is asked twice."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from tokenclean.errors import RunFolderError
from tokenclean.store import disk_refusal
from tokenclean.store.lock import RunLock

logger = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"

Answers = dict[tuple[str, int], str]
"""The text of each answer by the hash of its question (rater, prompt, sampling) and its attempt, from 1."""

_HEADER = b'{"holds": "answers of raters", "version": 1}\n'


class AnswerCache:
    """The answers of a folder, as ``open_cache`` gives them. ``answers``: those there are, new ones included."""

    def __init__(self, folder: Path, answers: Answers, file: FileIO) -> None:
        self.folder, self.answers = folder, answers
        self._file = file

    def add(self, question: str, attempt: int, answer: str, **facts: Any) -> None:
        """Keep an answer, handed to the operating system before this returns; ``facts`` (JSON-able) stand beside it.

        Raises RunFolderError where the disk refuses.
        """
        line = {"question": question, "attempt": attempt, "answer": answer, **facts}
        # ASCII: an answer may hold anything, lone surrogates too.
        _write(self.folder, self._file, json.dumps(line).encode() + b"\n")
        self.answers[question, attempt] = answer


@contextmanager
def open_cache(folder: Path | str) -> Iterator[AnswerCache]:
    """The cache in a folder, which is made where there is none; one process at a time holds it.

    A last line that a killed process left unfinished is taken off. Raises RunFolderError where the folder is in use,
    cannot be written, or its file is no cache.
    """
    folder = Path(folder)
    path = folder / ANSWERS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error
    lock = RunLock(folder, logger.warning)
    lock.acquire()
    try:
        answers = read_answers(folder)
        with _open(path) as file:
            if file.tell() == 0:
                _write(folder, file, _HEADER)
            yield AnswerCache(folder, answers, file)
            os.fsync(file.fileno())
    finally:
        lock.release()


def read_answers(folder: Path | str) -> Answers:
    """The answers in a folder, none where it holds no cache; nothing is written.

    Raises RunFolderError where the file is something else or cannot be read. A broken line is passed over with a
    warning: its question is asked again.
    """
    path = Path(folder) / ANSWERS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not content.startswith(_HEADER) and not _HEADER.startswith(content):  # its beginning: killed at the first line
        raise RunFolderError(f"{path}: is no cache of answers, or of another version; name another output")
    lines = content.splitlines()
    answers: Answers = {}
    broken: list[int] = []
    for number, line in enumerate(lines[1:], start=2):
        record = _parse(line) or {}
        question, attempt, answer = (record.get(key) for key in ("question", "attempt", "answer"))
        if isinstance(question, str) and isinstance(attempt, int) and isinstance(answer, str):
            answers[question, attempt] = answer
        elif number < len(lines):  # the last one may be torn
            broken.append(number)
    if broken:
        logger.warning("%s: %d lines hold no answer and are passed over, the first is %d", path, len(broken), broken[0])
    return answers


def _open(path: Path) -> FileIO:
    """The file to append to, its end mended; unbuffered, so that what is written outlives the process."""
    try:
        _mend_end(path)
        file = FileIO(path, "ab")
        file.seek(0, os.SEEK_END)
    except OSError as error:
        raise _refused(path.parent, error) from error
    return file


def _mend_end(path: Path) -> None:
    """Let the file end with a whole line."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    if _parse(content[end:]) is None:
        os.truncate(path, end)
    else:  # only the line's end is missing
        with path.open("ab") as file:
            file.write(b"\n")


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _write(folder: Path, file: FileIO, line: bytes) -> None:
    try:
        while line:  # a disk that is nearly full takes a part
            line = line[file.write(line) :]
    except OSError as error:
        raise _refused(folder, error) from error


def _refused(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"cannot write {folder}: {disk_refusal(error) or error.strerror or error}")
