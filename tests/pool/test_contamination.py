from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.errors import PoolError
from tokenclean.pool import Conversation, LabelledTokens, Turn, contamination
from tokenclean.recipe.pool_settings import ContaminationSettings

PASSAGE = " ".join(f"word{number}" for number in range(20))


def find_contamination(rows: list[Conversation], folder: Path, **lengths: int) -> contamination.Contamination:
    settings = ContaminationSettings.model_validate({"data_dir": str(folder), **lengths})
    return contamination.find_contamination(rows, settings)


def row_of(*texts: str) -> Conversation:
    turns = tuple(Turn("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts))
    return Conversation("x", "s", turns)


def write(folder: Path, name: str, *values: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(values[0], ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return folder


def test_a_row_that_shares_thirteen_words_is_found_with_file_and_ngram(tmp_path):
    folder = write(tmp_path, "boolq/validation.jsonl", {"question": "is it so", "passage": PASSAGE, "answer": True})
    words = PASSAGE.split()
    rows = [
        row_of("Sum up.", "It says: " + ", ".join(words[3:16]).upper() + "!"),
        row_of("Sum up.", " ".join(words[3:15])),  # twelve
        row_of(" ".join(words[3:10]), " ".join(words[10:17])),  # over two turns
        row_of("Nothing.", "Nothing at all."),
    ]
    found = find_contamination(rows, folder)
    [overlap] = found.overlaps
    assert (overlap.row, overlap.benchmark, overlap.file) == (0, "boolq", "boolq/validation.jsonl")
    assert (overlap.ngram, overlap.count) == (" ".join(words[3:16]), 1)
    [benchmark] = found.benchmarks
    assert (benchmark.benchmark, benchmark.texts, benchmark.short) == ("boolq", 1, 1)
    assert (benchmark.found, benchmark.rows) == (1, 1)
    assert (benchmark.commonest, benchmark.commonest_rows) == (overlap.ngram, 1)
    assert found.unchecked == 0


def test_a_shorter_text_is_found_where_a_row_holds_it_whole(tmp_path):
    question = "what happens if you eat nine pomegranate seeds"
    folder = write(tmp_path, "truthfulqa.jsonl", {"question": question, "choices": ["nothing much happens then"]})
    rows = [row_of(f"Tell me: {question}?", "Nothing."), row_of(question[:-6], "Nothing much happens then.")]
    found = find_contamination(rows, folder)
    assert [(o.row, o.benchmark, o.ngram) for o in found.overlaps] == [(0, "truthfulqa", question)]
    assert (found.benchmarks[0].texts, found.benchmarks[0].short) == (1, 1)
    assert find_contamination(rows, folder, minimum_words=9).overlaps == ()
    assert find_contamination(rows, folder, minimum_words=40, ngram=3).benchmarks[0].rows == 2  # 40 counts as 3


def test_every_string_of_every_json_file_is_a_text(tmp_path):
    write(tmp_path, "xquad/xquad.en.json", {"data": [{"paragraphs": [{"context": PASSAGE, "qas": [{"id": "1"}]}]}]})
    write(tmp_path, "mmlu/anatomy/test.jsonl", {"choices": ["x", PASSAGE.replace("word", "bone")], "answer": 1})
    packed = tmp_path / "arc" / "test.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(json.dumps({"a": {"b": [PASSAGE.replace("word", "arc")]}}).encode() + b"\n\n"))
    (tmp_path / "arc" / "README.md").write_text(PASSAGE)
    rows = [row_of("?", PASSAGE.replace("word", stem)) for stem in ("word", "bone", "arc", "other")]
    found = find_contamination(rows, tmp_path)
    assert [(o.row, o.benchmark, o.file) for o in found.overlaps] == [
        (0, "xquad", "xquad/xquad.en.json"),
        (1, "mmlu", "mmlu/anatomy/test.jsonl"),
        (2, "arc", "arc/test.jsonl.gz"),
    ]
    assert [(b.benchmark, b.texts, b.short, b.found, b.rows) for b in found.benchmarks] == [
        ("arc", 1, 0, 1, 1),
        ("mmlu", 1, 1, 1, 1),
        ("xquad", 1, 1, 1, 1),
    ]
    assert all(o.count == 8 for o in found.overlaps)


def test_a_row_may_overlap_with_several_benchmarks_and_files(tmp_path):
    write(tmp_path, "b/2.jsonl", {"t": PASSAGE})
    write(tmp_path, "b/1.jsonl", {"t": PASSAGE}, {"t": PASSAGE})
    write(tmp_path, "a/1.jsonl", {"t": " ".join(PASSAGE.split()[5:])})
    found = find_contamination([row_of("?", PASSAGE), row_of("?", "No.")], tmp_path)
    assert [(o.row, o.file, o.count) for o in found.overlaps] == [(0, "b/1.jsonl", 8), (0, "a/1.jsonl", 3)]
    assert found.overlaps[0].ngram == " ".join(PASSAGE.split()[:13])
    assert [(b.benchmark, b.texts, b.found) for b in found.benchmarks] == [("a", 1, 1), ("b", 2, 2)]


def test_characters_are_words_where_no_spaces_are_set(tmp_path):
    text = "北京是中华人民共和国的首都和直辖市。"
    folder = write(tmp_path, "cn.jsonl", {"t": text})
    rows = [row_of("?", "答：" + text[:13]), row_of("?", text[:12])]
    assert [o.row for o in find_contamination(rows, folder).overlaps] == [0]


def test_tokenized_rows_are_counted_as_not_compared(tmp_path):
    labelled = LabelledTokens(np.array([1, 2]), np.array([False, True]))
    rows = [Conversation("t", "s", (), "tokens", tokens=labelled), row_of("?", PASSAGE)]
    found = find_contamination(rows, write(tmp_path, "a.jsonl", {"t": PASSAGE}))
    assert ([o.row for o in found.overlaps], found.unchecked) == ([1], 1)


def test_the_commonest_ngram_is_told_with_its_rows(tmp_path):
    folder = write(tmp_path, "a.jsonl", {"t": PASSAGE})
    words = PASSAGE.split()
    rows = [row_of("?", " ".join(words[start:])) for start in (0, 2, 2)]
    [benchmark] = find_contamination(rows, folder).benchmarks
    assert (benchmark.commonest, benchmark.commonest_rows) == (" ".join(words[2:15]), 2)


def test_a_folder_that_is_none_or_empty_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(PoolError, match=r"data_dir: .*none is not a folder"):
        find_contamination([], tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PoolError, match="holds no benchmark file"):
        find_contamination([], tmp_path / "empty")
    write(tmp_path, "ok/a.jsonl", {"t": "x"})
    (tmp_path / "ok" / "b.jsonl").write_text('{"t": "x"}\n{"t": \n')
    with pytest.raises(PoolError, match=r"b\.jsonl:2: is not JSON in UTF-8"):
        find_contamination([], tmp_path / "ok")


TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=7).map(" ".join), max_size=4)


def holds(row: list[str], text: list[str], n: int, minimum: int) -> bool:
    """By the definition, with lists of words."""
    if len(text) >= n:
        return any(row[i : i + n] == text[k : k + n] for i in range(len(row) - n + 1) for k in range(len(text) - n + 1))
    size = len(text)
    return size >= minimum and any(row[i : i + size] == text for i in range(len(row) - size + 1))


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(TEXTS.filter(bool), max_size=4),
    benchmarks=st.dictionaries(st.sampled_from("xyz"), TEXTS, min_size=1),
    n=st.integers(1, 4),
    minimum=st.integers(1, 4),
)
def test_rows_and_texts_found_are_those_of_the_definition(rows, benchmarks, n, minimum, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    for name, texts in benchmarks.items():
        write(folder, f"{name}/t.jsonl", *({"t": text} for text in texts))
        if not texts:
            (folder / name / "t.jsonl").write_text("\n")
    found = find_contamination([row_of(*texts) for texts in rows], folder, ngram=n, minimum_words=minimum)
    minimum = min(minimum, n)

    def overlaps(texts: list[str], other: str) -> bool:
        return any(holds(text.split(), other.split(), n, minimum) for text in texts)

    expected = {
        (number, name)
        for number, texts in enumerate(rows)
        for name, others in benchmarks.items()
        if any(overlaps(texts, other) for other in others)
    }
    assert {(o.row, o.benchmark) for o in found.overlaps} == expected
    assert len(found.overlaps) == len(expected)
    for benchmark in found.benchmarks:
        texts = set(benchmarks[benchmark.benchmark])
        long = {text for text in texts if len(text.split()) >= minimum}
        assert (benchmark.texts, benchmark.short) == (len(long), len(texts - long))
        assert benchmark.found == sum(any(overlaps(row, text) for row in rows) for text in long)
        assert benchmark.rows == sum(name == benchmark.benchmark for _, name in expected)
