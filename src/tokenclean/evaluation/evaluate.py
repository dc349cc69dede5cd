"""One model on one benchmark through lm-evaluation-harness: a score for every question."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tokenclean.errors import EvaluationError
from tokenclean.evaluation.harness_model import PackedLM
from tokenclean.evaluation.task_data import LoadedBenchmark, quiet_harness

SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("question", pa.int32()),
        ("score", pa.float64()),
        ("doc_hash", pa.string()),
        ("prompt_hash", pa.string()),
        ("target", pa.string()),
        ("responses", pa.string()),
    ]
)
"""A row a question: its part, its number there, its score in [0, 1], the harness's hashes of document and prompt, the
right answer, and what the model gave (JSON: log-likelihoods with is_greedy for each option, or the text)."""


@dataclass(frozen=True)
class Evaluation:
    """``questions``: a table of ``SCHEMA``; ``versions``: part -> the task's version; ``requested_tokens`` and
    ``computed_tokens``: of log-likelihoods."""

    questions: pa.Table
    versions: Mapping[str, Any]
    requested_tokens: int
    computed_tokens: int


def evaluate(lm: PackedLM, loaded: LoadedBenchmark, *, few_shot_seed: int = 1234) -> Evaluation:
    """Ask the model every question that ``loaded`` holds, in the harness's own prompts, and keep each answer.

    ``few_shot_seed``: of the harness's choice of solved examples, for tasks that draw them (its default). Raises
    EvaluationError where a question has no such figure as the benchmark counts.
    """
    from lm_eval.evaluator import evaluate as ask

    before = lm.requested_tokens, lm.computed_tokens
    for task in loaded.tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(seed=few_shot_seed)
    with quiet_harness():
        found: Any = ask(
            lm,
            {"tasks": dict(loaded.tasks), "groups": {}, "group_map": {}},
            samples={part: list(range(count)) for part, count in loaded.items.items()},
            bootstrap_iters=0,
        )
    rows = []
    for part in loaded.tasks:
        for told in sorted(found["samples"][part], key=lambda sample: sample["doc_id"]):
            metric = loaded.benchmark.metric or told["metrics"][0]
            if metric not in told:
                raise EvaluationError(f"{part}: expected the figure {metric}, found {', '.join(told['metrics'])}")
            rows.append(
                {
                    "part": part,
                    "question": told["doc_id"],
                    "score": float(told[metric]),
                    "doc_hash": told["doc_hash"],
                    "prompt_hash": told["prompt_hash"],
                    "target": str(told["target"]),
                    "responses": json.dumps(told["filtered_resps"], ensure_ascii=False, default=float),
                }
            )
    return Evaluation(
        pa.Table.from_pylist(rows, SCHEMA),
        {part: found["versions"].get(part) for part in loaded.tasks},
        lm.requested_tokens - before[0],
        lm.computed_tokens - before[1],
    )


def harness_version() -> str:
    """Of the installed lm-eval."""
    return importlib.metadata.version("lm_eval")


def item_scores(questions: pa.Table, loaded: LoadedBenchmark) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of independent items, float64 (I,), and the part of each where there are several, else None.

    Where the parts ask the same questions, an item is a question: the mean over the parts of those that all of them
    were asked.
    """
    parts = np.array(questions["part"].to_pylist())
    scores = questions["score"].to_numpy()
    if not loaded.benchmark.is_parallel:
        return scores, parts if len(loaded.tasks) > 1 else None
    count = min(loaded.items.values())
    return np.mean([scores[parts == part][:count] for part in loaded.tasks], axis=0), None
