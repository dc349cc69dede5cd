"""Models on benchmarks with lm-evaluation-harness: a score for every question.

Log-likelihoods come from the packed scorer, shared prefixes computed once.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from lm_eval.evaluator import evaluate as ask_harness
from lm_eval.models.huggingface import HFLM

from tokenclean.errors import EvaluationError
from tokenclean.evaluation.task_data import LoadedBenchmark, quiet_harness
from tokenclean.models.model_parts import lm_of
from tokenclean.observer import Progress
from tokenclean.scoring.continuation_likelihoods import ContinuationScorer
from tokenclean.scoring.scorer import PACK_TOKENS

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

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

_HarnessModel: Any = HFLM  # its decorator hides its type


class PackedLM(_HarnessModel):
    """The harness's own model class with its tokenization, truncation and generation, but our passes for likelihoods.

    ``model``: a loaded causal LM, or the PEFT model around one; ``tokenizer``: its own. ``precision``, ``pack_tokens``:
    as for ``Scorer``; ``batch_size``: for generation. ``requested_tokens`` counts the tokens of all likelihood
    requests, ``computed_tokens`` those that went through the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        precision: str = "exact",
        pack_tokens: int = PACK_TOKENS,
        batch_size: int = 8,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        with quiet_harness():
            super().__init__(
                pretrained=lm_of(model),
                tokenizer=tokenizer,
                batch_size=batch_size,
                max_length=max_length,
                backend="causal",
            )
        self._model = model
        self._scorer = ContinuationScorer(model, precision=precision, pack_tokens=pack_tokens)
        self._progress = progress
        self.requested_tokens = self.computed_tokens = 0

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The harness's, without progress bars."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The harness's, without progress bars."""
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(Σ log p, is greedy) of each request, long ones cut on the left as the harness cuts them."""
        fitting, too_long, most = [], 0, self.max_length + 1
        for _, context, continuation in requests:
            tokens = [*context, *continuation]
            too_long += len(tokens) > most
            tokens = tokens[-most:]
            fitting.append((tokens[: -len(continuation)], tokens[-len(continuation) :]))
        if too_long:
            text = "%d of %d requests are longer than the model's %d tokens and were cut on the left"
            logger.warning(text, too_long, len(requests), self.max_length)
        found = self._scorer.score(fitting, self._progress)
        self.requested_tokens += found.requested_tokens
        self.computed_tokens += found.computed_tokens
        answers = list(zip(found.loglikelihoods.tolist(), found.is_greedy.tolist(), strict=True))
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers


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
    before = lm.requested_tokens, lm.computed_tokens
    for task in loaded.tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(seed=few_shot_seed)
    with quiet_harness():
        found: Any = ask_harness(
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
