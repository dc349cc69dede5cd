"""The label doctor: nothing is found in sound data, and a planted fault is found, counted, and nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_tokenizers import adding, byte_level, metaspace
from tokenclean.errors import PoolError, RecipeError
from tokenclean.pool import Conversation, LabelledTokens, Pool, ToolCall, Turn
from tokenclean.recipe import source_from
from tokenclean.tokens import tokenize_pool
from tokenclean.tokens.audit import CHECKS, AuditReport, audit_pool, audit_sources, check_names

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + "
    "'<|eot_id|>' }}{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
    " + m.content + '<end_of_turn>\n' }}{% endfor %}"
)
QWEN_3 = CHATML.replace("m.content", "('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + m.content")

TEXT = st.text(st.sampled_from("ab é🙂한\u0301\n\t <|>/1[]#:"), min_size=1, max_size=12).filter(str.strip)
WORDS = "🙂🏽 naïve e\u0301tude 你好 <|x|> [y] ### z"


def chat(*contents: str, line: int = 1, system: str = "") -> Conversation:
    """User and assistant in turn."""
    turns = tuple(Turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents))
    turns = (Turn("system", system), *turns) if system else turns
    return Conversation(f"s:{line}:x", "s", turns, "chat", "s.jsonl", line)


def completion(prompt: str, answer: str, line: int = 1) -> Conversation:
    turns = (Turn("user", prompt), Turn("assistant", answer))
    return Conversation(f"s:{line}:x", "s", turns, "completion", "s.jsonl", line)


SOUND = [
    chat("What is this?", "A first answer.", line=1),
    chat("Say it", WORDS, "and again", "Something else, of two lines:\nthe second", line=2, system="Be brief."),
    chat("4 + 4", "8", line=3),
    *(chat(f"Question {n}", f"Answer {n}" * (n % 3 + 1), line=n) for n in range(4, 12)),
]


@pytest.fixture(scope="module")
def by_bytes():
    return byte_level(chat_template=CHATML)


def audit(tokenizer, *conversations: Conversation, **options) -> AuditReport:
    return audit_pool(Pool(conversations), tokenizer, **options)


def token_rows(tokenizer, conversations=SOUND, template: str = "tokenizer") -> list[dict[str, Any]]:
    """The conversations as a trainer's rows."""
    tokens = tokenize_pool(Pool(tuple(conversations)), tokenizer, template=template)
    return [
        {"input_ids": ids.tolist(), "labels": np.where(is_response, ids, -100).tolist()}
        for ids, is_response in zip(tokens.input_ids, tokens.is_response, strict=True)
    ]


def audit_rows(tokenizer, rows: list[dict[str, Any]], folder: Path, **options) -> AuditReport:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return audit_sources([source_from({"path": str(path)})], tokenizer, **options)


def retokenized(tokenizer, conversations, template: str) -> list[Conversation]:
    tokens = tokenize_pool(Pool(tuple(conversations)), tokenizer, template=template)
    return [
        Conversation(c.id, "s", (), "tokens", tokens=LabelledTokens(tokens.input_ids[n], tokens.is_response[n]))
        for n, c in enumerate(conversations)
    ]


# Sound data


@pytest.mark.parametrize("template", ["tulu", "tokenizer"])
@pytest.mark.parametrize("form", ["chatml", "llama-2", "llama-2 metaspace", "llama-3", "gemma", "qwen-3", "smollm2"])
def test_our_own_tokenization_is_sound_as_text_and_as_ids(form: str, template: str, smollm2_tokenizer):
    made: dict[str, Callable[[], Any]] = {
        "chatml": lambda: byte_level(" a", "ab", chat_template=CHATML),
        "llama-2": lambda: byte_level(" A", chat_template=LLAMA_2),
        "llama-2 metaspace": lambda: metaspace("▁A", "▁8", chat_template=LLAMA_2),
        "llama-3": lambda: byte_level("\n\n", chat_template=LLAMA_3),
        "gemma": lambda: byte_level(chat_template=GEMMA),
        "qwen-3": lambda: byte_level(chat_template=QWEN_3),
        "smollm2": lambda: smollm2_tokenizer,
    }
    tokenizer = made[form]()
    without_system = [replace(c, turns=tuple(t for t in c.turns if t.role != "system")) for c in SOUND]
    pool = SOUND if form in ("chatml", "llama-3", "gemma", "qwen-3", "smollm2") else without_system
    report = audit(tokenizer, *pool, template=template)
    assert report.counts == {}
    assert (report.rows, report.tokenized) == (len(SOUND), 0)
    report = audit(tokenizer, *retokenized(tokenizer, pool, template))
    assert report.counts == {}
    assert not any(result.unjudged for result in report.results)
    assert report.tokenized == len(SOUND)


