"""The Tulu template in Jinja gives what ``template.render`` gives, and with it the ids that training sees."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_tokenizers import EOS, adding, byte_level, metaspace
from tokenclean.errors import TemplateError
from tokenclean.pool import Conversation, Turn
from tokenclean.pool.conversation import ToolCall
from tokenclean.tokens import render, tokenize_pool
from tokenclean.tokens.inference_template import end_token_ids, give_template
from tokenclean.tokens.tokenizer_template.chat import Chat

TEXT = st.text(st.sampled_from("ab é🙂한\u0301\u00a0\n\t <|>/s{}%'\"\\"), max_size=12)
VALUES = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | TEXT, lambda inner: st.lists(inner, max_size=2))
CALLS = st.builds(
    lambda name, arguments: ToolCall(name, json.dumps(arguments, ensure_ascii=False)),
    TEXT,
    st.dictionaries(TEXT, VALUES, max_size=2),
)
TURNS = st.lists(
    st.builds(Turn, st.sampled_from(["system", "user", "tool"]), TEXT)
    | st.builds(Turn, st.just("assistant"), TEXT, reasoning=TEXT, tool_calls=st.lists(CALLS, max_size=2).map(tuple)),
    min_size=1,
    max_size=6,
)
TOOLS = st.lists(st.dictionaries(TEXT, VALUES, max_size=2), max_size=2).map(
    lambda tools: json.dumps(tools, ensure_ascii=False, separators=(",", ":")) if tools else ""
)
CHAT = Conversation(
    "id",
    "source",
    (
        Turn("system", " be brief "),
        Turn("user", "hi\n"),
        Turn("assistant", "yes?"),
        Turn("user", ""),
        Turn("user", "x"),
    ),
)


@pytest.fixture(scope="module")
def tulu():
    tokenizer = byte_level()
    give_template(tokenizer, "tulu")
    return tokenizer


@settings(deadline=None, max_examples=300)
@given(turns=TURNS, tools=TOOLS)
def test_jinja_renders_byte_for_byte_what_training_renders(tulu, turns, tools):
    conversation = Conversation("id", "source", tuple(turns), tools=tools)
    chat = Chat(conversation, tulu)
    assert chat.apply(chat.messages) == render(conversation, tulu).text


@settings(deadline=None)
@given(turns=TURNS, answer=TEXT)
def test_the_generation_prompt_ends_where_the_answer_begins(tulu, turns, answer):
    asked = Chat(Conversation("id", "source", tuple(turns)), tulu)
    answered = render(Conversation("id", "source", (*turns, Turn("assistant", answer))), tulu)
    assert answered.text == asked.apply(asked.messages, has_prompt=True) + answer.strip() + EOS


def test_messages_as_servers_send_them(tulu):
    """Arguments as JSON text, and no content beside a call."""
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns = (Turn("user", "q"), Turn("assistant", "", tool_calls=(ToolCall("f", '{"a": 1}'),)))
    expected = render(Conversation("id", "source", turns), tulu).text
    assert tulu.apply_chat_template(messages, tokenize=False) == expected


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(),
        adding(byte_level(), "<s> $A"),
        adding(byte_level(), "<s> $A </s>"),
        metaspace(),
        adding(metaspace(), "<s> $A"),
        adding(metaspace(is_legacy=True), "<s> $A"),
    ],
    ids=["no BOS", "BOS", "BOS and EOS", "metaspace", "metaspace with BOS", "Llama-2's metaspace"],
)
def test_the_ids_are_those_of_training_bos_included(tokenizer, tmp_path):
    give_template(tokenizer, "tulu")
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    answered = Conversation("id", "source", (*CHAT.turns, Turn("assistant", "well")))
    expected = tokenize_pool([answered], tokenizer).input_ids[0].tolist()
    found = loaded.apply_chat_template(Chat(answered, tokenizer).messages, return_dict=False)
    assert found == expected


def test_the_tokenizers_own_template_stays_and_its_end_token_ends():
    own = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer = byte_level(chat_template=own)
    ends = end_token_ids(tokenizer, "tokenizer")
    assert tokenizer.convert_ids_to_tokens(ends) == [EOS, "<|im_end|>"]
    give_template(tokenizer, "tokenizer")
    assert tokenizer.chat_template == own
    give_template(tokenizer, "tulu")
    assert tokenizer.chat_template != own
    assert tokenizer.convert_ids_to_tokens(end_token_ids(tokenizer, "tulu")) == [EOS]


def test_a_tokenizer_that_no_template_can_serve_is_refused():
    with pytest.raises(TemplateError, match="no chat template makes this tokenizer give the ids of training"):
        give_template(adding(byte_level(), "$A <s> $A"), "tulu")


def test_a_template_that_the_tokenizer_lacks_is_refused():
    with pytest.raises(TemplateError, match="no chat template"):
        give_template(byte_level(), "tokenizer")
