"""Every answer of a server or rater on disk as soon as it arrives, so that what was stopped asks nothing twice."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from tokenclean.errors import RunFolderError
from tokenclean.store import explained_refusals
from tokenclean.store.lock import RunLock

logger = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"

Answers = dict[tuple[str, int], str]
"""Text of each answer by the hash of its question (model, prompt, sampling) and its attempt, from 1."""

_HEADER = b'{"holds": "answers of raters", "version": 1}\n'


class AnswerCache:
    """The answers of a folder, as ``open_cache`` yields them. ``answers``: all of them, new ones included."""

    def __init__(self, folder: Path, answers: Answers, file: FileIO) -> None:
        self.folder, self.answers = folder, answers
        self._file = file

    def add(self, question: str, attempt: int, answer: str, **facts: str | int) -> None:
        """Keep an answer, and ``facts`` beside it; the operating system has it before this returns.

        Raises RunFolderError where the disk refuses.
        """
        line = {"question": question, "attempt": attempt, "answer": answer, **facts}
        self.write(json.dumps(line).encode() + b"\n")  # ASCII: an answer may hold anything, even lone surrogates
        self.answers[question, attempt] = answer

    def write(self, line: bytes) -> None:
        """Append a line to the file."""
        with explained_refusals(f"cannot write {self.folder}"):
            while line:  # a disk that is nearly full takes only a part
                line = line[self._file.write(line) :]


@contextmanager
def open_cache(folder: Path | str) -> Iterator[AnswerCache]:
    """The cache in a folder, created where there is none; one process at a time holds it.

    A last line that a killed process left unfinished is removed. Raises RunFolderError where the folder is in use or
    cannot be written, or its file is not a cache.
    """
    folder = Path(folder)
    with explained_refusals(f"cannot write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder, logger.warning).hold():
        answers = read_answers(folder)
        with explained_refusals(f"cannot write {folder}"):
            _finish_last_line(folder / ANSWERS)
            file = FileIO(folder / ANSWERS, "ab")  # unbuffered: what is written outlives the process
        with file:
            cache = AnswerCache(folder, answers, file)
            if file.seek(0, os.SEEK_END) == 0:
                cache.write(_HEADER)
            yield cache
            os.fsync(file.fileno())


def read_answers(folder: Path | str) -> Answers:
    """The answers in a folder, none where it holds no cache; nothing is written.

    Raises RunFolderError where the file is something else or cannot be read. A broken line is skipped with a warning:
    its question is asked again.
    """
    path = Path(folder) / ANSWERS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not content.startswith(_HEADER) and not _HEADER.startswith(content):  # the latter: killed at the first line
        raise RunFolderError(f"{path}: not a cache of answers, or one of another version; name another output")
    lines = content.splitlines()
    answers: Answers = {}
    broken: list[int] = []
    for number, line in enumerate(lines[1:], start=2):
        record = _parse(line) or {}
        question, attempt, answer = (record.get(key) for key in ("question", "attempt", "answer"))
        if isinstance(question, str) and isinstance(attempt, int) and isinstance(answer, str):
            answers[question, attempt] = answer
        elif number < len(lines):  # the last one may be unfinished
            broken.append(number)
    if broken:
        logger.warning("%s: %d lines hold no answer and are skipped, the first is %d", path, len(broken), broken[0])
    return answers


def _finish_last_line(path: Path) -> None:
    """Remove a last line that was written in part; complete one that lacks only its line break."""
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    if _parse(content[end:]) is None:
        os.truncate(path, end)
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def _parse(content: bytes) -> dict[str, object] | None:
    with suppress(ValueError, RecursionError):
        value = json.loads(content)
        return value if isinstance(value, dict) else None
    return None
