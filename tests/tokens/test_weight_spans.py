"""Token weights as characters of the messages, there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_tokenizers import byte_level
from tokenclean.errors import PoolError
from tokenclean.pool import Conversation, Turn
from tokenclean.pool.conversation import ToolCall
from tokenclean.ragged import Ragged
from tokenclean.tokens import TokenizedPool, tokenize_pool
from tokenclean.tokens.weight_spans import WeightSpan, spans_of_weights, weights_of_spans

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
QUESTION = Turn("user", "ask")
WEIGHTS = (-1.0, 0.0, 0.1, 0.5, 1.0, 1.5)
# Characters of one byte: two tokens never share one.
ASCII = st.text(st.sampled_from("ab c\n<|>/1"), min_size=1, max_size=12)


def answered(*answers: Turn) -> Conversation:
    return Conversation("s:1:x", "s", tuple(turn for answer in answers for turn in (QUESTION, answer)))


def full(tokens: TokenizedPool) -> Ragged:
    return tokens.is_response.map_values(lambda values: values.astype(np.float32))


def weights_by_text(tokens: TokenizedPool, weights: dict[str, float], tokenizer) -> Ragged:
    """Weight 1 for each response token, except those spelled as a key of ``weights``."""
    texts = [tokenizer.decode([token]) for token in tokens.input_ids.values]
    values = [weights.get(text, 1.0) for text in texts]
    return tokens.is_response.with_values(np.where(tokens.is_response.values, np.array(values, np.float32), 0))


@settings(max_examples=80, deadline=None)
@given(
    answers=st.lists(st.tuples(ASCII, st.booleans()), min_size=1, max_size=3),
    template=st.sampled_from(["tulu", "tokenizer"]),
    seed=st.integers(0, 1000),
)
def test_weights_to_spans_and_back_are_the_same(answers, template, seed):
    tokenizer = byte_level("ab", " c", "<|>", "ab c", chat_template=CHATML)
    turns = [Turn("assistant", text, is_trained=trained) for text, trained in answers]
    tokens = tokenize_pool([answered(*turns, Turn("assistant", "end"))], tokenizer, template=template)
    random = np.random.default_rng(seed)
    drawn = random.choice(np.array(WEIGHTS, np.float32), len(tokens.input_ids.values))
    weights = tokens.is_response.with_values(np.where(tokens.is_response.values, drawn, np.float32(0)))
    spans = spans_of_weights(tokens, weights)
    back = weights_of_spans(tokens, spans, full(tokens))
    np.testing.assert_array_equal(back.values, weights.values)
    assert back.values.dtype == np.float32
    assert spans_of_weights(tokens, back) == spans
    ordered = [(span.message, span.start, span.end) for span in spans[0]]
    assert ordered == sorted(ordered)
    for before, after in zip(spans[0], spans[0][1:], strict=False):
        assert before.message < after.message or before.end <= after.start


def test_only_what_is_not_trained_with_weight_1_has_a_span():
    tokenizer = byte_level("the", " cat")
    turns = (Turn("assistant", " the cat "), Turn("assistant", "the", is_trained=False), Turn("assistant", "no cat"))
    tokens = tokenize_pool([answered(*turns)], tokenizer)
    assert spans_of_weights(tokens, full(tokens)) == [(WeightSpan(3, 0, 4, 0.0),)]
    weights = weights_by_text(tokens, {" cat": 0.1, "the": 0.1, "n": -1.0, "</s>": 0.0}, tokenizer)
    assert spans_of_weights(tokens, weights) == [
        (
            WeightSpan(1, 1, 8, 0.1),
            WeightSpan(1, 9, 10, 0.0),
            WeightSpan(3, 0, 4, 0.0),
            WeightSpan(5, 0, 1, -1.0),
            WeightSpan(5, 2, 6, 0.1),
            WeightSpan(5, 6, 7, 0.0),
        )
    ]


def test_the_end_token_behind_tool_calls_and_thoughts_has_its_place_and_they_have_none():
    call = ToolCall("f", '{"a": 1}')
    tokens = tokenize_pool([answered(Turn("assistant", "hi", reasoning="so", tool_calls=(call,)))], byte_level())
    nothing = full(tokens).map_values(np.zeros_like)
    spans = spans_of_weights(tokens, nothing)
    assert spans == [(WeightSpan(1, 0, 3, 0.0),)]
    back = weights_of_spans(tokens, spans, full(tokens))
    left = tokens.input_ids[0][(back[0] > 0)]
    text = byte_level().decode(left)
    assert text == '<think>\nso\n</think>\n\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def test_what_the_cut_left_out_is_a_span_of_weight_0():
    tokens = tokenize_pool([answered(Turn("assistant", "abcdef"), Turn("assistant", "g"))], byte_level(), max_length=31)
    assert spans_of_weights(tokens, full(tokens)) == [(WeightSpan(1, 4, 7, 0.0), WeightSpan(3, 0, 2, 0.0))]


def test_tokens_that_share_a_character_take_the_smallest_weight():
    tokens = tokenize_pool([answered(Turn("assistant", "a🙂b"))], byte_level())
    values = full(tokens).values.copy()
    first = np.flatnonzero(tokens.is_response.values)[0]
    values[first + 1 : first + 5] = [0.5, 0.25, 1.0, 0.5]  # four bytes of one character
    spans = spans_of_weights(tokens, tokens.input_ids.with_values(values))
    assert spans == [(WeightSpan(1, 1, 2, 0.25),)]
    back = weights_of_spans(tokens, spans, full(tokens)).values
    assert back[first : first + 7].tolist() == [1.0, 0.25, 0.25, 0.25, 0.25, 1.0, 1.0]


def test_spans_of_another_tokenizer_take_the_smaller_weight_at_their_borders():
    tokens = tokenize_pool([answered(Turn("assistant", "abcdef"))], byte_level("bc", "def"))
    spans = [(WeightSpan(1, 0, 2, 0.5), WeightSpan(1, 2, 3, -0.5), WeightSpan(1, 4, 5, 2.0))]
    back = weights_of_spans(tokens, spans, full(tokens))
    assert back[0][tokens.is_response[0]].tolist() == [0.5, -0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "span",
    [
        WeightSpan(0, 0, 1, 0.0),
        WeightSpan(1, -1, 1, 0.0),
        WeightSpan(1, 1, 1, 0.0),
        WeightSpan(1, 0, 4, 0.0),
        WeightSpan(1, 0, 1, float("nan")),
    ],
)
def test_a_span_that_is_in_no_answer_is_an_error_with_row_and_message(span):
    tokens = tokenize_pool([answered(Turn("assistant", "ab"))], byte_level())
    with pytest.raises(PoolError, match=f"'s:1:x'.*message {span.message}"):
        weights_of_spans(tokens, [(span,)], full(tokens))


def test_other_rows_and_weights_that_are_no_number_are_refused():
    tokens = tokenize_pool([answered(Turn("assistant", "ab"))], byte_level())
    with pytest.raises(ValueError, match="expected spans of 1 rows"):
        weights_of_spans(tokens, [], full(tokens))
    with pytest.raises(ValueError, match="finite"):
        spans_of_weights(tokens, full(tokens).map_values(lambda values: values * np.nan))