FORMATS = {
    "messages": {"messages": [{"role": "user", "content": "Hi{}"}, {"role": "assistant", "content": "Yo"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi{}"}, {"from": "gpt", "value": "Yo"}]},
    "alpaca": {"instruction": "Hi{}", "input": "there", "output": "Yo"},
    "prompt_completion": {"prompt": "Hi{}", "completion": "Yo"},
    "text": {"text": "A plain text {}."},
}


@pytest.mark.parametrize("template", ["tulu", "tokenizer"])
@pytest.mark.parametrize("name", FORMATS)
def test_sound_rows_of_every_format_are_sound(name: str, template: str, by_bytes, tmp_path: Path):
    rows = [json.loads(json.dumps(FORMATS[name]).replace("{}", str(n))) for n in range(5)]
    report = audit_rows(by_bytes, rows, tmp_path, template=template)
    assert report.counts == {}
    assert report.rows == 5
    assert report.targets > 0


def test_a_thread_of_a_message_tree_is_one_row(by_bytes, tmp_path: Path):
    messages = [("1", None, "prompter", "Hi"), ("2", "1", "assistant", "Yo"), ("3", "1", "assistant", "Hm")]
    keys = ("message_id", "parent_id", "role", "text")
    path = tmp_path / "tree.jsonl"
    path.write_text("".join(json.dumps(dict(zip(keys, values, strict=True))) + "\n" for values in messages))
    report = audit_sources([source_from({"path": str(path), "format": "oasst"})], by_bytes)
    assert (report.rows, report.counts) == (1, {})


def test_tool_calls_and_reasoning_are_sound(by_bytes):
    called = Turn("assistant", "", "I had better look.", (ToolCall("look", '{"at": "it"}'),))
    turns = (Turn("system", ""), Turn("user", "Look"), called, Turn("tool", ""), Turn("assistant", "There."))
    row = Conversation("s:1:x", "s", turns, "chat", tools='[{"name":"look"}]')
    assert audit(by_bytes, row, template="tulu").counts == {}
    assert audit(by_bytes, *retokenized(by_bytes, [row], "tulu")).counts == {}


@pytest.mark.parametrize("kind", ["bytes", "smollm2"])
@settings(max_examples=6, deadline=None)
@given(
    pool=st.lists(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), min_size=4, max_size=20),
    template=st.sampled_from(["tulu", "tokenizer"]),
    is_stripped=st.booleans(),
)
def test_random_conversations_are_sound(kind, by_bytes, smollm2_tokenizer, pool, template, is_stripped):
    tokenizer = by_bytes if kind == "bytes" else smollm2_tokenizer
    rows = []
    for line, texts in enumerate(pool):
        contents = [text.strip() if is_stripped else text for pair in texts for text in pair]
        rows.append(chat(f"{line} {contents[0]}", *contents[1:], line=line))
    # SmolLM2's template puts an answer's first line break into one token with its own.
    allowed = set() if is_stripped or template == "tulu" or kind == "bytes" else {"blank_boundary"}
    assert audit(tokenizer, *rows, template=template).counts.keys() <= allowed
    assert audit(tokenizer, *retokenized(tokenizer, rows, template)).counts.keys() <= allowed


def test_cleaned_labels_are_no_fault(by_bytes):
    """Token selection leaves gaps everywhere, over the end tokens and the first tokens too."""
    random.seed(3)
    kept = []
    for row in retokenized(by_bytes, [chat(f"Q{n}", f"An answer {n} " * 4, line=n) for n in range(30)], "tokenizer"):
        assert row.tokens is not None
        chosen = row.tokens.is_response & (np.array([random.random() for _ in row.tokens.is_response]) < 0.6)
        kept.append(replace(row, tokens=LabelledTokens(row.tokens.input_ids, chosen)))
    report = audit(by_bytes, *kept)
    assert report.counts == {}
    assert report.is_selected
    assert report["eos_cut"].unjudged
    assert report["boundary_drift"].unjudged
    assert not report["prompt_trained"].unjudged
    ids = kept[0].tokens.input_ids[:-4]
    for place in (-1, -2):  # a cut behind a target, and behind a token that was dropped
        cut = kept[0].tokens.is_response[:-4].copy()
        cut[-2:] = False
        cut[place] = True
        row = replace(kept[0], tokens=LabelledTokens(ids, cut))
        assert audit(by_bytes, *kept[1:], row, max_length=len(ids)).counts["truncated"] >= 1
        assert "eos_cut" not in audit(by_bytes, *kept[1:], row, max_length=len(ids)).counts


# One fault, planted into rows that came tokenized


def answer_of(row: dict[str, Any]) -> list[int]:
    """Positions of the last answer with its end token."""
    places = [place for place, label in enumerate(row["labels"]) if label != -100]
    first = max(p for p in places if p - 1 not in places)
    return [p for p in places if p >= first]


def train_question(row, _tokenizer):
    row["labels"][8] = row["input_ids"][8]
    row["labels"][9] = row["input_ids"][9]


def train_all(row, _tokenizer):
    row["labels"] = list(row["input_ids"])


def mask_end(row, _tokenizer):
    row["labels"][answer_of(row)[-1]] = -100


def drop_end(row, _tokenizer):
    end = answer_of(row)[-1]
    for values in row.values():
        del values[end:]


def mask_all(row, _tokenizer):
    row["labels"] = [-100] * len(row["labels"])


def label_first_token_only(row, _tokenizer):
    row["labels"] = [row["input_ids"][0]] + [-100] * (len(row["labels"]) - 1)


def shift_left(row, _tokenizer):
    row["labels"] = [*row["labels"][1:], -100]


def shift_right(row, _tokenizer):
    row["labels"] = [-100, *row["labels"][:-1]]


def change_label(row, _tokenizer):
    row["labels"][answer_of(row)[1]] += 1


def ignore_by_minus_one(row, _tokenizer):
    row["labels"] = [-1 if label == -100 else label for label in row["labels"]]


def train_masked_padding(row, tokenizer):
    row["attention_mask"] = [1] * len(row["labels"]) + [0, 0]
    row["input_ids"] += [0, 0]
    row["labels"] += [0, 0]


def use_unknown_id(row, _tokenizer):
    row["input_ids"][5] = 10_000_000


def double_bos(row, tokenizer):
    row["input_ids"] = [tokenizer.bos_token_id] * 2 + row["input_ids"]
    row["labels"] = [-100, -100, *row["labels"]]


def double_marker(row, tokenizer):
    ids = tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
    row["input_ids"] = ids + row["input_ids"]
    row["labels"] = [-100] * len(ids) + row["labels"]


def mask_beginning(row, _tokenizer):
    row["labels"][answer_of(row)[0]] = -100


def train_marker(row, _tokenizer):
    for place in range(answer_of(row)[0] - 4, answer_of(row)[0]):
        row["labels"][place] = row["input_ids"][place]


def empty_answer(row, _tokenizer):
    places = answer_of(row)
    for values in row.values():
        del values[places[0] : places[-1]]


def drop_template(row, tokenizer):
    row["input_ids"] = tokenizer(f"What? {len(row['labels'])}.</s>", add_special_tokens=False)["input_ids"]
    row["labels"] = [-100] * 6 + row["input_ids"][6:]


def end_in_question(row, tokenizer):
    row["input_ids"][8:8] = tokenizer("x<|im_end|>x", add_special_tokens=False)["input_ids"]
    row["labels"][8:8] = [-100] * 3


def opener_in_question(row, tokenizer):
    row["input_ids"][8:8] = tokenizer("x<|im_start|>!", add_special_tokens=False)["input_ids"]
    row["labels"][8:8] = [-100] * 3


def whole_turn_in_question(row, tokenizer):
    ids = tokenizer("x<|im_start|>user\nx", add_special_tokens=False)["input_ids"]
    row["input_ids"][8:8] = ids
    row["labels"][8:8] = [-100] * len(ids)


def cut_labels(row, _tokenizer):
    del row["labels"][-1]


PLANTED = {
    train_question: "prompt_trained",
    train_all: "prompt_trained",
    mask_end: "eos_cut",
    drop_end: "eos_cut",
    mask_all: "all_masked",
    label_first_token_only: "all_masked",
    shift_left: "labels_shifted",
    shift_right: "labels_shifted",
    change_label: "foreign_labels",
    ignore_by_minus_one: "foreign_labels",
    train_masked_padding: "padding_trained",
    use_unknown_id: "unknown_ids",
    double_bos: "template_doubled",
    double_marker: "template_doubled",
    mask_beginning: "boundary_drift",
    train_marker: "boundary_drift",
    empty_answer: "empty_answer",
    drop_template: "template_missing",
    end_in_question: "control_in_text",
    opener_in_question: "control_in_text",
    whole_turn_in_question: "control_in_text",
    cut_labels: "set_aside",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_fault_planted_into_tokenized_rows_is_found_and_nothing_else(plant, by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes)
    for place in (1, 5):  # a multi-turn row with a system turn, and a plain one; their lengths differ
        plant(rows[place], by_bytes)
    report = audit_rows(by_bytes, rows, tmp_path)
    name = PLANTED[plant]
    assert report.counts == {name: 2}
    assert report[name].share == pytest.approx(2 / len(rows))
    assert [example.place.rsplit(":", 1)[1] for example in report[name].examples] == ["2", "6"]
    assert report.has_errors == (CHECKS[name].severity == "error")


@pytest.mark.parametrize("plant", [mask_end, drop_end, mask_beginning, shift_left, mask_all, empty_answer])
def test_a_fault_is_found_where_the_markers_are_text(plant, by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes, template="tulu")
    for place in (1, 5):
        plant(rows[place], by_bytes)
    assert audit_rows(by_bytes, rows, tmp_path).counts == {PLANTED[plant]: 2}


@pytest.mark.parametrize("plant", [mask_end, drop_end, shift_left, shift_right, change_label, empty_answer])
def test_some_faults_are_found_without_any_marker(plant, by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes, [completion(f"Prompt {n}", f"Answer {n}" * (n % 4 + 1)) for n in range(12)])
    assert audit_rows(by_bytes, rows, tmp_path).counts == {}
    for place in (1, 6):
        plant(rows[place], by_bytes)
    report = audit_rows(by_bytes, rows, tmp_path)
    assert report.counts == {PLANTED[plant]: 2}
    assert sum(report["prompt_trained"].unjudged.values()) == 12


def test_an_example_shows_what_is_trained_and_what_is_at_fault(by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes, [chat("Hi", "Yo")])
    mask_end(rows[0], by_bytes)
    (example,) = audit_rows(by_bytes, rows, tmp_path)["eos_cut"].examples
    assert [(p.text, p.is_trained, p.is_at_fault) for p in example.pieces][-4:] == [
        ("Y", True, False),
        ("o", True, True),
        ("<|im_end|>", False, True),
        ("\n", False, False),
    ]
    assert example.ends_row
    assert example.text == "the end token behind the answer is masked"


def test_every_answer_of_a_row_is_looked_at(by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes, [chat("a", "b", "c", "d", "e", "f"), *SOUND])
    ends = [n for n, label in enumerate(rows[0]["labels"]) if label == by_bytes.convert_tokens_to_ids("<|im_end|>")]
    for place in ends[:2]:
        rows[0]["labels"][place] = -100
    result = audit_rows(by_bytes, rows, tmp_path)["eos_cut"]
    assert (result.rows, result.places) == (1, 2)


def test_an_answer_left_out_on_purpose_is_no_fault(by_bytes):
    row = chat("a", "b", "c", "d")
    row = replace(row, turns=(row.turns[0], replace(row.turns[1], is_trained=False), *row.turns[2:]))
    assert audit(by_bytes, row).counts == {}
    assert audit(by_bytes, *retokenized(by_bytes, [row, *SOUND], "tokenizer")).counts == {}


def test_padding_is_told_from_the_end_token_that_it_is_made_of(tmp_path: Path):
    tokenizer = byte_level(chat_template=CHATML.replace("<|im_end|>", "</s>"), pad_token="</s>")
    rows = token_rows(tokenizer)
    for row in rows:
        del row["input_ids"][-1], row["labels"][-1]  # the line break
        row["labels"] += [-100] * 3
        row["input_ids"] += [tokenizer.pad_token_id] * 3
    assert audit_rows(tokenizer, rows, tmp_path).counts == {}
    rows[2]["labels"][-2] = tokenizer.pad_token_id
    assert audit_rows(tokenizer, rows, tmp_path).counts == {"padding_trained": 1}
    mask_end(rows[3], tokenizer)  # masked by id, as some collators do
    assert audit_rows(tokenizer, rows, tmp_path).counts == {"padding_trained": 1, "eos_cut": 1}


def test_bos_of_the_tokenizer_and_of_the_template(tmp_path: Path):
    tokenizer = adding(byte_level(chat_template="{{ bos_token }}" + CHATML), "<s> $A")
    text = "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    ids = tokenizer(text)["input_ids"]  # adds a second one
    rows = token_rows(tokenizer)
    rows.append({"input_ids": ids, "labels": [-100] * (len(ids) - 4) + ids[-4:-1] + [-100]})
    assert audit_rows(tokenizer, rows, tmp_path).counts == {"template_doubled": 1}
    assert audit(tokenizer, *SOUND, template="tokenizer").counts == {}
    assert audit(tokenizer, *SOUND, template="tulu").counts == {}


def test_a_pack_of_samples_is_sound(tmp_path: Path):
    tokenizer = byte_level(chat_template="{{ bos_token }}" + CHATML)
    rows = token_rows(tokenizer)
    packs = [{key: [*first[key], *second[key]] for key in first} for first, second in pairwise(rows)]
    assert audit_rows(tokenizer, packs, tmp_path).counts == {}


@pytest.mark.parametrize("template", ["tulu", "tokenizer"])
def test_an_earlier_cut_is_told_from_a_missing_end(template: str, by_bytes, tmp_path: Path):
    long = [chat(f"Tell {n}", f"A long story {n} " * 9, line=n) for n in range(20, 24)]
    rows = token_rows(by_bytes, [SOUND[0], *SOUND[2:], *long], template)
    cut = [{key: values[:100] for key, values in row.items()} for row in rows]
    assert audit_rows(by_bytes, cut, tmp_path).counts == {"truncated": sum(len(r["labels"]) > 100 for r in rows)}
    assert audit_rows(by_bytes, cut, tmp_path, max_length=99).counts["truncated"] >= 4
    report = audit(by_bytes, *SOUND, *long, template=template, max_length=100)
    assert report.counts["truncated"] >= 4
    assert report.counts.keys() - {"loop", "repeated_opener"} == {"truncated"}  # these are true of the long stories


def test_a_prompt_longer_than_the_maximum_loses_its_answer(by_bytes):
    assert audit(by_bytes, chat("long " * 30, "answer"), *SOUND, max_length=100).counts["truncated"] >= 1
    assert "all_masked" not in audit(by_bytes, chat("long " * 30, "answer"), *SOUND, max_length=100).counts


def test_rows_that_repeat_others(by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes)
    assert audit_rows(by_bytes, [*rows, rows[3], rows[3], rows[0]], tmp_path).counts == {"duplicated": 3}
    twice = replace(SOUND[2], id="s:90:x", turns=(SOUND[2].turns[0], replace(SOUND[2].turns[1], content="8 ")))
    report = audit(by_bytes, *SOUND, twice, twice)
    assert report.counts == {"duplicated": 2}
    assert [example.text for example in report["duplicated"].examples] == ["the same as s:3:x"] * 2


def test_a_template_asked_for_is_expected_of_tokenized_rows(by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes, [completion("Prompt", "Answer"), completion("Another", "more")])
    report = audit_rows(by_bytes, rows, tmp_path)
    assert report.counts == {}
    assert sum(report["template_missing"].unjudged.values()) == 2
    assert audit_rows(by_bytes, rows, tmp_path, template="tokenizer").counts == {"template_missing": 2}


def test_thoughts_that_the_template_writes_may_be_masked_or_trained(tmp_path: Path):
    tokenizer = byte_level(chat_template=QWEN_3)
    rows = token_rows(tokenizer)
    thought = len(tokenizer("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"])
    assert audit_rows(tokenizer, rows, tmp_path).counts == {}
    for row in rows:
        first = answer_of(row)[0]
        row["labels"][first - thought : first] = row["input_ids"][first - thought : first]
    assert audit_rows(tokenizer, rows, tmp_path).counts == {}
    for place in answer_of(rows[2])[:2]:
        rows[2]["labels"][place] = -100
    assert audit_rows(tokenizer, rows, tmp_path).counts == {"boundary_drift": 1}


# Faults of conversations


def test_control_and_special_tokens_in_messages(by_bytes):
    rows = [
        chat("How does <|im_end|> work?", "It ends a turn.", line=30),
        chat("Hm?", "Write </s> at the end.", line=31),
        chat("What is <unk>?", "An unknown word.", line=32),
    ]
    report = audit(by_bytes, *SOUND, *rows, template="tokenizer")
    assert report.counts == {"control_in_text": 2, "special_in_text": 1}
    example = report["control_in_text"].examples[0]
    assert [piece.text for piece in example.pieces if piece.is_at_fault] == ["<|im_end|>"]


def test_a_text_about_a_token_that_the_tokenizer_does_not_know_is_no_fault(by_bytes):
    assert audit(by_bytes, chat("How does <|eot|> work?", "It ends a turn.")).counts == {}


@pytest.mark.parametrize(
    "message",
    [
        "[INST] What is it? [/INST] That.",
        "<|user|>\nWhat is it?\n<|assistant|>\n",
        "Below is an instruction.\n\n### Instruction:\nWhat is it?\n\n### Response:\n",
        "Hear: <｜User｜>What is it?<｜Assistant｜>",
    ],
)
def test_templated_messages(message: str):
    tokenizer = metaspace()
    assert audit(tokenizer, chat(message, "answer"), chat("Hi", "Yo")).counts.get("template_doubled") == 1
    for harmless in ("### Input:\nnone", "Say [INST] or <|user|>\n", "instruction: x"):
        assert "template_doubled" not in audit(tokenizer, chat(harmless, "answer")).counts


def test_a_prompt_that_comes_templated_is_meant(by_bytes):
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert audit(by_bytes, completion(prompt, "Yo")).counts == {}
    assert audit(by_bytes, completion(prompt, "Yo</s>")).counts == {}  # its end came rendered too
    assert audit(by_bytes, completion(prompt, "Yo</s> and")).counts == {"control_in_text": 1}


def test_a_template_without_an_end_token():
    tokenizer = byte_level(chat_template=CHATML.replace("<|im_end|>", ""))
    assert audit(tokenizer, *SOUND, template="tokenizer").counts == {"eos_cut": len(SOUND)}


def test_tokens_across_the_boundary():
    tokenizer = byte_level(" word", "\n\n", "\nA", chat_template=CHATML)
    assert audit(tokenizer, completion("x ", "word a"), completion("y", "word a")).counts == {"boundary_drift": 1}
    rows = [chat("x", "\nanswer"), chat("y", "answer"), chat("z", "Answer")]
    counts = {"boundary_drift": 1, "blank_boundary": 1}
    assert audit(tokenizer, *rows, template="tokenizer").counts == counts
    assert audit(tokenizer, *retokenized(tokenizer, rows, "tokenizer")).counts == counts


def test_rows_that_cannot_be_used(by_bytes, tmp_path: Path):
    rows = [
        {"instruction": "Hi", "output": " "},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "train": False}]},
        {"messages": "none"},
        {"instruction": "Hi", "output": "Yo"},
        {"input_ids": [1, 2.5], "labels": [1, 2]},
    ]
    report = audit_rows(by_bytes, rows, tmp_path)
    assert report.counts == {"all_masked": 1, "empty_answer": 1, "set_aside": 2}
    assert report.rows == 5
    assert "expected an integer, found 2.5" in report["set_aside"].examples[1].text


