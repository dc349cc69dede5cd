"""The harness's tasks of the requested benchmarks with their data, loaded before any model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenclean.errors import EvaluationError, needs_extra
from tokenclean.evaluation.answer_tasks import ANSWER_TASKS, answer_task
from tokenclean.evaluation.extractive_qa import QUESTIONS_PER_LANGUAGE, hub_questions, passage_task, read_squad, sample
from tokenclean.evaluation.tasks import LANGUAGES, Benchmark, benchmark_named
from tokenclean.recipe.settings import EvaluationSettings, TokensSettings
from tokenclean.store import fingerprint

if TYPE_CHECKING:
    from datasets import DatasetDict
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

TYDIQA_HUB = ("google-research-datasets/tydiqa", "secondary_task")
XQUAD_HUB = "google/xquad"
_LOCATION = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata", "custom_dataset")
"""Keys of a task's configuration that say where its data is, not what is asked."""


@dataclass(frozen=True)
class LoadedBenchmark:
    """``tasks``: part -> the harness's task object, its data read; ``items``: part -> number of its questions used."""

    benchmark: Benchmark
    tasks: Mapping[str, Task]
    items: Mapping[str, int]

    def part_identity(self, part: str) -> str:
        """Hash of what the harness asks in this part: the form of the prompt, every question, and the documents that
        solved examples are taken from, where there are any."""
        task = self.tasks[part]
        config = {key: _plain(value) for key, value in task.dump_config().items() if key not in _LOCATION}
        docs = [task.eval_docs[number] for number in range(self.items[part])]
        solved = list(task.fewshot_docs() or ()) if task.get_config("num_fewshot") else []
        return fingerprint([config, task.VERSION, docs, solved])


def _plain(value: object) -> object:
    """The value for JSON: a function is its name, since its address changes."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else getattr(value, "__qualname__", "")


def load_benchmarks(
    settings: EvaluationSettings, tokenizer: PreTrainedTokenizerBase, tokens: TokensSettings | None = None
) -> list[LoadedBenchmark]:
    """Read the tasks of the benchmarks ``settings.tasks`` (of ``BENCHMARKS``, or any task of the harness).

    ``tokenizer``: used to cut passages and to render the prompts of ``answer_tasks``, with the template of ``tokens``
    (by default tulu). Raises EvaluationError, listing all unknown names and missing data at once, and MissingExtraError
    where the harness is not installed.
    """
    with needs_extra("lm-eval", "eval", "evaluation on benchmarks"):
        import lm_eval  # noqa: F401
    loaded, problems = [], []
    for name in settings.tasks:
        benchmark = benchmark_named(name)
        try:
            data_dir = None if settings.data_dir is None else Path(settings.data_dir)
            tasks = _tasks(benchmark, tokenizer, data_dir, tokens or TokensSettings())
        except EvaluationError as error:
            problems.append(str(error))
            continue
        most = dict(settings.limits).get(name, settings.limit)
        counts = {part: len(task.eval_docs) for part, task in tasks.items()}
        items = {part: count if most is None else min(most, count) for part, count in counts.items()}
        loaded.append(LoadedBenchmark(benchmark, tasks, items))
    if problems:
        raise EvaluationError("\n".join(problems))
    return loaded


def _tasks(
    benchmark: Benchmark, tokenizer: PreTrainedTokenizerBase, data_dir: Path | None, tokens: TokensSettings
) -> dict[str, Task]:
    parts = parts_of(benchmark)
    files = {}
    if data_dir is not None and benchmark.files:
        files = {part: benchmark.local_files(data_dir, part) for part in parts}
    is_local = benchmark.name in ANSWER_TASKS
    if is_local and data_dir is None:
        raise EvaluationError(
            f"{benchmark.name}: its data are files of yours; put {', '.join(benchmark.files.values())} into a folder, "
            "and name that in evaluation.data_dir"
        )
    or_hub = "" if is_local else "or leave evaluation.data_dir out to read from the Hub, "
    for of_part in files.values():
        if missing := [file for file in of_part.values() if not Path(file).is_file()]:
            raise EvaluationError(
                f"{benchmark.name}: {', '.join(missing)} missing; put the data there, {or_hub}or remove the benchmark "
                "from evaluation.tasks"
            )
    if is_local:
        return {part: _own_task(answer_task(part, Path(files[part]["test"]), tokenizer, tokens)) for part in parts}
    if benchmark.name in ("tydiqa", "xquad"):
        return {part: _passage_task(benchmark, part, files.get(part), tokenizer) for part in parts}
    tasks: dict[str, Task] = {}
    for part in parts:
        tasks |= _harness_tasks(benchmark, part, files.get(part))
    for task in tasks.values():
        if benchmark.few_shot is not None:
            task.set_config("num_fewshot", benchmark.few_shot)
    return tasks


def _harness_tasks(benchmark: Benchmark, part: str, files: dict[str, str] | None) -> dict[str, Task]:
    manager = _manager(benchmark.harness_folder)
    if part not in manager.task_index:
        raise EvaluationError(f"evaluation.tasks: {part}: neither a benchmark of tokenclean nor a task of the harness")
    asked: object = part
    if files is not None:
        changes = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        missing = {"train": "training", "validation": "validation", "test": "test"}.items()
        changes |= {f"{name}_split": None for split, name in missing if split not in files}
        # A member of a group is the harness's way to change where a task's data is, and nothing else.
        asked = {"group": f"{part} as asked for", "task": [{"task": part, **changes}]}
    with _reading(benchmark):
        return dict(manager.load(asked)["tasks"])


@cache
def _manager(folder: str) -> TaskManager:
    """The harness's index of the tasks in one of its folders, since reading all 14,000 takes ten seconds."""
    import lm_eval.tasks

    if not folder:
        return lm_eval.tasks.TaskManager()
    root = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(root / folder))


