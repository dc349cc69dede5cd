"""Loss weights that the data state, from messages to token columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from small_tokenizers import byte_level
from tokenclean.exporting.cleaned_file import read_cleaned, write_cleaned
from tokenclean.pool import Conversation, Turn
from tokenclean.pool.conversation import LabelledTokens
from tokenclean.selection import select_tokens
from tokenclean.selection.select_table import select_table
from tokenclean.token_table import multiply_weights, read_table, write_table
from tokenclean.tokens import tokenize_pool

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
QUESTION = Turn("user", "ask")


def answered(*answers: Turn) -> Conversation:
    turns = tuple(turn for answer in answers for turn in (QUESTION, answer))
    return Conversation("s:1:x", "s", turns, original_id="mine")


def weights_of(conversation: Conversation, template: str = "tulu", **options) -> list[tuple[str, float]]:
    """Each target's text and weight; the tokenizer has a token a byte, so a character has one too."""
    tokenizer = byte_level(chat_template=CHATML)
    tokens = tokenize_pool([conversation], tokenizer, template=template, **options)
    assert tokens.weight is not None
    np.testing.assert_array_equal(tokens.weight.values > 0, tokens.is_response.values)
    texts = [tokenizer.decode([token]) for token in tokens.input_ids[0]]
    return [(text, float(weight)) for text, weight in zip(texts, tokens.weight[0], strict=True) if weight]


def test_a_turns_weight_covers_its_thoughts_and_end_token():
    said = weights_of(answered(Turn("assistant", "ab", reasoning="c", weight=0.5), Turn("assistant", "d")))
    assert "".join(text for text, _ in said) == "<think>\nc\n</think>\n\nab</s>d</s>"
    assert {weight for _, weight in said[:-2]} == {0.5}
    assert said[-2:] == [("d", 1.0), ("</s>", 1.0)]


def test_spans_have_weights_of_their_own_and_zero_is_no_target():
    turn = Turn("assistant", "  abcdef ", spans=((0, 4, 0.0), (5, 7, 0.25)))
    for template, end in (("tulu", "</s>"), ("tokenizer", "<|im_end|>")):
        said = weights_of(answered(turn), template)
        said = [(text, weight) for text, weight in said if text != " "]  # Tulu strips, ChatML keeps
        assert said == [("c", 1.0), ("d", 0.25), ("e", 0.25), ("f", 1.0), (end, 1.0)]


def test_a_token_across_a_border_takes_the_smaller_weight():
    tokenizer = byte_level("bc", "def")
    turn = Turn("assistant", "abcdef", weight=0.5, spans=((2, 4, 0.25), (4, 6, 1.0)))
    tokens = tokenize_pool([answered(turn)], tokenizer)
    assert tokens.weight is not None
    found = {tokenizer.decode([i]): w for i, w in zip(tokens.input_ids[0], tokens.weight[0], strict=True) if w}
    assert found == {"a": 0.5, "bc": 0.25, "def": 0.25, "</s>": 0.5}


def test_without_weights_there_is_no_column():
    tokens = tokenize_pool([answered(Turn("assistant", "a"), Turn("assistant", "b", is_trained=False))], byte_level())
    assert tokens.weight is None


def test_weights_of_tokens_and_of_the_last_turn():
    labelled = LabelledTokens(np.arange(4), np.array([False, True, True, True]), np.float32([1, 0.5, 1, 1]))
    row = Conversation("t", "s", (), "tokens", tokens=labelled)
    tokens = tokenize_pool([row], byte_level())
    assert tokens.weight is not None
    assert tokens.weight[0].tolist() == [0.0, 0.5, 1.0, 1.0]
    whole = tokenize_pool([row], byte_level(), targets="all").weight
    assert whole is not None
    assert whole[0].tolist() == [0.0, 0.5, 1.0, 1.0]
    chat = answered(Turn("assistant", "a", weight=0.5), Turn("assistant", "b", weight=0.25))
    assert weights_of(chat, targets="last_turn") == [("b", 0.25), ("</s>", 0.25)]


def test_tokens_of_negative_weight_are_unlearned_and_no_targets():
    turn = Turn("assistant", "abcd", weight=-0.5, spans=((0, 1, 1.0), (3, 5, -1.0)))
    tokens = tokenize_pool([answered(turn), answered(Turn("assistant", "x", weight=-1.0))], byte_level())
    assert tokens.weight is not None
    assert not tokens.unusable
    np.testing.assert_array_equal(tokens.is_response.values, tokens.weight.values > 0)
    np.testing.assert_array_equal(tokens.is_trained.values, tokens.weight.values != 0)
    assert [row[row != 0].tolist() for row in tokens.weight] == [[1.0, -0.5, -0.5, -1.0, -1.0], [-1.0, -1.0]]


