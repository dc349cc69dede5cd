"""The harness's tasks of the benchmarks asked for, with their data, before any model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenclean.errors import EvaluationError, MissingExtraError
from tokenclean.evaluation.extractive_qa import (
    FORMS,
    QUESTIONS_A_LANGUAGE,
    passage_task,
    read_squad,
    read_tydiqa,
    sample,
)
from tokenclean.evaluation.tasks import LANGUAGES, Benchmark, benchmark_named
from tokenclean.store import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

TYDIQA_HUB = ("google-research-datasets/tydiqa", "secondary_task")
XQUAD_HUB = "google/xquad"


@dataclass(frozen=True)
class LoadedBenchmark:
    """``tasks``: part -> the harness's task object, its data read; ``items``: part -> number of its questions used."""

    benchmark: Benchmark
    tasks: Mapping[str, Any]
    items: Mapping[str, int]

    def part_identity(self, part: str) -> str:
        """Hash of what the harness asks in this part: the form of the prompt, every question, and the documents that
        solved examples are taken from, where there are any."""
        task = self.tasks[part]
        config = {k: _plain(v) for k, v in task.dump_config().items() if k not in _WHERE_IT_LIES}
        docs = [task.eval_docs[number] for number in range(self.items[part])]
        solved = list(task.fewshot_docs() or ()) if task.get_config("num_fewshot") else []
        return fingerprint([config, task.VERSION, docs, solved])


def _plain(value: Any) -> Any:
    """For JSON: a function is its name, since its address changes."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else getattr(value, "__qualname__", "")


_WHERE_IT_LIES = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata", "custom_dataset")


def load_benchmarks(
    names: Sequence[str],
    tokenizer: Any,
    *,
    data_dir: str | Path | None = None,
    limits: Mapping[str, int] | None = None,
    limit: int | None = None,
) -> list[LoadedBenchmark]:
    """Read the tasks of the benchmarks ``names`` (of ``BENCHMARKS``, or any task of the harness).

    ``tokenizer``: cuts passages. ``data_dir``: where the data lies as local files; from the Hub or its cache by
    default. ``limit``: the first so many questions of every part (subject, language); ``limits``: by benchmark.
    Raises EvaluationError for an unknown name or data that cannot be had, all at once, and MissingExtraError where the
    harness is not installed.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("lm-eval", "eval", "evaluation on benchmarks") from error
    loaded, problems = [], []
    for name in names:
        benchmark = benchmark_named(name)
        try:
            tasks = _tasks(benchmark, tokenizer, None if data_dir is None else Path(data_dir))
        except EvaluationError as error:
            problems.append(str(error))
            continue
        most = (limits or {}).get(name, limit)
        counts = {part: len(task.eval_docs) for part, task in tasks.items()}
        items = {part: count if most is None else min(most, count) for part, count in counts.items()}
        loaded.append(LoadedBenchmark(benchmark, tasks, items))
    if problems:
        raise EvaluationError("\n".join(problems))
    return loaded


def _tasks(benchmark: Benchmark, tokenizer: Any, data_dir: Path | None) -> dict[str, Any]:
    if data_dir is not None and benchmark.files:
        for part in parts_of(benchmark):
            missing = [str(file) for file in benchmark.local_files(data_dir, part).values() if not file.is_file()]
            if missing:
                raise EvaluationError(
                    f"{benchmark.name}: {', '.join(missing)} missing; put the data there, or leave evaluation.data_dir "
                    "out to read from the Hub, or take the benchmark from evaluation.tasks"
                )
    if benchmark.name in ("tydiqa", "xquad"):
        return _passage_tasks(benchmark, tokenizer, data_dir)
    parts = parts_of(benchmark)
    tasks: dict[str, Any] = {}
    for part in parts:
        changes: dict[str, Any] = {}
        if data_dir is not None and benchmark.files:
            files = {split: str(file) for split, file in benchmark.local_files(data_dir, part).items()}
            others = [split for split in ("train", "validation", "test") if split not in files]
            changes = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
            changes |= {f"{'training' if split == 'train' else split}_split": None for split in others}
        tasks |= _load(benchmark, part, changes)
    for task in tasks.values():
        if benchmark.few_shot is not None:
            task.set_config("num_fewshot", benchmark.few_shot)
    return tasks


