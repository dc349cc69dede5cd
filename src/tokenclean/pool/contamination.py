"""Rows of a pool that hold text of a benchmark: overlap of word n-grams (Brown et al. 2020, appendix C).

Every text in a benchmark's files is compared: all strings of a JSON object, however deep, each on its own. A text of n
words or more is found in a row that shares n consecutive words with it; a shorter one of at least ``minimum_words``
words in a row that holds all of it; one shorter still says too little and is only counted. Rows are compared turn by
turn.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from tokenclean.errors import PoolError
from tokenclean.pool.conversation import Conversation
from tokenclean.pool.reading.text_files import TextLines, split_name
from tokenclean.pool.word_ngrams import WordHashes, ngram_hashes, texts_of, words_of
from tokenclean.ragged import Ragged
from tokenclean.recipe.pool_settings import ContaminationSettings

_SUFFIXES = (".jsonl", ".ndjson", ".json")
_BLOCK = 2048  # texts or rows hashed together


@dataclass(frozen=True)
class Overlap:
    """Row ``row`` (number in the pool; ``id``, ``source``: of its conversation) holds text of a benchmark.

    ``file``: of the benchmark, relative to the folder, the first that holds the n-gram. ``ngram``: the first n-gram of
    the row that the benchmark holds, its folded words joined by spaces. ``count``: how many of the row's it holds.
    """

    row: int
    id: str
    source: str
    benchmark: str
    file: str
    ngram: str
    count: int


@dataclass(frozen=True)
class BenchmarkOverlap:
    """What a benchmark shares with a pool.

    ``texts``: distinct texts of each file that could be compared; ``short``: those too short for it; ``found``: texts
    found in some row; ``rows``: rows of the pool that hold some text; ``commonest``: the n-gram that is the first in
    most of these rows, and ``commonest_rows`` their number.
    """

    benchmark: str
    texts: int
    short: int
    found: int
    rows: int
    commonest: str = ""
    commonest_rows: int = 0


@dataclass(frozen=True)
class Contamination:
    """``overlaps``: one a row and benchmark, by row and then by where in the row. ``benchmarks``: by name.
    ``unchecked``: rows that came tokenized and so have no words."""

    overlaps: tuple[Overlap, ...]
    benchmarks: tuple[BenchmarkOverlap, ...]
    unchecked: int


@dataclass(frozen=True, eq=False)
class BenchmarkTexts:
    """The texts of the benchmarks as n-gram hashes.

    ``files``: relative to the folder; ``benchmarks``: name of each file's benchmark. ``file_of_text``: int64 (X,).
    ``hashes``: length n -> hashes of n-grams (uint64, ascending, repeated where several texts hold it); ``texts``: n ->
    text of each, int64. ``short``: benchmark -> texts left out as too short. ``is_found``: bool (X,), set for the texts
    that some row holds.
    """

    files: tuple[str, ...]
    benchmarks: tuple[str, ...]
    file_of_text: np.ndarray
    hashes: dict[int, np.ndarray]
    texts: dict[int, np.ndarray]
    short: Counter[str]
    is_found: np.ndarray


def find_contamination(conversations: Sequence[Conversation], settings: ContaminationSettings) -> Contamination:
    """Compare every row with the benchmarks in ``settings.data_dir`` (see the module's text).

    Files are JSON lines or JSON (SQuAD's nested form too), also ``.gz`` and ``.zst``, at any depth. A benchmark is
    named after the first folder of its files' paths, or after the file where that is directly in the folder.
    ``minimum_words`` above ``ngram`` counts as ``ngram``. Raises PoolError where the folder does not exist, holds no
    such file, or a file is not JSON.
    """
    words = WordHashes()
    texts = _read_benchmarks(Path(settings.data_dir or "").expanduser(), words, settings)
    overlaps: list[Overlap] = []
    for start in range(0, len(conversations), _BLOCK):
        block = conversations[start : start + _BLOCK]
        said = [(start + row, text) for row, conversation in enumerate(block) for text in texts_of(conversation)]
        split = [words_of(text) for _, text in said]
        hits = _find_hits(words.of_texts(split), texts)
        for row, hits_of_row in groupby(hits, key=lambda hit: said[hit[0]][0]):
            overlaps += _describe_row(row, conversations[row], hits_of_row, split, texts)
    unchecked = sum(conversation.tokens is not None for conversation in conversations)
    return Contamination(tuple(overlaps), _count_benchmarks(overlaps, texts), unchecked)


def _read_benchmarks(folder: Path, words: WordHashes, settings: ContaminationSettings) -> BenchmarkTexts:
    """Hash the texts of all benchmark files; each distinct text of a file once. Raises as ``find_contamination``."""
    paths, ngram = _find_files(folder), settings.ngram
    minimum_words = min(settings.minimum_words, ngram)
    short: Counter[str] = Counter()
    file_of_text: list[int] = []
    nothing = np.empty(0, np.uint64), np.empty(0, np.int64)  # n-grams, and the texts that hold them
    parts: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {n: [nothing] for n in range(minimum_words, ngram + 1)}
    names = [_benchmark_of(path, folder) for path in paths]
    for number, path in enumerate(paths):
        texts = iter(dict.fromkeys(text for value in _read_values(path) for text in _strings_in(value)))
        while block := list(islice(texts, _BLOCK)):
            split = [words_of(text) for text in block]
            long = [text for text in split if len(text) >= minimum_words]
            short[names[number]] += len(split) - len(long)
            first = len(file_of_text)
            file_of_text += [number] * len(long)
            hashed = words.of_texts(long)
            for n, part in parts.items():
                of_length = np.arange(len(long)) if n == ngram else np.flatnonzero(hashed.lengths == n)
                runs = ngram_hashes(hashed.take(of_length), n)
                part.append((runs.values, first + of_length[runs.row_of_value()]))
    hashes: dict[int, np.ndarray] = {}
    texts_of_hashes: dict[int, np.ndarray] = {}
    for n, part in parts.items():
        values, owners = map(np.concatenate, zip(*part, strict=True))
        order = np.lexsort((owners, values))
        hashes[n], texts_of_hashes[n] = values[order], owners[order]
    files = tuple(path.relative_to(folder).as_posix() for path in paths)
    owners, is_found = np.array(file_of_text, dtype=np.int64), np.zeros(len(file_of_text), dtype=bool)
    return BenchmarkTexts(files, tuple(names), owners, hashes, texts_of_hashes, short, is_found)


# Number of the text among those of the block, position of its first word, length; then the first place among the
# benchmarks' hashes of that length, and the place after the last.
_Hit = tuple[int, int, int, int, int]


def _find_hits(words: Ragged, texts: BenchmarkTexts) -> list[_Hit]:
    """N-grams that some benchmark holds, in the order of texts and positions."""
    found: list[_Hit] = []
    for n, hashes in texts.hashes.items():
        if not len(hashes):
            continue
        runs = ngram_hashes(words, n)
        first = np.searchsorted(hashes, runs.values, side="left")
        places = np.flatnonzero(hashes[np.minimum(first, len(hashes) - 1)] == runs.values)
        last = np.searchsorted(hashes, runs.values[places], side="right")
        rows = np.searchsorted(runs.offsets, places, side="right") - 1
        positions = places - runs.offsets[rows]
        columns = (rows, positions, np.full(len(places), n), first[places], last)
        found += zip(*(column.tolist() for column in columns), strict=True)
    return sorted(found)


def _describe_row(
    row: int, conversation: Conversation, hits: Iterable[_Hit], split: Sequence[Sequence[str]], texts: BenchmarkTexts
) -> list[Overlap]:
    """One overlap a benchmark, in the order of their first n-grams in the row; marks the texts found."""
    counts: Counter[str] = Counter()
    first: dict[str, tuple[str, str]] = {}
    for text, position, n, start, end in hits:
        owners = texts.texts[n][start:end]
        texts.is_found[owners] = True
        files = np.unique(texts.file_of_text[owners]).tolist()
        for name in dict.fromkeys(texts.benchmarks[file] for file in files):
            counts[name] += 1
            if name not in first:
                file = next(texts.files[file] for file in files if texts.benchmarks[file] == name)
                first[name] = file, " ".join(split[text][position : position + n])
    id, source = conversation.id, conversation.source
    return [Overlap(row, id, source, name, file, ngram, counts[name]) for name, (file, ngram) in first.items()]


def _count_benchmarks(overlaps: Sequence[Overlap], texts: BenchmarkTexts) -> tuple[BenchmarkOverlap, ...]:
    names = np.array(texts.benchmarks, dtype=object)[texts.file_of_text]
    compared, found = Counter(names.tolist()), Counter(names[texts.is_found].tolist())
    ngrams: dict[str, Counter[str]] = {}
    for overlap in overlaps:
        ngrams.setdefault(overlap.benchmark, Counter())[overlap.ngram] += 1
    counted = []
    for name in sorted(set(texts.benchmarks)):
        of_name = ngrams.get(name, Counter())
        # The most rows; among equals the first in the alphabet.
        commonest, rows = min(of_name.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
        counts = compared[name], texts.short[name], found[name], of_name.total()
        counted.append(BenchmarkOverlap(name, *counts, commonest, rows))
    return tuple(counted)


def _find_files(folder: Path) -> list[Path]:
    place = f"pool.filters.contamination.data_dir: {folder}"
    if not folder.is_dir():
        raise PoolError(f"{place} is not a folder; expected one with benchmarks' files, as mmlu/anatomy/test.jsonl")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and split_name(path)[0] in _SUFFIXES)
    if not paths:
        endings = ", ".join(_SUFFIXES)
        raise PoolError(f"{place} holds no benchmark file; expected names that end in {endings} (also .gz, .zst)")
    return paths


def _benchmark_of(path: Path, folder: Path) -> str:
    inner = path.relative_to(folder)
    return inner.parts[0] if len(inner.parts) > 1 else inner.name.partition(".")[0]


def _read_values(path: Path) -> Iterator[object]:
    """The JSON values of a file: of JSON lines one a line, else the one that fills the file."""
    is_one = split_name(path)[0] == ".json"
    lines = TextLines(path)
    for number, content in enumerate([b"".join(lines)] if is_one else lines, start=1):
        try:
            if is_one or content.strip():
                yield json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            place, reason = path if is_one else f"{path}:{number}", " ".join(str(error).split())
            raise PoolError(
                f"{place}: is not JSON in UTF-8 ({reason}); expected JSON lines where the name ends in .jsonl and one "
                "JSON value where it ends in .json; correct the file or take it out of the folder"
            ) from error


def _strings_in(value: object) -> Iterator[str]:
    """All strings of a JSON value except keys."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending += reversed(value.values())
        elif isinstance(value, list):
            pending += reversed(value)
