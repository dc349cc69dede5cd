"""One model on one benchmark with lm-evaluation-harness: a score for every question."""

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
"""One row per question: its part, its number there, its score in [0, 1], the harness's hashes of document and prompt,
the right answer, and the model's answer (JSON: log-likelihoods with is_greedy for each option, or the text)."""


@dataclass(frozen=True)
class Evaluation:
    """``questions``: a table of ``SCHEMA``; ``versions``: part -> the task's version; ``requested_tokens`` and
    ``computed_tokens``: tokens of the log-likelihoods, and how many of these the model computed."""

    questions: pa.Table
    versions: Mapping[str, object]
    requested_tokens: int
    computed_tokens: int


def evaluate(lm: PackedLM, loaded: LoadedBenchmark, *, few_shot_seed: int = 1234) -> Evaluation:
    """Ask the model every question of ``loaded``, in the harness's own prompts, and keep each answer.

    ``few_shot_seed``: seed of the harness's choice of solved examples, for tasks that draw them (its default). Raises
    EvaluationError where a question lacks the benchmark's metric.
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
        for answer in sorted(found["samples"][part], key=lambda answer: answer["doc_id"]):
            metric = loaded.benchmark.metric or answer["metrics"][0]
            if metric not in answer:
                raise EvaluationError(f"{part}: expected the metric {metric}, found {', '.join(answer['metrics'])}")
            hashes, target = (answer["doc_hash"], answer["prompt_hash"]), str(answer["target"])
            responses = json.dumps(answer["filtered_resps"], ensure_ascii=False, default=float)
            row = (part, answer["doc_id"], float(answer[metric]), *hashes, target, responses)
            rows.append(dict(zip(SCHEMA.names, row, strict=True)))
    versions = {part: found["versions"].get(part) for part in loaded.tasks}
    tokens = (lm.requested_tokens - before[0], lm.computed_tokens - before[1])
    return Evaluation(pa.Table.from_pylist(rows, SCHEMA), versions, *tokens)


def harness_version() -> str:
    """Version of the installed lm-eval."""
    return importlib.metadata.version("lm_eval")


def item_scores(questions: pa.Table, loaded: LoadedBenchmark) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of independent items, float64 (I,), and the part of each where there are several, else None.

    Where the parts ask the same questions, an item is a question that all of them asked, and its score the mean over
    the parts.
    """
    parts = np.array(questions["part"].to_pylist())
    scores = questions["score"].to_numpy()
    if not loaded.benchmark.is_parallel:
        return scores, parts if len(loaded.tasks) > 1 else None
    count = min(loaded.items.values())
    return np.mean([scores[parts == part][:count] for part in loaded.tasks], axis=0), None
