"""Benchmarks through the harness: our passes give what its own model class gives, item by item."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenclean.errors import EvaluationError
from tokenclean.evaluation.harness import PackedLM, evaluate, item_scores
from tokenclean.evaluation.task_data import LoadedBenchmark, load_benchmarks
from tokenclean.evaluation.tasks import BENCHMARKS, benchmark_named
from tokenclean.recipe.settings import EvaluationSettings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    return model, AutoTokenizer.from_pretrained(tiny_model_folder)


def load(tiny, tasks: list[str], data_dir: Path | None = None, **settings) -> list[LoadedBenchmark]:
    place = None if data_dir is None else str(data_dir)
    return load_benchmarks(EvaluationSettings(tasks=tuple(tasks), data_dir=place, **settings), tiny[1])


@pytest.fixture(scope="module")
def everything(tiny, data_dir):
    return load(tiny, list(BENCHMARKS), data_dir, limits={"mmlu": 1, "tydiqa": 1, "xquad": 2})


@pytest.mark.slow
def test_every_answer_is_that_of_the_harness_own_model(tiny, everything):
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny
    ours = PackedLM(model, tokenizer, pack_tokens=300)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    theirs.requested_tokens = theirs.computed_tokens = 0
    for loaded in everything:
        found, expected = evaluate(ours, loaded), evaluate(theirs, loaded)  # pyright: ignore[reportArgumentType]
        assert len(found.questions) == sum(loaded.items.values()) > 0
        for mine, other in zip(found.questions.to_pylist(), expected.questions.to_pylist(), strict=True):
            assert {**mine, "responses": "", "score": 0} == {**other, "responses": "", "score": 0}
            assert mine["score"] == pytest.approx(other["score"], abs=1e-4)
            answers, right = json.loads(mine["responses"]), json.loads(other["responses"])
            if loaded.benchmark.metric in ("f1", "slots", "chrf"):
                assert answers == right
            else:
                assert [greedy for _, greedy in answers] == [greedy for _, greedy in right]
                np.testing.assert_allclose([ll for ll, _ in answers], [ll for ll, _ in right], atol=1e-3)
    assert ours.computed_tokens < 0.5 * ours.requested_tokens


def test_prompts_are_the_harness_own(everything):
    by_name = {loaded.benchmark.name: loaded for loaded in everything}
    task = by_name["mmlu"].tasks["mmlu_anatomy"]
    prompt = task.fewshot_context(task.eval_docs[0], 5)
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\n")
    assert prompt.count("\nAnswer:") == 6
    assert task.get_config("num_fewshot") == 5
    boolq = by_name["boolq"].tasks["boolq"]
    assert boolq.VERSION == 2.0
    assert boolq.doc_to_choice(boolq.eval_docs[0]) == ["no", "yes"]


def test_an_item_of_xquad_is_a_question_in_all_languages(tiny, everything):
    xquad = next(loaded for loaded in everything if loaded.benchmark.name == "xquad")
    found = evaluate(PackedLM(*tiny), xquad)
    assert len(xquad.tasks["xquad_arabic"].eval_docs) == 4  # the fifth is the solved example
    assert len(found.questions) == 3 * 2
    scores, groups = item_scores(found.questions, xquad)
    assert (len(scores), groups) == (2, None)


def test_items_of_mmlu_are_grouped_by_subject(everything):
    mmlu = next(loaded for loaded in everything if loaded.benchmark.name == "mmlu")
    assert len(mmlu.tasks) == 57
    assert mmlu.part_identity("mmlu_anatomy") != mmlu.part_identity("mmlu_astronomy")


def test_other_solved_examples_are_another_benchmark(tiny, data_dir, tmp_path):
    copy = tmp_path / "eval"
    shutil.copytree(data_dir / "mmlu", copy / "mmlu")
    identities = []
    for _ in range(2):
        (loaded,) = load(tiny, ["mmlu"], copy)
        identities.append([loaded.part_identity(part) for part in ("mmlu_anatomy", "mmlu_virology")])
        file = copy / "mmlu/anatomy/dev.jsonl"
        file.write_text(file.read_text().replace("river", "canal"))
    (anatomy, virology), (other, same) = identities
    assert anatomy != other
    assert virology == same


def test_requests_that_are_cut_are_told(tiny, data_dir, caplog):
    (loaded,) = load(tiny, ["boolq"], data_dir, limit=2)
    evaluate(PackedLM(*tiny, max_length=20), loaded)
    assert "4 of 4 requests are longer than the model's 20 tokens and were cut on the left" in caplog.text


def test_limits_by_part_and_by_benchmark(tiny, data_dir):
    loaded = load(tiny, ["mmlu", "boolq"], data_dir, limit=4, limits={"mmlu": 1})
    assert [sum(found.items.values()) for found in loaded] == [57, 4]


@pytest.mark.slow
def test_what_is_missing_is_told_at_once(tiny, tmp_path):
    with pytest.raises(EvaluationError) as error:
        load(tiny, ["boolq", "arc_easy", "no_such_task"], tmp_path)
    text = str(error.value)
    assert "boolq/validation.jsonl missing" in text
    assert "arc_easy/test.jsonl missing" in text
    assert "no_such_task: neither a benchmark" in text


def test_without_network_and_files(tiny, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EvaluationError, match=r"boolq: could not load its data .* evaluation.data_dir"):
        load(tiny, ["boolq"])


def test_any_task_of_the_harness_by_name():
    assert benchmark_named("piqa").parts == ("piqa",)
    assert benchmark_named("mmlu").few_shot == 5
