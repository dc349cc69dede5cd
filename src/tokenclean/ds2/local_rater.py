"""Ratings from a local transformers model, asked the same questions in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tokenclean.ds2.answer_cache import AnswerCache
from tokenclean.ds2.questions import (
    ATTEMPTS,
    Progress,
    Question,
    Questions,
    RatingRun,
    Sampling,
    check_attempts,
    known_rating,
    prepare_questions,
)
from tokenclean.ds2.rating_prompt import MAX_TOKENS, first_tokens, rating_prompt
from tokenclean.ds2.ratings import ratings_of
from tokenclean.errors import ModelError
from tokenclean.pool import Conversation, Turn
from tokenclean.store import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tokenclean.models.loading.load import ModelSource

LOCAL_SAMPLING = Sampling(top_k=50, seed=0)
"""The paper's raters."""
_MARK = "\ue000message\ue001"  # in a private area of Unicode
_FEWEST_TOKENS = 64  # of a sample; a rater that sees less of it has nothing to judge

AnswerPrompts = Callable[[Sequence[str], int], list[str]]
"""Answers to prompts, drawn with a seed."""


@dataclass(frozen=True)
class LocalRater:
    """A model that rates. ``name``: as it was given. ``identity``: hash of its weights. ``room_tokens``: of a sample,
    so that prompt and answer stay within the model's context."""

    name: str
    identity: str
    sampling: Sampling
    room_tokens: int
    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)

    def questions(self, conversations: Sequence[Conversation]) -> Questions:
        """The questions to ask of it, samples cut at ``room_tokens``."""
        return prepare_questions(
            conversations,
            self.name,
            sampling=self.sampling,
            shorten=first_tokens(self.tokenizer, self.room_tokens),
            count_tokens=lambda text: len(_ids(self.tokenizer, text, is_plain=True)),
            identity=self.identity,
        )

    def answer(self, prompts: Sequence[str], seed: int) -> list[str]:
        """Answers to a batch of prompts, without special tokens. torch's own random state is left as it was."""
        import torch

        device = next(self.model.parameters()).device
        before, after = (_ids(self.tokenizer, text) for text in chat_frame(self.tokenizer))
        rows = [before + _ids(self.tokenizer, prompt, is_plain=True) + after for prompt in prompts]
        width = max(map(len, rows))
        pad = self._end_tokens[0]
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)  # new tokens to the right
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        generate: Any = self.model.generate
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            made = generate(input_ids=ids, attention_mask=mask, generation_config=self._generation_config(pad))
        decode: Any = self.tokenizer.decode
        return [str(decode(row, skip_special_tokens=True)) for row in made[:, width:]]

    @property
    def _end_tokens(self) -> list[int]:
        """Ids that end an answer: an instruct model may have one of its own beside the tokenizer's."""
        given = getattr(self.model.generation_config, "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])]
        return list(dict.fromkeys(int(i) for i in ids if i is not None)) or [0]

    def _generation_config(self, pad: int) -> Any:
        from transformers import GenerationConfig

        sampling = self.sampling
        fixed = {"max_new_tokens": sampling.max_tokens, "eos_token_id": self._end_tokens, "pad_token_id": pad}
        if sampling.temperature == 0:
            return GenerationConfig(do_sample=False, **fixed)
        drawn = {
            "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "top_k": 0 if sampling.top_k is None else sampling.top_k,
        }
        return GenerationConfig(do_sample=True, **drawn, **fixed)


def load_local_rater(source: ModelSource, *, device: str = "cpu", sampling: Sampling = LOCAL_SAMPLING) -> LocalRater:
    """Load a model to rate with; on a GPU in bf16, as such models are used.

    A sampling without a seed gets 0. Raises ModelError where it cannot be loaded or its context has no room for a
    sample.
    """
    import torch

    from tokenclean.models.loading.load import load_model, load_tokenizer, source_fingerprint
    from tokenclean.models.model_parts import lm_of

    tokenizer = load_tokenizer(source)
    model = load_model(source)
    if torch.device(device).type == "cuda":
        model = model.to(torch.bfloat16)  # on the CPU, so that the GPU never holds float32
    model: Any = model.to(device)
    context = getattr(lm_of(model).config, "max_position_embeddings", None)
    room = MAX_TOKENS
    if context is not None:
        empty = rating_prompt(Conversation("", "", (Turn("user", ""), Turn("assistant", ""))), lambda text: text).text
        task = sum(len(_ids(tokenizer, text)) for text in (*chat_frame(tokenizer), empty))
        room = min(MAX_TOKENS, context - task - sampling.max_tokens - _FEWEST_TOKENS // 2)  # the note of a cut too
        if room < _FEWEST_TOKENS:
            raise ModelError(
                f"{source}: its context of {context:,} tokens leaves none for a sample beside the task ({task}) and "
                f"the answer ({sampling.max_tokens}); rate with another model"
            )
    seeded = sampling if sampling.seed is not None else replace(sampling, seed=0)
    return LocalRater(str(source), source_fingerprint(source), seeded, room, model, tokenizer)


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the model's chat template writes in front of a user's message and, with the answer's opening, behind it;
    without a template the start token and a line break. Raises ModelError where the template fails."""
    if not tokenizer.chat_template:
        return str(tokenizer.bos_token or ""), "\n"
    import jinja2

    messages = [{"role": "user", "content": _MARK}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, ValueError, TypeError, LookupError) as error:
        raise ModelError(f"the rater's chat template does not take a user's message: {error}") from error
    if text.count(_MARK) != 1:
        raise ModelError("the rater's chat template drops, repeats or rewrites a user's message; use another model")
    before, _, after = text.partition(_MARK)
    return before, after


def rate_in_batches(
    questions: Questions,
    answer: AnswerPrompts,
    cache: AnswerCache,
    *,
    attempts: int = ATTEMPTS,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> RatingRun:
    """Ask what the cache does not answer, batch by batch, and keep each batch's answers in it.

    Every question is asked once, then those without a readable answer again, up to ``attempts`` times; a row without
    one then has no rating. Which questions share a batch, and its seed, depends on the questions alone: a run that was
    stopped ends with the ratings that it would have had. ``progress`` counts questions asked, again of every attempt.
    """
    check_attempts(attempts)
    asked = 0
    found = sum(_is_settled(cache, question, attempts) for question in questions.items)
    by_length = sorted(range(len(questions)), key=lambda row: (questions.items[row].prompt_tokens, row))
    for attempt in range(1, attempts + 1):
        open_rows = [row for row in by_length if _is_open(cache, questions, row, attempt)]
        done = 0
        for batch in (open_rows[start : start + batch_size] for start in range(0, len(open_rows), batch_size)):
            missing = [row for row in batch if (questions.items[row].key, attempt) not in cache.answers]
            if missing:  # the whole batch is drawn again, so that its answers are what they would have been
                texts = answer([questions.prompt(row).text for row in batch], _batch_seed(questions, batch[0], attempt))
                for row, text in zip(batch, texts, strict=True):
                    if row in missing:
                        key = questions.items[row].key
                        cache.add(key, attempt, text, row=questions.conversations[row].id)
            asked += len(missing)
            done += len(batch)
            if progress is not None:
                progress(done, len(open_rows))
    ratings = [known_rating(cache.answers, question, attempts)[0] for question in questions.items]
    return RatingRun(ratings_of(questions.ids, questions.rater, ratings), asked, found)


def _is_settled(cache: AnswerCache, question: Question, attempts: int) -> bool:
    rating, used = known_rating(cache.answers, question, attempts)
    return rating is not None or used == attempts


def _is_open(cache: AnswerCache, questions: Questions, row: int, attempt: int) -> bool:
    """Whether no attempt before this one gave a readable answer."""
    return attempt == 1 or known_rating(cache.answers, questions.items[row], attempt - 1)[0] is None


def _batch_seed(questions: Questions, first: int, attempt: int) -> int:
    return int(fingerprint([questions.items[first].key, questions.sampling.seed, attempt])[:8], 16)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, is_plain: bool = False) -> list[int]:
    """Token ids of a text; ``is_plain``: tags of the template in it are letters like any other."""
    encoded: Any = tokenizer(text, add_special_tokens=False, split_special_tokens=is_plain, verbose=False)
    return list(encoded["input_ids"])
