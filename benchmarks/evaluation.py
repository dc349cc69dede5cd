"""Do benchmarks give through the packed scorer what they give through the harness's own model class, and how fast?

Each benchmark's first questions, asked twice of the same model: by ``PackedLM`` under a policy, and by the harness's
``HFLM`` in float32. Under ``exact`` log-likelihoods may differ by 1e-3 nats at most, and no answer may change; the
command fails where they do.

    python -m benchmarks.evaluation --data-dir FOLDER [--tasks A,B] [--questions N] [--model FOLDER] [--adapter FOLDER]
                                    [--precision exact|safe|fast] [--device cpu|cuda] [--batch-size N] [--json FILE]
                                    [--markdown] [--allow-busy]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks import machine
from tokenclean.cli.console import quiet_libraries
from tokenclean.evaluation.harness import Evaluation, PackedLM, evaluate
from tokenclean.evaluation.task_data import LoadedBenchmark, load_benchmarks
from tokenclean.models.loading.convert import smollm2_folder
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer
from tokenclean.recipe.settings import EvaluationSettings

TOLERANCE_NATS = 1e-3
TASKS = "mmlu,truthfulqa,hellaswag,arc_challenge,boolq,logiqa"


@dataclass(frozen=True)
class Compared:
    """A benchmark both ways: ``largest_nats`` between log-likelihoods, ``answers_changed`` questions whose score
    differs, scores, tokens and seconds."""

    name: str
    questions: int
    largest_nats: float
    answers_changed: int
    score: float
    harness_score: float
    requested_tokens: int
    computed_tokens: int
    seconds: float
    harness_seconds: float


def compare(ours: PackedLM, theirs: object, loaded: LoadedBenchmark) -> Compared:
    """Ask both."""
    started = time.perf_counter()
    mine = evaluate(ours, loaded)
    between = time.perf_counter()
    other = evaluate(theirs, loaded)  # pyright: ignore[reportArgumentType]
    ended = time.perf_counter()
    scores, right = (found.questions["score"].to_numpy() for found in (mine, other))
    return Compared(
        loaded.benchmark.name,
        len(scores),
        float(np.max(np.abs(_likelihoods(mine) - _likelihoods(other)), initial=0.0)),
        int(np.count_nonzero(np.abs(scores - right) > TOLERANCE_NATS)),
        float(scores.mean()),
        float(right.mean()),
        mine.requested_tokens,
        mine.computed_tokens,
        between - started,
        ended - between,
    )


def _likelihoods(found: Evaluation) -> np.ndarray:
    answers = [json.loads(text) for text in found.questions["responses"].to_pylist()]
    return np.array([answer[0] for given in answers for answer in given if isinstance(answer, list)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.evaluation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="the benchmarks' data, as evaluation.data_dir")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--questions", type=int, default=200, help="of each benchmark, spread over its parts")
    parser.add_argument("--model", default=None)
    parser.add_argument("--adapter", default=None)
    parser.add_argument("--precision", default="exact", choices=("exact", "safe", "fast"))
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--batch-size", type=int, default=8, help="of the harness's own class")
    machine.add_options(parser)
    arguments = parser.parse_args()
    busy = machine.refuse_if_busy(allow=arguments.allow_busy)
    quiet_libraries()

    from lm_eval.models.huggingface import HFLM

    source = ModelSource(arguments.model or str(smollm2_folder()), adapter=arguments.adapter)
    model, tokenizer = load_model(source, device=arguments.device), load_tokenizer(source)
    ours = PackedLM(model, tokenizer, precision=arguments.precision)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=arguments.batch_size)
    theirs.requested_tokens = theirs.computed_tokens = 0
    names = [name.strip() for name in arguments.tasks.split(",")]
    found = []
    for name in names:
        settings = EvaluationSettings(tasks=(name,), data_dir=arguments.data_dir)
        (whole,) = load_benchmarks(settings, tokenizer)
        of_part = -(-arguments.questions // len(whole.tasks))
        (loaded,) = load_benchmarks(settings.model_copy(update={"limit": of_part}), tokenizer)
        found.append(compare(ours, theirs, loaded))
    rows = [
        (
            c.name,
            f"{c.questions:,}",
            f"{c.largest_nats:.1e}",
            f"{c.answers_changed}",
            f"{100 * c.score:.2f}",
            f"{100 * c.harness_score:.2f}",
            f"{c.computed_tokens / c.requested_tokens:.0%}" if c.requested_tokens else "–",
            f"{c.harness_seconds / c.seconds:.2f}",
        )
        for c in found
    ]
    header = ["benchmark", "questions", "largest nats", "changed", "score", "harness", "computed", "× harness"]
    text = machine.table(header, rows, markdown=arguments.markdown)
    figures = {"benchmarks": [asdict(c) for c in found], "precision": arguments.precision}
    machine.report("evaluation", machine.describe(arguments.device), [busy] if busy else [], figures, text, arguments)
    if arguments.precision == "exact" and any(c.answers_changed or c.largest_nats > TOLERANCE_NATS for c in found):
        raise SystemExit(f"FAILED: above {TOLERANCE_NATS} nats, or other answers")


if __name__ == "__main__":
    main()
