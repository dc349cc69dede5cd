"""The benchmarks by name: the harness's tasks they consist of, the metric that counts, and their local files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper's tables, or any other task of the harness.

    ``title``: its heading in tables. ``parts``: names of the harness's tasks it consists of; empty where they are all
    those of ``harness_folder``. ``metric``: the score of an item. ``few_shot``: number of solved examples before each
    question; None leaves it to the task. ``harness_folder``: where its tasks are in the harness's ``tasks`` folder.
    ``files``: split -> file below ``evaluation.data_dir``, JSON lines with the columns of the Hub's data set. In it,
    ``{part}`` is what follows the benchmark's name in the name of the part (a subject), ``{code}`` the ISO 639-1 code
    of that language. ``is_parallel``: the parts ask the same questions (in several languages), so that question i of
    all parts is one item.
    """

    name: str
    title: str
    metric: str = "acc"
    parts: tuple[str, ...] = ()
    few_shot: int | None = 0
    harness_folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    is_parallel: bool = False

    def local_files(self, data_dir: Path, part: str) -> dict[str, str]:
        """Split -> file of one part."""
        subject = part.removeprefix(f"{self.name}_")
        code = LANGUAGES.get(subject, "")
        return {split: str(data_dir / file.format(part=subject, code=code)) for split, file in self.files.items()}


LANGUAGES = {
    "arabic": "ar",
    "bengali": "bn",
    "english": "en",
    "finnish": "fi",
    "indonesian": "id",
    "korean": "ko",
    "russian": "ru",
    "swahili": "sw",
    "telugu": "te",
}
"""Languages of TyDi QA's gold-passage task, with their ISO 639-1 codes."""


def _single(name: str, title: str, split: str, *, part: str = "", folder: str = "") -> Benchmark:
    """A benchmark that is one task of the harness, with one local file. ``part`` and ``folder`` default to the name."""
    files = {split: f"{name}/{split}.jsonl"}
    return Benchmark(name, title, parts=(part or name,), harness_folder=folder or name, files=files)


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "mmlu",
            "MMLU",
            few_shot=5,
            harness_folder="mmlu/default",
            files={"dev": "mmlu/{part}/dev.jsonl", "test": "mmlu/{part}/test.jsonl"},
        ),
        _single("truthfulqa", "TruthfulQA", "validation", part="truthfulqa_mc2"),
        Benchmark(
            "tydiqa",
            "TyDiQA",
            metric="f1",
            parts=tuple(f"tydiqa_{language}" for language in LANGUAGES),
            few_shot=None,
            files={"train": "tydiqa/train.jsonl", "validation": "tydiqa/validation.jsonl"},
        ),
        Benchmark(
            "xquad",
            "XQuAD",
            metric="f1",
            parts=("xquad_english", "xquad_arabic", "xquad_russian"),
            few_shot=None,
            files={"validation": "xquad/xquad.{code}.json"},
            is_parallel=True,
        ),
        _single("hellaswag", "HellaSwag", "validation"),
        _single("arc_challenge", "ARC-C", "test", folder="arc"),
        _single("arc_easy", "ARC-E", "test", folder="arc"),
        _single("boolq", "BoolQ", "validation", folder="super_glue/boolq"),
        _single("logiqa", "LogiQA", "test"),
        replace(_single("e2e_slots", "E2E slots", "test"), metric="slots"),
        replace(_single("chrf", "chrF", "test"), metric="chrf"),
        _single("choice", "Choice", "test"),
    )
}
"""Benchmarks of the paper's Table 1, XQuAD and ARC-Easy, and the tasks of ``answer_tasks``, which have no data on the
Hub. Prompts are the harness's, except for those of ``answer_tasks`` and the questions on passages of TyDi QA and XQuAD
(``extractive_qa``)."""


def benchmark_named(name: str) -> Benchmark:
    """One of ``BENCHMARKS``, or the harness's task of that name with its own number of solved examples."""
    return BENCHMARKS.get(name) or Benchmark(name, name, metric="", parts=(name,), few_shot=None)