def test_a_file_without_any_usable_row_is_read_to_its_end(by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes)
    for row in rows:
        shift_left(row, by_bytes)
    report = audit_rows(by_bytes, rows, tmp_path)  # the pool's reading refuses them all
    assert report.counts == {"labels_shifted": len(rows)}
    rows = [json.dumps({"instruction": "Hi", "output": " "})] * 3
    (tmp_path / "blank.jsonl").write_text("\n".join(rows))
    for form in ("auto", "alpaca"):
        source = source_from({"path": str(tmp_path / "blank.jsonl"), "format": form})
        assert audit_sources([source], by_bytes).counts == {"empty_answer": 3}
    with pytest.raises(PoolError, match="no such file"):
        audit_sources([source_from({"path": str(tmp_path / "none.jsonl")})], by_bytes)
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(PoolError, match="holds no row"):
        audit_sources([source_from({"path": str(tmp_path / "empty.json")})], by_bytes)


def test_mapped_columns_and_parquet(by_bytes, tmp_path: Path):
    rows = [{"ids": row["input_ids"], "targets": row["labels"]} for row in token_rows(by_bytes)]
    rows[4]["targets"] = [*rows[4]["targets"][1:], -100]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    columns = {"input_ids": "ids", "labels": "targets"}
    source = source_from({"path": str(tmp_path / "rows.parquet"), "columns": columns})
    report = audit_sources([source], by_bytes)
    assert report.counts == {"labels_shifted": 1}
    assert audit_sources([source], by_bytes, max_rows=4).rows == 4


