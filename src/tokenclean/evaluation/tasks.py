"""The benchmarks by name: what the harness calls their parts, which figure counts, and where local files lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper's tables, or any other task of the harness.

    ``title``: as tables head it. ``parts``: names of the harness's tasks it is made of; empty where they are found by
    ``harness_folder``. ``metric``: the figure that counts an item. ``few_shot``: solved examples before each question;
    None leaves it to the task. ``harness_folder``: of the package's ``tasks`` folder, where its tasks stand.
    ``files``: split -> file below ``evaluation.data_dir``, JSON lines with the columns of the Hub's data set;
    ``{part}`` stands for what follows the benchmark's name in the part's (a subject), ``{code}`` for that language's
    ISO 639-1 code. ``is_parallel``: the parts ask
    the same questions (in several languages), so question i of all parts is one item.
    """

    name: str
    title: str
    metric: str = "acc"
    parts: tuple[str, ...] = ()
    few_shot: int | None = 0
    harness_folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    is_parallel: bool = False

    def local_files(self, data_dir: Path, part: str) -> dict[str, Path]:
        """Split -> file of a part."""
        subject = part.removeprefix(f"{self.name}_")
        code = LANGUAGES.get(subject, "")
        return {split: data_dir / file.format(part=subject, code=code) for split, file in self.files.items()}


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
"""Those of TyDi QA's gold-passage task, with their ISO 639-1 codes."""

XQUAD_LANGUAGES = ("english", "arabic", "russian")

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
        Benchmark(
            "truthfulqa",
            "TruthfulQA",
            parts=("truthfulqa_mc2",),
            harness_folder="truthfulqa",
            files={"validation": "truthfulqa/validation.jsonl"},
        ),
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
            parts=tuple(f"xquad_{language}" for language in XQUAD_LANGUAGES),
            few_shot=None,
            files={"validation": "xquad/xquad.{code}.json"},
            is_parallel=True,
        ),
        Benchmark(
            "hellaswag",
            "HellaSwag",
            parts=("hellaswag",),
            harness_folder="hellaswag",
            files={"validation": "hellaswag/validation.jsonl"},
        ),
        Benchmark(
            "arc_challenge",
            "ARC-C",
            parts=("arc_challenge",),
            harness_folder="arc",
            files={"test": "arc_challenge/test.jsonl"},
        ),
        Benchmark(
            "arc_easy", "ARC-E", parts=("arc_easy",), harness_folder="arc", files={"test": "arc_easy/test.jsonl"}
        ),
        Benchmark(
            "boolq",
            "BoolQ",
            parts=("boolq",),
            harness_folder="super_glue/boolq",
            files={"validation": "boolq/validation.jsonl"},
        ),
        Benchmark("logiqa", "LogiQA", parts=("logiqa",), harness_folder="logiqa", files={"test": "logiqa/test.jsonl"}),
    )
}
"""Those of the paper's Table 1 and, beside them, XQuAD and ARC-Easy. Prompts are the harness's, but for the passage
questions of TyDi QA and XQuAD (``passages``)."""

TABLE_1 = ("mmlu", "truthfulqa", "tydiqa", "hellaswag", "arc_challenge", "boolq", "logiqa")
"""The seven benchmarks of the paper, in the order of its §6.1."""


def benchmark_named(name: str) -> Benchmark:
    """One of ``BENCHMARKS``, else the harness's task of that name with its own number of solved examples."""
    return BENCHMARKS.get(name) or Benchmark(name, name, metric="", parts=(name,), few_shot=None)