def test_no_strategy_changes_the_weight_of_a_token_to_unlearn():
    tokens = tokenize_pool([answered(Turn("assistant", "abc", spans=((0, 1, -1.0), (1, 2, 0.5))))], byte_level())
    assert tokens.weight is not None
    kept = tokens.is_response.map_values(lambda values: (values & (np.cumsum(values) == 1)).astype(np.float32))
    weights = multiply_weights(kept, tokens.weight)[0]
    assert weights[weights != 0].tolist() == [-1.0, 0.5]


SPANS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from([0.0, 0.5, 1.0])), max_size=3)


@settings(max_examples=60, deadline=None)
@given(spans=SPANS, weight=st.sampled_from([0.25, 1.0]))
def test_every_character_has_the_weight_of_its_span(spans, weight):
    kept, done = [], 0
    for start, end, value in sorted(spans):
        if start >= done and end > start and value != weight:
            kept.append((start, end, value))
            done = end
    expected = [next((v for a, b, v in kept if a <= c < b), weight) for c in range(8)]
    turn = Turn("assistant", "abcdefgh", weight=weight, spans=tuple(kept))
    tokens = tokenize_pool([answered(turn, Turn("assistant", "x", weight=0.5))], byte_level())
    assert tokens.weight is not None
    first = len("<|user|>\nask\n<|assistant|>\n")
    assert tokens.weight[0][first : first + 8].tolist() == expected


def test_from_scores_to_the_kept_weights_and_the_cleaned_rows(tmp_path: Path):
    conversation = answered(Turn("assistant", "abcd", spans=((0, 2, 0.5),)))
    tokens = tokenize_pool([conversation], byte_level())
    score = tokens.input_ids.map_values(lambda ids: np.where(np.arange(len(ids)) % 2, 1.0, 0.0).astype(np.float32))
    table = tokens.table({}, score=score)
    write_table(table, tmp_path / "scores.parquet")
    assert read_table(tmp_path / "scores.parquet").original_ids == ("mine",)
    select_table(tmp_path / "scores.parquet", tmp_path / "kept.parquet", proportion=0.6)
    kept = read_table(tmp_path / "kept.parquet")
    is_kept = select_tokens(score, tokens.is_response, proportion=0.6)
    assert tokens.weight is not None
    np.testing.assert_array_equal(kept["weight"].values, is_kept.values * tokens.weight.values)
    write_cleaned(kept, tmp_path / "cleaned.parquet")
    cleaned = read_cleaned(tmp_path / "cleaned.parquet")
    assert cleaned.rows.column("token_weight")[0].as_py() == kept["weight"][0].tolist()
    assert cleaned.rows.column("original_id").to_pylist() == ["mine"]
    cleaned.write_row_ids(tmp_path / "row_ids.csv")
    assert (tmp_path / "row_ids.csv").read_text().split() == ["row,id,original_id,source", "0,s:1:x,mine,s"]


QWEN = """{% for m in messages %}{% if m.role == 'assistant' %}{% set why = '' %}{% set said = m.content %}\
{% if m.reasoning_content is string %}{% set why = m.reasoning_content %}{% elif '</think>' in said %}\
{% set why = said.split('</think>')[0].split('<think>')[-1].strip() %}\
{% set said = said.split('</think>')[-1].strip() %}\
{% endif %}{{ '<|im_start|>assistant\n<think>\n' + why + '\n</think>\n\n' + said + '<|im_end|>\n' }}{% else %}\
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def test_a_weight_on_a_thought_that_the_template_rewrites_is_refused():
    tokenizer = byte_level(chat_template=QWEN)
    masked = Turn("assistant", "<think>bad</think>good", spans=((0, 18, 0.0),))
    (fault,) = tokenize_pool([answered(masked)], tokenizer, template="tokenizer").unusable
    assert "a loss weight is set on a thought in the content" in fault.reason
    assert weights_of(answered(masked)) == [*((letter, 1.0) for letter in "good"), ("</s>", 1.0)]
    plain = Turn("assistant", "<think>ok</think>good", spans=((17, 19, 0.5),))
    tokens = tokenize_pool([answered(plain)], tokenizer, template="tokenizer")
    assert not tokens.unusable
