"""Models of an experiment on benchmarks: a stage for each model and benchmark, so none is asked twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import OpenRun
from tokenclean.evaluation.paired_scores import ItemScores
from tokenclean.evaluation.task_data import LoadedBenchmark

QUESTIONS = "questions.parquet"


@dataclass(frozen=True)
class BenchmarkScores:
    """A model on a benchmark. ``scores``: float64, a number an item; ``groups``: the part of each item, where there are
    several; ``questions``: every answer (``evaluation.harness.SCHEMA``); ``manifest``: what was counted."""

    scores: np.ndarray
    groups: np.ndarray | None
    questions: pa.Table
    manifest: Mapping[str, Any]


def benchmark_scores(
    opened: OpenRun, model: Model, benchmarks: Sequence[LoadedBenchmark]
) -> dict[str, BenchmarkScores]:
    """The model's scores by benchmark, found or made."""
    return {loaded.benchmark.name: _scores(opened, model, loaded) for loaded in benchmarks}


def gather_scores(lines: Mapping[str, Mapping[int, Mapping[str, BenchmarkScores]]]) -> ItemScores:
    """Scores for a comparison: ``lines[line of the table][seed][benchmark]``."""
    scores = {
        line: {seed: {name: found.scores for name, found in tasks.items()} for seed, tasks in seeds.items()}
        for line, seeds in lines.items()
    }
    first = next(iter(next(iter(lines.values())).values()))
    return ItemScores(scores, {name: found.groups for name, found in first.items() if found.groups is not None})


def identities(benchmarks: Sequence[LoadedBenchmark]) -> dict[str, list[str]]:
    """What is asked, by benchmark, for the inputs of a stage."""
    return {loaded.benchmark.name: [loaded.part_identity(part) for part in loaded.tasks] for loaded in benchmarks}


def _scores(opened: OpenRun, model: Model, loaded: LoadedBenchmark) -> BenchmarkScores:
    """The model's answers to the benchmark's questions, found or made."""
    from tokenclean.evaluation.harness import PackedLM, evaluate, harness_version, item_scores

    scoring, name = opened.context.recipe.scoring, loaded.benchmark.name
    inputs = {
        "model": model.identity,
        "benchmark": name,
        "parts": {part: [loaded.part_identity(part), count] for part, count in loaded.items.items()},
        "few_shot": loaded.benchmark.few_shot,
        "harness": harness_version(),
        "precision": scoring.precision,
        "pack_tokens": scoring.pack_tokens,
        "device": opened.device.partition(":")[0],
    }

    def make(folder: Path) -> dict[str, object]:
        opened.observer.note(f"{loaded.benchmark.title} with {model.name}: {sum(loaded.items.values()):,} questions")
        with opened.models.using(model.weights_source) as module:
            lm = PackedLM(
                module,
                opened.context.data.tokenizer,
                precision=scoring.precision,
                pack_tokens=scoring.pack_tokens,
                progress=opened.observer.progress(f"{loaded.benchmark.title} with {model.name}", "token"),
            )
            found = evaluate(lm, loaded)
        pq.write_table(found.questions, folder / QUESTIONS, compression="zstd")
        return {
            "what": f"{name} with {model.name}",
            "versions": dict(found.versions),
            "harness": harness_version(),
            "requested_tokens": found.requested_tokens,
            "computed_tokens": found.computed_tokens,
        }

    stage = opened.stages.stage("evaluation", inputs, make)
    questions = pq.read_table(stage.path / QUESTIONS)
    scores, groups = item_scores(questions, loaded)
    return BenchmarkScores(scores, groups, questions, stage.manifest["results"])
