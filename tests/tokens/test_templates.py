from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_tokenizers import EOS, byte_level
from tokenclean.errors import TemplateError
from tokenclean.pool import Conversation, Turn
from tokenclean.pool.conversation import ToolCall
from tokenclean.tokens import render
from tokenclean.tokens.rendered_text import ContentSpan
from tokenclean.tokens.templates import check_template

TEXT = st.text(st.sampled_from("ab é🙂한\u0301\n\t <|>/s"), min_size=1, max_size=12)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT), min_size=1, max_size=6)

LLAMA_3 = """{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + \
'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = '<|begin_of_text|>' + content %}{% endif %}\
{{ content }}{% endfor %}"""
GEMMA = """{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}\
{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}\
{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + \
'<end_of_turn>\n' }}{% endfor %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}\
{{ '[INST] ' + message['content'] + '[/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}\
{% endfor %}"""
LLAMA_2 = """{% for message in messages %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}{% else %}\
{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
ZEPHYR = """{% for message in messages %}\n{% if message['role'] == 'user' %}\n\
{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n\
{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n\
{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% endfor %}"""
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def chat(*contents: str, system: str | None = None) -> Conversation:
    """User and assistant in turn."""
    turns = [Turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents)]
    return Conversation("id", "source", tuple(turns if system is None else [Turn("system", system), *turns]))


def completion(prompt: str, answer: str) -> Conversation:
    return Conversation("id", "source", (Turn("user", prompt), Turn("assistant", answer)), "completion")


def targets_of(rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.targets]


def contents_of(rendered) -> list[str]:
    return [rendered.text[c.start : c.end] for c in rendered.contents]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


def tulu(messages, eos):
    """Text and targets after Tulu (§10.1), written down on its own."""
    lines = [f"<|{role}|>\n{text.strip()}{eos if role == 'assistant' else ''}\n" for role, text in messages]
    return "".join(lines).strip(), [text.strip() + eos for role, text in messages if role == "assistant"]


@settings(deadline=None)
@given(messages=TURNS)
def test_tulu_equals_the_oracle(tokenizer, messages):
    conversation = Conversation("id", "source", tuple(Turn(*message) for message in messages))
    rendered = render(conversation, tokenizer)
    text, targets = tulu(messages, EOS)
    assert rendered.text == text
    assert targets_of(rendered) == targets
    assert contents_of(rendered) == [target.removesuffix(EOS) for target in targets]
    assert rendered.adds_bos
    for span in rendered.contents:
        raw = conversation.turns[span.turn].content
        assert raw[span.skipped : span.skipped + span.end - span.start] == rendered.text[span.start : span.end]


def test_tulu_to_the_letter(tokenizer):
    rendered = render(chat(" Hi \n", "\t Hello. ", "Bye", "Bye!\n", system="Be brief."), tokenizer)
    assert rendered.text == (
        "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello.</s>\n<|user|>\nBye\n<|assistant|>\nBye!</s>"
    )
    assert targets_of(rendered) == ["Hello.</s>", "Bye!</s>"]
    assert rendered.contents == (ContentSpan(2, 47, 53, 2, 9, (53, 57)), ContentSpan(4, 85, 89, 0, 5, (89, 93)))


def test_tulu_ends_at_the_last_eos_or_with_the_last_question(tokenizer):
    assert render(chat("a", "b"), tokenizer).text.endswith("\nb</s>")
    rendered = render(chat("a", "b", "c \n"), tokenizer)
    assert rendered.text.endswith("\nb</s>\n<|user|>\nc")
    assert targets_of(rendered) == ["b</s>"]


def test_tulu_of_a_blank_system_turn(tokenizer):
    assert render(chat("a", "b", system=" \n"), tokenizer).text == "<|system|>\n\n<|user|>\na\n<|assistant|>\nb</s>"


def test_tulu_writes_reasoning_calls_results_and_tools(tokenizer):
    calls = (ToolCall("get", '{"x": "<é>"}'), ToolCall('a"b', "{}"))
    turns = (
        Turn("user", "Hi"),
        Turn("assistant", " Let me see. ", "\nHm.\n", calls),
        Turn("tool", " 5\n", name="get"),
        Turn("assistant", "", "", calls[1:], is_trained=False),
        Turn("tool", ""),
        Turn("assistant", "Five.", "So."),
    )
    rendered = render(Conversation("id", "s", turns, tools='[{"name": "get"}]'), tokenizer)
    first = (
        "<think>\nHm.\n</think>\n\nLet me see.\n"
        '<tool_call>\n{"name": "get", "arguments": {"x": "<é>"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "a\\"b", "arguments": {}}\n</tool_call></s>'
    )
    last = "<think>\nSo.\n</think>\n\nFive.</s>"
    assert rendered.text == (
        '<|system|>\nTools: [{"name": "get"}]\n<|user|>\nHi\n<|assistant|>\n' + first + "\n<|tool|>\n5\n"
        '<|assistant|>\n<tool_call>\n{"name": "a\\"b", "arguments": {}}\n</tool_call></s>\n<|tool|>\n\n<|assistant|>\n'
        + last
    )
    assert targets_of(rendered) == [first, last]
    assert contents_of(rendered) == ["Let me see.", "", "Five."]
    assert [(c.turn, c.skipped) for c in rendered.contents] == [(1, 1), (3, 0), (5, 0)]


def test_tulu_puts_the_tools_at_the_end_of_the_system_turn(tokenizer):
    conversation = replace(chat("Hi", "Yes.", system=" Be brief.\n"), tools="[{}]")
    rendered = render(conversation, tokenizer)
    assert rendered.text.startswith("<|system|>\nBe brief.\nTools: [{}]\n<|user|>\nHi\n")
    assert [c.turn for c in rendered.contents] == [2]
    blank = replace(chat("Hi", "Yes.", system=" "), tools="[{}]")
    assert render(blank, tokenizer).text.startswith("<|system|>\nTools: [{}]\n<|user|>\n")


@pytest.mark.parametrize("template", ["tulu", "tokenizer"])
def test_plain_text_is_itself_and_the_eos(tokenizer, template):
    rendered = render(Conversation("id", "s", (Turn("assistant", " a\n"),), "text"), tokenizer, template)
    assert (rendered.text, targets_of(rendered), contents_of(rendered)) == (" a\n</s>", [" a\n</s>"], [" a\n"])
    assert rendered.adds_bos


def test_a_tokenized_row_has_no_text(tokenizer):
    with pytest.raises(TemplateError, match="a row of token ids has no text"):
        render(Conversation("id", "s", (), "tokens"), tokenizer)


@pytest.mark.parametrize("template", ["tulu", "tokenizer"])
@pytest.mark.parametrize(
    ("prompt", "answer", "text", "target"),
    [
        ("Q", "A", "Q A</s>", " A</s>"),
        ("Q ", "A", "Q A</s>", "A</s>"),
        ("Q\n", "A", "Q\nA</s>", "A</s>"),
        ("Q\t", " A", "Q\t A</s>", " A</s>"),
        ("Q", "\nA ", "Q\nA </s>", "\nA </s>"),
        ("Q", " A", "Q A</s>", " A</s>"),
        ("", "A", "A</s>", "A</s>"),
    ],
)
def test_completion_joins_by_a_space_where_there_is_none(tokenizer, template, prompt, answer, text, target):
    rendered = render(completion(prompt, answer), tokenizer, template)
    assert rendered.text == text
    assert targets_of(rendered) == [target]
    assert contents_of(rendered) == [answer]
    assert rendered.adds_bos


def rendered_by(template: str, conversation: Conversation, **options):
    rendered = render(conversation, byte_level(chat_template=template, **options), "tokenizer")
    assert not rendered.adds_bos
    return rendered


def test_llama_3():
    rendered = rendered_by(LLAMA_3, chat("Hi", "  Yes. \n", "Bye", "B"), eos="<|eot_id|>")
    assert rendered.text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|>"
    )
    assert targets_of(rendered) == ["Yes.<|eot_id|>", "B<|eot_id|>"]
    assert contents_of(rendered) == ["Yes.", "B"]
    assert [(c.turn, c.skipped) for c in rendered.contents] == [(1, 2), (3, 0)]


def test_gemma():
    rendered = rendered_by(GEMMA, chat("Hi", " Yes."), eos="<eos>")
    assert rendered.text == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
    assert targets_of(rendered) == ["Yes.<end_of_turn>"]


def test_gemma_refuses_a_system_turn():
    with pytest.raises(TemplateError, match="refuses this conversation: System role not supported"):
        rendered_by(GEMMA, chat("Hi", "Yes.", system="Be brief."))


def test_mistral_leads_with_a_space_that_the_model_has_to_produce():
    rendered = rendered_by(MISTRAL, chat("Hi", "Yes.", "Bye", "B "))
    assert rendered.text == "<s>[INST] Hi[/INST] Yes.</s>[INST] Bye[/INST] B </s>"
    assert targets_of(rendered) == [" Yes.</s>", " B </s>"]
    assert contents_of(rendered) == ["Yes.", "B "]


def test_llama_2_has_a_space_before_its_end_token():
    rendered = rendered_by(LLAMA_2, chat("Hi", "Yes.", "Bye", "B "))
    assert rendered.text == "<s>[INST] Hi [/INST] Yes. </s><s>[INST] Bye [/INST] B </s>"
    assert targets_of(rendered) == [" Yes. </s>", " B </s>"]


def test_zephyr():
    rendered = rendered_by(ZEPHYR, chat("Hi", " Yes.", "Bye", "B\n", system="Be brief."))
    assert targets_of(rendered) == [" Yes.</s>", "B\n</s>"]
    assert "<|assistant|>\n Yes.</s>" in rendered.text


def test_a_template_without_end_token_trains_the_content_alone():
    rendered = rendered_by(PLAIN, chat("Hi", "Yes.", "Bye", "B"))
    assert rendered.text == "user: Hi\nassistant: Yes.\nuser: Bye\nassistant: B\n"
    assert targets_of(rendered) == [" Yes.", " B"]


def test_an_end_token_that_is_not_the_eos():
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n<|end|>\n{% endfor %}"
    assert targets_of(rendered_by(template, chat("Hi", "Yes."))) == ["Yes.\n<|end|>"]


def test_special_tokens_that_come_later_are_known():
    """They count for more than what only looks like a tag."""
    tokenizer = byte_level(chat_template="{% for m in messages %}{{ m.content }}<stop>!{% endfor %}")
    assert targets_of(render(chat("a", "b"), tokenizer, "tokenizer")) == ["b<stop>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<stop>!"]})
    assert targets_of(render(chat("a", "b"), tokenizer, "tokenizer")) == ["b<stop>!"]


def test_chatml_of_smollm2(smollm2_tokenizer):
    rendered = render(chat("Hi", " Yes.\n", "Bye", "🙂", system="Be brief."), smollm2_tokenizer, "tokenizer")
    assert rendered.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n Yes.\n<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n🙂<|im_end|>\n"
    )
    assert targets_of(rendered) == [" Yes.\n<|im_end|>", "🙂<|im_end|>"]
    assert render(chat("Hi", "Yes."), smollm2_tokenizer, "tokenizer").text.startswith("<|im_start|>system\nYou are")


@pytest.mark.parametrize("template", [LLAMA_3, GEMMA, MISTRAL, LLAMA_2, ZEPHYR])
@settings(deadline=None)
@given(texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_the_contents_are_found_whatever_they_hold(template, texts):
    conversation = chat(*(text for pair in texts for text in pair))
    try:
        rendered = rendered_by(template, conversation)
    except TemplateError:
        pytest.fail(f"{conversation} was refused")
    for raw, content, target in zip(texts, contents_of(rendered), targets_of(rendered), strict=True):
        assert content in (raw[1], raw[1].strip())
        assert content in target
        assert target.endswith((EOS, "<|eot_id|>", "<end_of_turn>"))


def test_a_mark_in_the_text_is_no_trouble():
    rendered = rendered_by(MISTRAL, chat("\ue000mark1\ue001", "\ue000mark1\ue001 \ue000markk3"))
    assert contents_of(rendered) == ["\ue000mark1\ue001 \ue000markk3"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{{ m.content | replace('x', 'y') }}", r"rewrites the answer in turns\[1\]"),
        ("{{ m.content | upper }}", r"rewrites the answer in turns\[1\]"),
        ("{{ m.content }}{{ m.content }}", r"repeats the user turn in turns\[0\]"),
        ("{% if loop.last %}{{ m.content }}{% endif %}", r"drops the user turn in turns\[0\]"),
        ("{{ messages[-loop.index].content }}", r"writes turns\[3\] in front of an earlier turn"),
        ("{{ m.content.split('</think>')[-1] }}", "holds `</think>` without `<think>`; --repair-thoughts"),
    ],
)
def test_a_template_that_hides_the_contents_is_refused(body, reason):
    template = "{% for m in messages %}" + body + "{% endfor %}"
    with pytest.raises(TemplateError, match=reason):
        rendered_by(template, chat("a", "x</think>", "c", "d"))


def test_a_template_that_rewrites_some_contents_is_refused_for_these_alone():
    template = "{% for m in messages %}{{ m.content | replace('x', 'y') }}{{ eos_token }}{% endfor %}"
    assert targets_of(rendered_by(template, chat("xa", "b"))) == ["b</s>"]


def test_check_template(tokenizer):
    check_template(tokenizer, "tulu")
    check_template(byte_level(chat_template=PLAIN), "tokenizer")
    with pytest.raises(TemplateError, match="unknown template 'chatml'; known: tulu, tokenizer"):
        check_template(tokenizer, "chatml")
    with pytest.raises(TemplateError, match="no chat template; use template: tulu"):
        check_template(tokenizer, "tokenizer")
    tokenizer = byte_level(chat_template=PLAIN)
    tokenizer.chat_template = {"rag": PLAIN, "tool": PLAIN}
    with pytest.raises(TemplateError, match="multiple chat templates with no default"):
        check_template(tokenizer, "tokenizer")
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="no EOS token"):
        check_template(tokenizer, "tulu")
