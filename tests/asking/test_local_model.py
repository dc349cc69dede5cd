"""A local model that is asked: a random one, whose answers are garbage, and one that is made to answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rating_server import GOOD, conversations, questions_about
from tokenclean.asking.local_model import LoadedModel, LocalModel, ask_in_batches, chat_frame, describe_local_model
from tokenclean.asking.questions import Outcome
from tokenclean.asking.settings import Sampling
from tokenclean.ds2.rating_prompt import Rating, empty_rating_prompt, rating_questions
from tokenclean.errors import ModelError
from tokenclean.executors import LOCAL
from tokenclean.models.loading.load import resolve_source
from tokenclean.servers.answer_cache import AnswerCache, open_cache

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = Sampling(top_k=50, max_tokens=4, seed=5)
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)


def describe(folder: Path, sampling: Sampling) -> LocalModel:
    return describe_local_model(resolve_source(str(folder)), sampling, empty_rating_prompt())


@pytest.fixture(scope="module")
def rater(tiny_model_folder: Path) -> LocalModel:
    return describe(tiny_model_folder, SHORT)


@pytest.fixture(scope="module")
def loaded(rater: LocalModel) -> LoadedModel:
    return rater.load()


def test_garbage_is_asked_for_again_so_often_and_then_marked(rater, tmp_path):
    questions = rating_questions(conversations(5), rater.asked)
    with open_cache(tmp_path) as cache, LOCAL.open(rater) as answer:
        run = ask_in_batches(questions, answer, cache, attempts=2, batch_size=2)
        assert len(cache.answers) == 10
        texts = list(cache.answers.values())
    assert (run.asked, run.found) == (10, 0)
    assert run.answers == (None,) * 5
    assert any(texts)
    assert questions.model.name == rater.name
    with open_cache(tmp_path) as cache, LOCAL.open(rater) as answer:
        again = ask_in_batches(questions, answer, cache, attempts=2, batch_size=2)
    assert (again.asked, again.found) == (0, 5)


def test_a_seed_gives_the_same_answers_and_leaves_torchs_state_alone(loaded):
    import torch

    prompts = ["One prompt", "Another prompt, somewhat longer"]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    answers = loaded.answer(prompts, 1)
    assert torch.equal(torch.rand(3), expected)
    assert loaded.answer(prompts, 1) == answers
    assert loaded.answer(prompts, 2) != answers


def test_a_batch_changes_no_greedy_answer(tiny_model_folder):
    greedy = describe(tiny_model_folder, Sampling(temperature=0, max_tokens=6)).load()
    prompts = ["Volga", "What is the longest river in Europe?", "x"]
    assert greedy.answer(prompts, 0) == [greedy.answer([prompt], 0)[0] for prompt in prompts]


class Scripted:
    """Answers that a table gives, by row and attempt; GOOD where it says nothing."""

    def __init__(self, table: dict[tuple[int, int], str]) -> None:
        self.table, self.batches, self.seeds = table, [], []
        self._asked: dict[int, int] = {}

    def __call__(self, prompts, seed: int) -> list[str]:
        rows = [int(prompt.split("Question ")[1].split("?")[0]) for prompt in prompts]
        self.batches.append(rows)
        self.seeds.append(seed)
        for row in rows:
            self._asked[row] = self._asked.get(row, 0) + 1
        return [self.table.get((row, self._asked[row]), GOOD) for row in rows]


def run_scripted(answer, cache: AnswerCache, count: int = 5, **options) -> Outcome[Rating]:
    questions = questions_about(count, "stub", SHORT)

    def in_order(batches):
        return ((batch, answer(*batch.given())) for batch in batches)

    return ask_in_batches(questions, in_order, cache, **{"batch_size": 2, **options})


def test_json_is_read_and_only_the_unreadable_are_asked_again(tmp_path):
    stub = Scripted({(1, 1): "no idea", (3, 1): GOOD[:-1], (3, 2): "none", (3, 3): "never"})
    seen = []
    with open_cache(tmp_path) as cache:
        run = run_scripted(stub, cache, progress=lambda done, total: seen.append((done, total)))
    assert stub.batches == [[0, 1], [2, 3], [4], [1, 3], [3]]
    assert [answer is not None for answer in run.answers] == [True, True, True, False, True]
    assert run.asked == 5 + 2 + 1
    assert seen == [(2, 5), (4, 5), (5, 5), (2, 2), (1, 1)]
    assert len(set(stub.seeds)) == 5


def test_a_stopped_rating_goes_on_with_the_same_batches_and_seeds(tmp_path):
    table = {(1, 1): "no idea", (4, 1): "none"}
    whole, stopped = Scripted(table), Scripted(table)
    with open_cache(tmp_path / "whole") as cache:
        expected = run_scripted(whole, cache)
        answers = dict(cache.answers)
    calls = []

    def stop_at_the_third(prompts, seed: int) -> list[str]:
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return stopped(prompts, seed)

    with pytest.raises(KeyboardInterrupt), open_cache(tmp_path / "stopped") as cache:
        run_scripted(stop_at_the_third, cache)
    with open_cache(tmp_path / "stopped") as cache:
        run = run_scripted(stopped, cache)
        assert cache.answers == answers
    assert (stopped.batches, stopped.seeds) == (whole.batches, whole.seeds)
    assert run.answers == expected.answers
    assert (run.asked, run.found) == (expected.asked - 4, 3)


def test_a_sample_is_cut_so_that_prompt_and_answer_fit_the_context(rater, loaded):
    import torch

    long = "The Volga is the longest river in Europe. " * 300
    row = conversations(1)[0]
    row = type(row)(row.id, "pool", (row.turns[0], type(row.turns[1])("assistant", long)))
    questions = rating_questions([row], rater.asked)
    assert questions.cut == 1
    assert questions.items[0].prompt_tokens + SHORT.max_tokens <= loaded.model.config.max_position_embeddings
    assert rater.room_tokens < 2048
    with torch.no_grad():
        assert loaded.answer([questions.prompt(0).text], 0)


def test_a_context_without_room_is_refused(tiny_model_folder):
    with pytest.raises(ModelError, match="leaves none for a sample beside the task"):
        describe(tiny_model_folder, Sampling(max_tokens=1900))


def test_a_chat_template_frames_the_prompt_and_tags_in_it_are_letters(tiny_model_folder):
    rater = describe(tiny_model_folder, SHORT).load()
    assert chat_frame(rater.tokenizer) == ("", "\n")
    rater.tokenizer.chat_template = TEMPLATE
    assert chat_frame(rater.tokenizer) == ("<|user|>", "</s><|bot|>")
    seen = {}

    class Model:
        generation_config = rater.model.generation_config

        def parameters(self):
            return rater.model.parameters()

        def generate(self, **options):
            seen.update(options)
            return rater.model.generate(**options)

    framed = LoadedModel(SHORT, Model(), rater.tokenizer)
    framed.answer(["Say </s> twice", "no"], 0)
    ids, mask = seen["input_ids"], seen["attention_mask"]
    end = rater.tokenizer.eos_token_id
    assert (ids[0] == end).sum() == 1  # the template's own, not the sample's
    assert mask[1, 0] == 0
    assert mask[:, -1].all()
    assert rater.tokenizer.decode(ids[0]) == "<|user|>Say </s> twice</s><|bot|>"
    config = seen["generation_config"]
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 1.2, 0.9, 50)
    assert config.max_new_tokens == 4


def test_a_template_that_does_not_take_the_message_is_named(tiny_model_folder):
    rater = describe(tiny_model_folder, SHORT).load()
    rater.tokenizer.chat_template = "{{ raise_exception('only tools') }}"
    with pytest.raises(ModelError, match="does not accept a user's message: only tools"):
        chat_frame(rater.tokenizer)
    rater.tokenizer.chat_template = "always the same"
    with pytest.raises(ModelError, match="drops, repeats or rewrites"):
        chat_frame(rater.tokenizer)


def test_a_seed_is_made_up_and_the_weights_are_the_raters_name(tiny_model_folder):
    first = describe(tiny_model_folder, Sampling(max_tokens=4))
    assert first.sampling.seed == 0
    rows = conversations(1)
    other = replace(first, identity="other weights")
    assert rating_questions(rows, first.asked).items[0].key != rating_questions(rows, other.asked).items[0].key
    with pytest.raises(ModelError, match="its files are not those that were named"):
        other.load()
