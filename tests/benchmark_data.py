"""Made-up questions of every benchmark, in the layout of ``evaluation.data_dir``."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORDS = ("river", "stone", "cloud", "market", "engine", "winter", "paper", "garden", "signal", "copper", "bridge")


def write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_benchmarks(folder: Path) -> Path:
    """Three to six questions a part of a benchmark, into an empty folder."""
    from tokenclean.evaluation.task_data import parts_of
    from tokenclean.evaluation.tasks import LANGUAGES, benchmark_named

    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(words))

    for part in parts_of(benchmark_named("mmlu")):
        for split, count in (("dev", 5), ("test", 3)):
            rows = [
                {"question": text(9), "subject": part, "choices": [text(2) for _ in range(4)], "answer": n % 4}
                for n in range(count)
            ]
            write_lines(folder / "mmlu" / part.removeprefix("mmlu_") / f"{split}.jsonl", rows)
    write_lines(
        folder / "truthfulqa/validation.jsonl",
        [
            {
                "question": text(8),
                "mc1_targets": {"choices": [text(4) for _ in range(3)], "labels": [1, 0, 0]},
                "mc2_targets": {"choices": [text(5) for _ in range(4)], "labels": [1, 1, 0, 0]},
            }
            for _ in range(6)
        ],
    )
    write_lines(
        folder / "hellaswag/validation.jsonl",
        [
            {
                "ind": n,
                "activity_label": text(2),
                "ctx": text(8),
                "ctx_a": text(8),
                "ctx_b": "",
                "endings": [text(6) for _ in range(4)],
                "label": str(n % 4),
            }
            for n in range(6)
        ],
    )
    for name in ("arc_challenge", "arc_easy"):
        write_lines(
            folder / name / "test.jsonl",
            [
                {
                    "id": str(n),
                    "question": text(10),
                    "choices": {"text": [text(3) for _ in range(4)], "label": list("ABCD")},
                    "answerKey": "ABCD"[n % 4],
                }
                for n in range(6)
            ],
        )
    write_lines(
        folder / "boolq/validation.jsonl",
        [{"question": text(6), "passage": text(40), "label": n % 2} for n in range(6)],
    )
    write_lines(
        folder / "logiqa/test.jsonl",
        [
            {"label": "abcd"[n % 4], "context": text(30), "question": text(8), "options": [text(5) for _ in range(4)]}
            for n in range(6)
        ],
    )
    for language in ("english", "arabic", "russian"):
        paragraphs = [
            {
                "context": f"{n} {text(30)}",
                "qas": [{"id": str(n), "question": text(6), "answers": [{"text": text(2), "answer_start": 0}]}],
            }
            for n in range(5)
        ]
        file = folder / "xquad" / f"xquad.{LANGUAGES[language]}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}), encoding="utf-8")
    tydiqa = [
        {"id": f"{language}-{n}", "context": text(30), "question": text(6), "answers": {"text": [text(2), text(1)]}}
        for language in LANGUAGES
        for n in range(4)
    ]
    for split in ("train", "validation"):
        write_lines(folder / "tydiqa" / f"{split}.jsonl", tydiqa)
    for name in ("e2e_slots", "chrf"):
        rows = [
            {"prompt": f"Describe it. name[{n} {text(1)}], food[French]", "response": text(9), "clean": text(9)}
            for n in range(6)
        ]
        write_lines(folder / name / "test.jsonl", rows)
    rows = [{"prompt": text(9), "choices": [text(1) for _ in range(2 + n % 3)], "answer": n % 2} for n in range(6)]
    write_lines(folder / "choice" / "test.jsonl", rows)
    return folder