def parts_of(benchmark: Benchmark) -> tuple[str, ...]:
    """Names of the tasks it consists of, the harness's or our own."""
    if benchmark.parts:
        return benchmark.parts
    with quiet_harness():
        return tuple(_manager(benchmark.harness_folder).all_subtasks)


def _passage_task(
    benchmark: Benchmark, part: str, files: dict[str, str] | None, tokenizer: PreTrainedTokenizerBase
) -> Task:
    language = part.removeprefix(f"{benchmark.name}_")
    # XQuAD's questions are the same in all languages, so the first are taken in each; TyDi QA's are a random sample.
    if benchmark.name == "xquad":
        if files is not None:
            found = read_squad(Path(files["validation"]))
        else:
            found = hub_questions(_dataset(benchmark, XQUAD_HUB, f"xquad.{LANGUAGES[language]}")["validation"])
        examples, questions = found[-1:], found[:QUESTIONS_PER_LANGUAGE]
    else:
        splits = _dataset(benchmark, *(TYDIQA_HUB if files is None else ("json",)), data_files=files)
        examples = hub_questions(splits["train"], language)
        questions = sample(hub_questions(splits["validation"], language), QUESTIONS_PER_LANGUAGE)
    if not questions:
        raise EvaluationError(f"{benchmark.name}: no question in {language}")
    return _own_task(passage_task(part, language, questions, examples, tokenizer))


def _own_task(config: dict[str, object]) -> Task:
    from lm_eval.api.task import ConfigurableTask

    with quiet_harness():
        return ConfigurableTask(config=config)


def _dataset(benchmark: Benchmark, *path: str, data_files: dict[str, str] | None = None) -> DatasetDict:
    from datasets import load_dataset

    with _reading(benchmark):
        return load_dataset(*path, data_files=data_files)


@contextmanager
def _reading(benchmark: Benchmark) -> Iterator[None]:
    """Without progress bars; any failure to read the benchmark's data becomes an EvaluationError."""
    try:
        with quiet_harness():
            yield
    except Exception as error:  # from datasets, the Hub's client, pyarrow and others
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise EvaluationError(
            f"{benchmark.name}: could not load its data ({reason}); without a network put it below evaluation.data_dir"
        ) from error


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Without the harness's messages and its progress bars, one for every task, and those of ``datasets``."""
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


def _no_bar(iterable: Iterable[object], **options: object) -> Iterable[object]:
    return iterable
