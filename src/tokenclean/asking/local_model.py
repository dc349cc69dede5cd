"""Answers from a local transformers model, which is asked the same questions in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tokenclean.asking.prompts import MAX_TOKENS, first_tokens
from tokenclean.asking.questions import ATTEMPTS, AskedModel, Outcome, Questions
from tokenclean.asking.settings import Sampling
from tokenclean.errors import ModelError
from tokenclean.executors import Compute, Item
from tokenclean.observer import Progress
from tokenclean.servers.answer_cache import AnswerCache, Answers
from tokenclean.store import fingerprint

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tokenclean.models.loading.load import ModelSource

_MARK = "\ue000message\ue001"  # in a private area of Unicode
_FEWEST_TOKENS = 64  # a model that sees less of a sample has nothing to judge

Batch = tuple[Sequence[str], int]
"""Prompts, and the seed with which their answers are sampled."""

T = TypeVar("T")


@dataclass(frozen=True)
class LocalModel:
    """A model that is asked, as a ``Work``: answers to batches of prompts.

    ``name``: as the user gave it. ``identity``: hash of its weights. ``room_tokens``: where samples are cut, so that
    prompt and answer stay within the model's context. ``device``: of the process that answers.
    """

    name: str
    source: ModelSource
    identity: str
    sampling: Sampling
    room_tokens: int
    device: str = "cpu"

    @property
    def asked(self) -> AskedModel:
        """How this model is asked, with samples cut at ``room_tokens``; its tokenizer is loaded."""
        from tokenclean.models.loading.load import load_tokenizer

        tokenizer = load_tokenizer(self.source)
        return AskedModel(
            self.name,
            self.sampling,
            first_tokens(tokenizer, self.room_tokens),
            lambda text: len(_ids(tokenizer, text, is_plain=True)),
            self.identity,
        )

    def load(self) -> LoadedModel:
        """The model in this process's memory; in bf16 on a GPU, as is usual for such models.

        Raises ModelError where it cannot be loaded, or its weights are others."""
        import torch

        from tokenclean.models.loading.load import load_model, load_tokenizer, source_fingerprint

        if source_fingerprint(self.source) != self.identity:
            raise ModelError(f"{self.source}: its files are not those that were named; copy the same to all nodes")
        model: Any = load_model(self.source)
        if torch.device(self.device).type == "cuda":
            model = model.to(torch.bfloat16)  # on the CPU first, so that the GPU never holds float32
        return LoadedModel(self.sampling, model.to(self.device), load_tokenizer(self.source))

    @contextmanager
    def opened(self) -> Iterator[Callable[[Batch], list[str]]]:
        """A block with the function that answers a batch. Raises as ``load``."""
        from tokenclean.models.device import give_back_memory

        yield _answers_of(self.load())
        give_back_memory()


@dataclass(frozen=True)
class LoadedModel:
    """A ``LocalModel`` in memory."""

    sampling: Sampling
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def answer(self, prompts: Sequence[str], seed: int) -> list[str]:
        """Answers to a batch of prompts, without special tokens. torch's own random state does not change."""
        import torch

        device = next(self.model.parameters()).device
        before, after = (_ids(self.tokenizer, text) for text in chat_frame(self.tokenizer))
        rows = [before + _ids(self.tokenizer, prompt, is_plain=True) + after for prompt in prompts]
        width = max(map(len, rows))
        pad = self._end_tokens[0]
        # Padding is on the left: new tokens follow on the right.
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            generate: Any = self.model.generate
            config = self._generation_config(pad)
            generated = generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in generated[:, width:]]

    @property
    def _end_tokens(self) -> list[int]:
        """Ids that end an answer: an instruct model may have its own in addition to the tokenizer's."""
        given = getattr(self.model.generation_config, "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])]
        return list(dict.fromkeys(int(i) for i in ids if i is not None)) or [0]

    def _generation_config(self, pad: int) -> GenerationConfig:
        from transformers import GenerationConfig

        sampling = self.sampling
        fixed = {"max_new_tokens": sampling.max_tokens, "eos_token_id": self._end_tokens, "pad_token_id": pad}
        if sampling.temperature == 0:
            return GenerationConfig(do_sample=False, **fixed)
        drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
        drawn |= sampling.model_dump(include=set(drawn), exclude_none=True)
        return GenerationConfig(do_sample=True, **drawn, **fixed)


def describe_local_model(
    source: ModelSource, sampling: Sampling, task: str, *, most_tokens: int = MAX_TOKENS, device: str = "cpu"
) -> LocalModel:
    """A model to ask; of its files, only configuration and tokenizer are loaded.

    ``task``: a prompt without a sample; samples are cut at ``most_tokens``, or earlier so that the prompt and the
    answer stay within the model's context. Without a seed in ``sampling`` it is 0. Raises ModelError where the files
    cannot be loaded or the context has no room for a sample.
    """
    from tokenclean.models.loading.load import load_config, load_tokenizer, source_fingerprint

    tokenizer = load_tokenizer(source)
    context = getattr(load_config(source).get_text_config(), "max_position_embeddings", None)
    room = most_tokens
    if context is not None:
        taken = sum(len(_ids(tokenizer, text)) for text in (*chat_frame(tokenizer), task))
        # The last term leaves space for the note that says where a sample is cut.
        room = min(most_tokens, context - taken - sampling.max_tokens - _FEWEST_TOKENS // 2)
        if room < _FEWEST_TOKENS:
            raise ModelError(
                f"{source}: its context of {context:,} tokens leaves none for a sample beside the task ({taken}) and "
                f"the answer ({sampling.max_tokens}); use another model"
            )
    seeded = sampling if sampling.seed is not None else sampling.model_copy(update={"seed": 0})
    return LocalModel(str(source), source.absolute, source_fingerprint(source), seeded, room, device)


def _answers_of(loaded: LoadedModel) -> Callable[[Batch], list[str]]:
    return lambda batch: loaded.answer(*batch)


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the model's chat template writes before a user's message and, with the answer's opening, after it; without
    a template, the start token and a line break. Raises ModelError where the template fails."""
    if not tokenizer.chat_template:
        return str(tokenizer.bos_token or ""), "\n"
    import jinja2

    messages = [{"role": "user", "content": _MARK}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, ValueError, TypeError, LookupError) as error:
        raise ModelError(f"the model's chat template does not accept a user's message: {error}") from error
    if text.count(_MARK) != 1:
        raise ModelError("the model's chat template drops, repeats or rewrites a user's message; use another model")
    before, _, after = text.partition(_MARK)
    return before, after


def ask_in_batches(
    questions: Questions[T],
    answer: Compute[Batch, list[str]],
    cache: AnswerCache,
    *,
    attempts: int = ATTEMPTS,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Outcome[T]:
    """Ask what the cache does not answer, batch by batch; each batch's answers are added to it.

    Every question is asked once, then those without a readable answer again, up to ``attempts`` times. Which questions
    share a batch, and its seed, depend on the questions alone: a run that was stopped ends with the answers it would
    have had otherwise. ``answer``: a ``LocalModel`` that an executor has opened. ``progress`` counts questions asked,
    from 0 in every attempt.
    """

    def known(number: int, attempts: int) -> tuple[T | None, int]:
        return questions.known(number, cache.answers, attempts)

    asked, numbers = 0, range(len(questions))
    found = sum(answer is not None or used == attempts for answer, used in (known(n, attempts) for n in numbers))
    by_length = sorted(numbers, key=lambda number: (questions.items[number].prompt_tokens, number))
    for attempt in range(1, attempts + 1):
        still_open = [number for number in by_length if known(number, attempt - 1)[0] is None]
        done = 0
        for item, texts in answer(_batches(questions, still_open, attempt, batch_size, cache.answers)):
            missing, batch = item.key
            for number, text in zip(batch, texts, strict=True):
                if number in missing:
                    cache.add(questions.items[number].key, attempt, text, row=questions.conversations[number].id)
            asked += len(missing)
            done = item.start + item.span
            if progress is not None:
                progress(done, len(still_open))
        if progress is not None and done < len(still_open):  # the last ones were answered before
            progress(len(still_open), len(still_open))
    return Outcome(tuple(known(number, attempts)[0] for number in numbers), asked, found)


def _batches(
    questions: Questions[T], still_open: Sequence[int], attempt: int, batch_size: int, answers: Answers
) -> Iterator[Item[tuple[list[int], Sequence[int]], Batch]]:
    """The batches with a question that is not answered, known by the numbers of those questions and of all; the whole
    batch is sampled, so that its answers are those of an unbroken run."""
    for start in range(0, len(still_open), batch_size):
        batch = still_open[start : start + batch_size]
        missing = [number for number in batch if (questions.items[number].key, attempt) not in answers]
        if not missing:
            continue
        seed = fingerprint([questions.items[batch[0]].key, questions.model.sampling.seed, attempt])
        yield Item(
            (missing, batch),
            start // batch_size,
            partial(_prompts, questions, batch, int(seed[:8], 16)),
            f"questions {start + 1:,} to {start + len(batch):,} of attempt {attempt}",
            partial(_ids_of, questions, batch),
            start,
            len(batch),
        )


def _prompts(questions: Questions[T], batch: Sequence[int], seed: int) -> Batch:
    return [questions.prompt(number).text for number in batch], seed


def _ids_of(questions: Questions[T], batch: Sequence[int]) -> list[str]:
    return [questions.conversations[number].id for number in batch]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, is_plain: bool = False) -> list[int]:
    """Token ids of a text; ``is_plain``: the template's tags in it are ordinary characters."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=is_plain, verbose=False)["input_ids"]