def test_checks_are_chosen_by_name(by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes)
    shift_left(rows[0], by_bytes)
    mask_all(rows[1], by_bytes)
    report = audit_rows(by_bytes, rows, tmp_path, checks=["all_masked", "duplicated"])
    assert [result.name for result in report.results] == ["all_masked", "duplicated"]
    assert report.counts == {"all_masked": 1}
    with pytest.raises(RecipeError, match="did you mean eos_cut"):
        check_names(["eos_cutt"])


def test_a_report_is_json(by_bytes, tmp_path: Path):
    rows = token_rows(by_bytes)
    shift_left(rows[0], by_bytes)
    written = json.loads(json.dumps(audit_rows(by_bytes, rows, tmp_path).to_json()))
    assert written["has_errors"] is True
    assert [result["name"] for result in written["results"]] == list(CHECKS)
    assert all(check.meaning and check.remedy for check in CHECKS.values())


# Checks of texts, which look has too


def test_the_checks_of_texts_find_conversations_and_mark_the_tokens(by_bytes):
    refusal = chat("Browse", "I'm sorry, but as an AI language model I cannot browse the web.", line=30)
    cut = chat("Explain", "Calcium is a metal with the symbol Ca and it has an atomic number of", line=31)
    story = "The harbour was built by two brothers who came from the north with {} ships in a very cold winter."
    near = [chat("Tell me about the harbour.", story.format(count), line=line) for line, count in ((32, 3), (33, 4))]
    report = audit(by_bytes, *SOUND, refusal, cut, *near)
    assert report.counts == {"refusal": 1, "cut_end": 1, "near_duplicate": 1, "repeated_prompt": 1}
    assert not report.has_errors
    (example,) = report["refusal"].examples
    marked = "".join(piece.text for piece in example.pieces if piece.is_at_fault)
    assert marked.startswith("I'm sorry, but as an AI")
    assert report["near_duplicate"].examples[0].text.endswith("like s.jsonl:32")
    only = audit(by_bytes, *SOUND, refusal, cut, checks=["cut_end", "refusal"])
    assert [result.name for result in only.results] == ["refusal", "cut_end"]
    assert audit(by_bytes, *retokenized(by_bytes, [refusal, cut], "tulu")).counts == {}