def _load(benchmark: Benchmark, part: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    manager = _manager(benchmark)
    if part not in manager.task_index:
        raise EvaluationError(f"evaluation.tasks: {part}: neither a benchmark of tokenclean nor a task of the harness")
    # A member of a group is the harness's way to change where a task's data lies and nothing else.
    group = {"group": f"{part} as asked for", "task": [{"task": part, **changes}]}
    with quiet_harness(), _telling_what_is_missing(benchmark):
        return dict(manager.load(group if changes else part)["tasks"])


_managers: dict[str, Any] = {}


def _manager(benchmark: Benchmark) -> Any:
    """The harness's index of tasks: of the folder that matters, since reading all 14,000 takes ten seconds."""
    import lm_eval.tasks

    folder = benchmark.harness_folder
    if folder not in _managers:
        root = Path(lm_eval.tasks.__file__).parent
        _managers[folder] = (
            lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(root / folder))
            if folder
            else lm_eval.tasks.TaskManager()
        )
    return _managers[folder]


def parts_of(benchmark: Benchmark) -> tuple[str, ...]:
    """Names of the harness's tasks that it is made of, or those of our own."""
    if benchmark.parts:
        return benchmark.parts
    with quiet_harness():
        return tuple(_manager(benchmark).all_subtasks)


def _passage_tasks(benchmark: Benchmark, tokenizer: Any, data_dir: Path | None) -> dict[str, Any]:
    from lm_eval.api.task import ConfigurableTask

    tasks = {}
    for part in benchmark.parts:
        language = part.removeprefix(f"{benchmark.name}_")
        examples, questions = _passages(benchmark, part, language, data_dir)
        if not questions:
            raise EvaluationError(f"{benchmark.name}: no question in {language}")
        config = passage_task(part, FORMS[language], questions, examples, tokenizer)
        with quiet_harness():
            tasks[part] = ConfigurableTask(config=config)
    return tasks


def _passages(
    benchmark: Benchmark, part: str, language: str, data_dir: Path | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Candidates for the solved example, and the questions asked.

    XQuAD's questions are the same in all languages, so the first are taken, as in every other; TyDi QA's are drawn.
    """
    if benchmark.name == "xquad":
        if data_dir is not None:
            questions = read_squad(benchmark.local_files(data_dir, part)["validation"])
        else:
            rows = _dataset(benchmark, XQUAD_HUB, f"xquad.{LANGUAGES[language]}")["validation"]
            questions = [{**row, "answers": list(row["answers"]["text"])} for row in rows]
        return questions[-1:], questions[:QUESTIONS_A_LANGUAGE]
    if data_dir is not None:
        files = {split: str(file) for split, file in benchmark.local_files(data_dir, part).items()}
        splits = _dataset(benchmark, "json", data_files=files)
    else:
        splits = _dataset(benchmark, *TYDIQA_HUB)
    examples, questions = (read_tydiqa(splits[split], language) for split in ("train", "validation"))
    return examples, sample(questions, QUESTIONS_A_LANGUAGE)


def _dataset(benchmark: Benchmark, *path: str, **files: Any) -> Any:
    from datasets import load_dataset

    with quiet_harness(), _telling_what_is_missing(benchmark):
        return load_dataset(*path, **files)


@contextmanager
def _telling_what_is_missing(benchmark: Benchmark) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of datasets, the Hub's client, pyarrow: whatever stands between us and the data
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise EvaluationError(
            f"{benchmark.name}: its data cannot be had ({reason}); with no network put it below evaluation.data_dir"
        ) from error


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Without the harness's remarks and bars, one a task, and the bars of ``datasets``."""
    import datasets
    import lm_eval.api.task

    logger = logging.getLogger("lm_eval")
    before, had_bars, bar = logger.level, datasets.is_progress_bar_enabled(), lm_eval.api.task.tqdm
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = _no_bar
    try:
        yield
    finally:
        logger.setLevel(before)
        lm_eval.api.task.tqdm = bar
        if had_bars:
            datasets.enable_progress_bars()


def _no_bar(iterable: Any, **how: Any) -> Any:
    return iterable
