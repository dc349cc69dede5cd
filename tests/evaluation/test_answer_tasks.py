"""Slots, chrF and choices of local rows: the right score of every constructed answer, and rows that cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from benchmark_data import write_lines
from tokenclean.errors import EvaluationError
from tokenclean.evaluation.harness import PackedLM, evaluate
from tokenclean.evaluation.task_data import LoadedBenchmark, load_benchmarks
from tokenclean.recipe import TokensSettings
from tokenclean.recipe.settings import EvaluationSettings

pytestmark = pytest.mark.usefixtures("one_thread")

ASK = "Describe this place.\n\n"
TULU = "<|user|>\n{}\n<|assistant|>\n"


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    return model, AutoTokenizer.from_pretrained(tiny_model_folder)


class Reciting(PackedLM):
    """Gives a known text for every prompt, and to every continuation the log-likelihood of its place in ``likely``."""

    texts: Mapping[str, str] = {}
    likely: tuple[str, ...] = ()

    def generate_until(self, requests, disable_tqdm=True):
        asked = [request.arguments for request in requests]
        assert all(options["until"] == ["\n"] for _, options in asked)
        return [self.texts[prompt] for prompt, _ in asked]

    def loglikelihood(self, requests, disable_tqdm=True):
        return [(-float(self.likely.index(choice)), False) for _, choice in (request.arguments for request in requests)]


def load(tiny, folder: Path, name: str, *rows: dict, **tokens) -> LoadedBenchmark:
    write_lines(folder / name / "test.jsonl", rows)
    settings = EvaluationSettings(tasks=(name,), data_dir=str(folder))
    (loaded,) = load_benchmarks(settings, tiny[1], TokensSettings(**tokens))
    return loaded


def scores(lm: PackedLM, loaded: LoadedBenchmark) -> list[float]:
    return evaluate(lm, loaded).questions["score"].to_pylist()


def test_slots_of_constructed_texts(tiny, tmp_path):
    data = ["name[The Mill], food[French]", "name[Cocum], eatType[pub]", "name[Aromi], area[riverside]"]
    rows = [{"prompt": ASK + of_row, "response": "x", "noise": []} for of_row in data]
    loaded = load(tiny, tmp_path, "e2e_slots", *rows, rows[0])
    lm = Reciting(*tiny)
    given = ("The Mill is French.", "Cocum is a restaurant.", "A cheap, highly rated French pub for families.")
    lm.texts = {TULU.format(row["prompt"]): text for row, text in zip(rows, given, strict=True)}
    # The repeated prompt is asked once. The last text has six errors on two slots.
    assert scores(lm, loaded) == [1.0, 0.5, 0.0]


def test_chrf_against_the_clean_answer(tiny, tmp_path):
    sacrebleu = pytest.importorskip("sacrebleu")
    chat = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]
    chat += [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "to"}]
    rows = [
        {"prompt": "Translate: дом", "response": "the horse", "clean": "the house"},
        {"prompt": "Translate: кот", "response": "a cat", "noise": []},
        {"messages": chat, "clean": "two"},
    ]
    loaded = load(tiny, tmp_path, "chrf", *rows[:2])
    lm = Reciting(*tiny)
    lm.texts = {TULU.format("Translate: дом"): " the mouse", TULU.format("Translate: кот"): "a cat"}
    expected = sacrebleu.sentence_chrf("the mouse", ["the house"]).score / 100
    assert scores(lm, loaded) == pytest.approx([expected, 1.0])

    loaded = load(tiny, tmp_path, "chrf", rows[2])
    (doc,) = loaded.tasks["chrf"].eval_docs
    eos = tiny[1].eos_token
    assert doc == {"prompt": f"<|user|>\nOne?\n<|assistant|>\n1{eos}\n<|user|>\nTwo?\n<|assistant|>\n", "answer": "two"}


def test_choices_by_likelihood(tiny, tmp_path):
    rows = [{"prompt": f"{n}?", "choices": ["(A)", "(B)", "(C)"][: 2 + n % 2], "answer": n % 2} for n in range(4)]
    loaded = load(tiny, tmp_path, "choice", *rows)
    lm = Reciting(*tiny)
    lm.likely = ("(B)", "(A)", "(C)")
    assert scores(lm, loaded) == [0.0, 1.0, 0.0, 1.0]


def test_prompts_in_the_tokenizer_s_own_template(tiny, tmp_path):
    rows = {"prompt": "Two?", "choices": ["(A)", "(B)"], "answer": 0}
    of_tulu = load(tiny, tmp_path, "choice", rows)
    tokenizer = type(tiny[1]).from_pretrained(tiny[1].name_or_path)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    own = load((tiny[0], tokenizer), tmp_path, "choice", rows, template="tokenizer")
    assert own.tasks["choice"].eval_docs[0]["prompt"] == "[user]Two?[assistant]"
    assert own.part_identity("choice") != of_tulu.part_identity("choice")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["e2e_slots", "chrf", "choice"])
def test_a_real_model_answers_all_of_them(tiny, data_dir, name):
    (loaded,) = load_benchmarks(EvaluationSettings(tasks=(name,), data_dir=str(data_dir)), tiny[1])
    found = evaluate(PackedLM(*tiny), loaded).questions
    assert len(found) == 6
    assert all(0 <= score <= 1 for score in found["score"].to_pylist())


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("choice", {"prompt": "a", "choices": ["x"], "answer": 0}, "choices (two texts or more)"),
        ("choice", {"prompt": "a", "choices": ["x", ""], "answer": 0}, "found {'prompt': 'a'"),
        ("choice", {"prompt": "a", "choices": ["x", "y"], "answer": 2}, "from 0"),
        ("choice", {"prompt": "a", "choices": ["x", "y"], "answer": True}, "from 0"),
        ("choice", {"question": "a"}, "expected prompt (a text)"),
        ("chrf", {"prompt": "a", "response": "b c", "noise": [[0, 1]]}, "expected the key clean"),
        ("chrf", {"prompt": "a", "response": "b c"}, "truth missing"),
        ("e2e_slots", {"prompt": "Describe it.", "response": "b c", "noise": []}, "the prompt states no data"),
    ],
)
def test_rows_that_cannot_be_asked(tiny, tmp_path, name, row, words):
    good = {"prompt": "name[Aromi]", "response": "b", "noise": [], "choices": ["x", "y"], "answer": 0}
    with pytest.raises(EvaluationError) as error:
        load(tiny, tmp_path, name, good, row)
    assert str(error.value).startswith(f"{name}: ")
    assert "test.jsonl:2" in str(error.value)
    assert words in str(error.value)


def test_missing_and_broken_files(tiny, tmp_path):
    with pytest.raises(EvaluationError, match=r"test.jsonl:1: has no prompt to ask"):
        load(tiny, tmp_path / "texts", "chrf", {"text": "b c", "clean": "b"})
    with pytest.raises(EvaluationError, match=r"put e2e_slots/test.jsonl into a folder.*evaluation.data_dir"):
        load_benchmarks(EvaluationSettings(tasks=("e2e_slots",)), tiny[1])
    with pytest.raises(EvaluationError, match=r"chrf/test.jsonl missing; put the data there, or remove") as error:
        load_benchmarks(EvaluationSettings(tasks=("chrf",), data_dir=str(tmp_path)), tiny[1])
    assert "Hub" not in str(error.value)
    file = tmp_path / "choice" / "test.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps({"prompt": "a", "choices": ["x", "y"], "answer": 0}) + "\n{broken\n")
    with pytest.raises(EvaluationError, match=r"choice: 1 of 2 rows.*test.jsonl:2"):
        load_benchmarks(EvaluationSettings(tasks=("choice",), data_dir=str(tmp_path)), tiny[1])
    file.write_text("")
    with pytest.raises(EvaluationError, match="choice: "):
        load_benchmarks(EvaluationSettings(tasks=("choice",), data_dir=str(tmp_path)), tiny[1])
