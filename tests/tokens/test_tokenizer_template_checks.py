"""What a chat template may leave out or rewrite, and what refuses the row; today's date; text that came rendered."""

from __future__ import annotations

import json

import pytest

from small_tokenizers import EOS, adding, byte_level
from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, ToolCall, Turn
from tokenclean.tokens import render, tokenize_pool
from tokenclean.tokens.inference_template import end_token_ids
from tokenclean.tokens.rendered_text import Rendered
from tokenclean.tokens.templates import NOTE_MOVED, NOTE_RENDERED, check_template
from tokenclean.tokens.tokenizer_template.chat import DEFAULT_DATE, Chat, reads_clock
from tokenclean.tokens.tokenizer_template.locate import NOTE_TAGS

CALL = ToolCall("weather", '{"city": "Rome"}')


def each(body: str, messages: str = "messages", end: str = "</s>") -> str:
    """A template that writes the body for each message."""
    return "{% for m in " + messages + " %}[INST]{{ m.role }}:" + body + end + "{% endfor %}"


def with_calls(arguments: str) -> str:
    return each("{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name + " + arguments + " }}{% endfor %}")


def user(content: str) -> Turn:
    return Turn("user", content)


def answer(content: str, *calls: ToolCall, reasoning: str = "", is_trained: bool = True) -> Turn:
    return Turn("assistant", content, reasoning, calls, is_trained)


def rendered_by(template: str, *turns: Turn, tools: str = "", date: str = DEFAULT_DATE) -> Rendered:
    return render(Conversation("id", "s", turns, tools=tools), byte_level(chat_template=template), "tokenizer", date)


def targets_of(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.targets]


SYSTEM = Turn("system", "Be brief.")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "{{ m.content if m.role != 'system' }}",
            r"drops the system turn in turns\[0\].*in front of the first question",
        ),
        ("{{ m.content if m.role != 'user' }}", r"drops the user turn in turns\[1\]; use template: tulu"),
        ("{{ m.content if m.role != 'assistant' }}", r"drops the answer in turns\[2\]"),
        ("{{ m.content }}{{ m.content if m.role == 'system' }}", r"repeats the system turn in turns\[0\]"),
        ("{{ m.content[:5] if m.role == 'assistant' else m.content }}", r"rewrites the answer in turns\[2\]"),
        ("{{ m.content | replace('u', 'U') }}", r"rewrites the answer in turns\[2\]"),
    ],
)
def test_a_turn_that_is_lost_or_repeated_refuses_the_row(body, reason):
    with pytest.raises(TemplateError, match=reason):
        rendered_by(each(body), SYSTEM, user("Hi there"), answer("Yes, but"))


@pytest.mark.parametrize(
    ("body", "turn", "written"),
    [
        ("{{ m.content | tojson }}", user('say "é"'), '"say \\"é\\""'),
        ("{{ m.content | tojson(ensure_ascii=true) }}", user("é"), '"\\u00e9"'),
        ("{{ m.content[:20] }}", user("a" * 30), "a" * 20),
        ("{{ m.content | upper }}", user("shout"), "SHOUT"),
        ("{{ m.content | replace('<', '&lt;') }}", user("a<b"), "a&lt;b"),
        ("{{ m.content | title }}", Turn("tool", "rain"), "Rain"),
    ],
)
def test_a_turn_of_another_role_that_is_rewritten_is_noted(body, turn, written):
    template = each("{% if m.role == '" + turn.role + "' %}" + body + "{% else %}{{ m.content }}{% endif %}")
    rendered = rendered_by(template, Turn("system", "Hi"), turn, answer("Yes."), Turn("system", "x"), answer("No."))
    assert f"{turn.role}:{written}</s>" in rendered.text
    assert rendered.notes == (f"the template rewrites a {turn.role} turn",)
    assert targets_of(rendered) == ["Yes.</s>", "No.</s>"]


def test_blanks_that_are_stripped_are_no_rewriting():
    rendered = rendered_by(each("{{ m.content | trim }}"), Turn("system", " s\n"), user("\n u "), answer(" a "))
    assert rendered.notes == ()
    assert [(c.start, c.end, c.skipped) for c in rendered.contents] == [
        (rendered.text.rindex("a</s>"), len(rendered.text) - 4, 1)
    ]


def test_the_blanks_of_each_turn_are_found_on_their_own():
    """A template that strips newlines in front of the last answer alone."""
    body = "{{ m.content.lstrip('\n') if loop.last else m.content }}"
    rendered = rendered_by(each(body), user("a"), answer("b "), user("c"), answer("\n\nd"))
    assert targets_of(rendered) == ["b </s>", "d</s>"]
    assert [content.skipped for content in rendered.contents] == [0, 2]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("Hm.</think>Yes.", "holds `</think>` without `<think>`; --repair-thoughts"),
        ("<think>Hm. Yes.", "holds `<think>` without `</think>`; --repair-thoughts"),
        ("<think>a</think>b</think>c", "holds `</think>` without `<think>`"),
        ("Well. <think>a</think>b", "holds `<think>` not once at its start"),
    ],
)
def test_tags_that_do_not_match_are_named_where_the_template_looks_at_them(content, fault):
    """And are plain text where it does not."""
    splits = each("{{ m.content.split('</think>')[-1].split('<think>')[0] }}")
    with pytest.raises(TemplateError, match=fault):
        rendered_by(splits, user("a"), answer(content))
    rendered = rendered_by(each("{{ m.content }}"), user("a"), answer(content))
    assert targets_of(rendered) == [f"{content}</s>"]


FIELD_ONLY = each(
    "{% if '<think>' in m.content %}{{ raise_exception('no tags') }}{% endif %}"
    "{% if m.reasoning_content %}{{ '[' + m.reasoning_content + ']' }}{% endif %}{{ m.content }}"
)


def test_a_thought_in_the_content_is_given_as_reasoning_where_it_is_refused_otherwise():
    rendered = rendered_by(FIELD_ONLY, user("a"), answer(" <think>\nHm.\n</think>\n\nYes."))
    assert targets_of(rendered) == ["[Hm.]Yes.</s>"]
    assert rendered.notes == (NOTE_MOVED,)
    assert [(rendered.text[c.start : c.end], c.skipped) for c in rendered.contents] == [("Yes.", 23)]


def test_a_content_with_a_thought_is_one_span_where_it_is_written_back():
    content = " <think>\nHm.\n</think>\n\nYes. "
    rendered = rendered_by(each("{{ m.content }}"), user("a"), answer(content))
    assert [(rendered.text[c.start : c.end], c.skipped) for c in rendered.contents] == [(content[1:], 1)]
    assert rendered.notes == ()
    splits = each(
        "{% if '</think>' in m.content %}{{ '<think>' + m.content.split('</think>')[0].split('<think>')[-1].strip() }}"
        "{{ '</think>' + m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}"
    )
    rendered = rendered_by(splits, user("a"), answer(content))
    assert targets_of(rendered) == ["<think>Hm.</think>Yes.</s>"]
    assert [(rendered.text[c.start : c.end], c.skipped) for c in rendered.contents] == [("Yes.", 23)]
    assert rendered.notes == (NOTE_TAGS,)


def test_dropped_thoughts_are_reported_and_refuse_the_row_only_where_they_would_be_learned():
    drops = each("{{ m.content }}")
    turns = (user("a"), answer("b", reasoning="lost"), user("c"), answer("d"))
    assert rendered_by(drops, *turns).dropped_thoughts == ("lost",)
    untrained = rendered_by(drops, user("a"), answer("b"), user("c"), answer("d", reasoning="lost", is_trained=False))
    assert untrained.dropped_thoughts == ("lost",)
    followed = rendered_by(drops, user("a"), answer("b", reasoning="lost"), user("c"))
    assert followed.dropped_thoughts == ("lost",)
    with pytest.raises(TemplateError, match=r"drops the thoughts in turns\[1\] \(4 characters\)"):
        rendered_by(drops, user("a"), answer("b", reasoning=" lost "))


def test_a_blank_answer_is_its_end_token_and_may_be_passed_over_where_it_is_not_trained():
    blank = rendered_by(each("{{ m.content }}"), user("a"), answer("b"), user("c"), answer(""))
    assert targets_of(blank) == ["b</s>", "</s>"]
    passes = each("{{ m.content }}", "messages if m.content.strip()")
    rendered = rendered_by(passes, user("a"), answer(" ", is_trained=False), user("c"), answer("d"))
    assert targets_of(rendered) == ["d</s>"]
    assert [content.turn for content in rendered.contents] == [3]
    with pytest.raises(TemplateError, match=r"writes nothing for the blank answer in turns\[1\]"):
        rendered_by(passes, user("a"), answer(" "), user("c"), answer("d"))


@pytest.mark.parametrize("result", ["", "5"])
def test_calls_in_a_row_are_told_apart_where_no_text_is_in_between(result):
    turns = [user("a"), answer("", CALL), Turn("tool", result), answer("", ToolCall("weather", "{}")), answer("b")]
    template = with_calls("c.function.arguments | tojson")
    assert targets_of(rendered_by(template, *turns))[:2] == ['weather{"city": "Rome"}</s>', "weather{}</s>"]
    del turns[2]
    assert targets_of(rendered_by(template, *turns))[:2] == ['weather{"city": "Rome"}</s>', "weather{}</s>"]
    hostile = ToolCall("weather", json.dumps({"city": "</s>[INST]assistant:"}))
    turns[1] = answer("", hostile)
    with pytest.raises(TemplateError, match=r"part of the answer in turns\[1\]"):
        rendered_by(template, *turns)


def test_a_conversation_that_begins_with_the_answer():
    chatml = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    rendered = rendered_by(chatml, answer("Hello."), user("Hi"), answer("Yes."), answer("Or no."))
    assert targets_of(rendered) == ["Hello.<|im_end|>", "Yes.<|im_end|>", "Or no.<|im_end|>"]


def test_arguments_are_given_as_text_where_the_template_joins_them():
    joins = with_calls("c.function.arguments")
    spaced = ToolCall("weather", '{"city":  "Rome"}')
    assert targets_of(rendered_by(joins, user("a"), answer("", spaced)))[0] == 'weather{"city":  "Rome"}</s>'
    printed = with_calls("(c.function.arguments | string)")
    assert targets_of(rendered_by(printed, user("a"), answer("", CALL)))[0] == 'weather{"city": "Rome"}</s>'


def test_a_call_that_the_template_takes_in_no_form_is_named():
    adds = with_calls("(c.function.arguments + 1)")
    with pytest.raises(TemplateError) as found:
        rendered_by(adds, user("a"), answer("b"), user("c"), answer("", CALL))
    for part in ("TypeError", "the call of 'weather' in turns[3]", "as JSON text", "use template: tulu"):
        assert part in str(found.value)


def test_a_tool_whose_name_is_not_written_refuses_the_row():
    template = "{{ tools | length if tools }}" + each("{{ m.content }}")
    tools = json.dumps([{"type": "function", "function": {"name": "weather"}}])
    with pytest.raises(TemplateError, match="does not write the tool 'weather' on offer"):
        rendered_by(template, user("a"), answer("b"), tools=tools)
    named = "{{ tools | tojson if tools }}" + each("{{ m.content }}")
    assert targets_of(rendered_by(named, user("a"), answer("b"), tools=tools)) == ["b</s>"]


def test_a_template_that_compares_questions_is_followed():
    """The tools stand in front of whatever is the same as the last question; marks make all questions differ."""
    template = "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}" + each(
        "{{ tools | tojson if tools and m == asked[-1] }}{{ m.content }}"
    )
    tools = json.dumps([{"type": "function", "function": {"name": "weather"}}])
    rendered = rendered_by(template, user("go on"), answer("a"), user("go on"), answer("b"), tools=tools)
    assert rendered.text.count("weather") == 2
    assert targets_of(rendered) == ["a</s>", "b</s>"]
    assert rendered.notes == ()


def test_a_conversation_without_an_answer_has_no_target():
    assert rendered_by(each("{{ m.content }}"), user("a")).targets == ()
    counts = each("{{ m.content }}{{ m.content | length }}")
    assert rendered_by(counts, user("a question")).text == "[INST]user:a question10</s>"


CLOCK = "{{ strftime_now('%d %b %Y, %H:%M:%S, 100%%, %-d') }}\n" + each("{{ m.content }}")


def test_today_is_a_given_day():
    rendered = rendered_by(CLOCK, user("a"), answer("b"))
    assert rendered.text.startswith("26 Jul 2024, 00:00:00, 100%, 26\n")
    later = rendered_by(CLOCK, user("a"), answer("b"), date="2026-01-02")
    assert later.text.startswith("02 Jan 2026, 00:00:00, 100%, 2\n")
    assert targets_of(later) == ["b</s>"]


@pytest.mark.parametrize(
    "start", ["\n  {% if true %}x{% endif %}", "  {%- if true %} x{% endif %}", "{# note #}\n\n a"]
)
def test_a_stopped_clock_changes_nothing_else(start):
    template = start + each("{{ m.content }}{# strftime_now #}")
    tokenizer = byte_level(chat_template=template)
    chat = Chat(Conversation("id", "s", (user("a"), answer("b"))), tokenizer)
    assert reads_clock(tokenizer)
    assert chat.apply(chat.messages) == tokenizer.apply_chat_template(chat.messages, tokenize=False)


def test_which_templates_read_the_clock():
    assert reads_clock(byte_level(chat_template=CLOCK))
    assert not reads_clock(byte_level(chat_template=each("{{ m.content }}")))
    assert not reads_clock(byte_level())
    several = byte_level(chat_template=CLOCK)
    several.chat_template = {"default": each("x"), "tool_use": CLOCK}
    assert reads_clock(several)


def test_check_template_refuses_what_can_render_nothing():
    with pytest.raises(TemplateError, match=r"not valid Jinja: line 1: .*endif.*; correct chat_template.jinja, or use"):
        check_template(byte_level(chat_template="{% for m in messages %}{{ m.content }}{% endif %}"), "tokenizer")
    with pytest.raises(TemplateError, match="picks at random"):
        check_template(byte_level(chat_template="{{ ['a', 'b']|random }}"), "tokenizer")
    check_template(byte_level(chat_template="{{ raise_exception('no') }}"), "tokenizer")
    check_template(byte_level(chat_template="{{ messages[7].content + 1 }}"), "tokenizer")


def test_an_end_tag_that_is_no_token_is_no_id():
    tokenizer = byte_level(chat_template=each("{{ m.content }}", end="<|stop|>"))
    assert tokenizer.convert_ids_to_tokens(end_token_ids(tokenizer, "tokenizer")) == [EOS]


@pytest.mark.parametrize("template", ["tulu", "tokenizer"])
@pytest.mark.parametrize("end", ["</s>", "<|im_end|>", "<|im_end|>\n", "<end_of_turn>\n"])
def test_a_completion_that_ends_already_gets_no_second_end_token(template, end):
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    turns = (user(prompt), answer(f"Yes.{end}"))
    rendered = render(Conversation("id", "s", turns, "completion"), byte_level(), template)
    assert rendered.text == f"{prompt}Yes.{end}"
    assert targets_of(rendered) == [f"Yes.{end.strip()}"]
    assert rendered.notes == (NOTE_RENDERED,)
    text = render(Conversation("id", "s", (answer(f"Yes.{end}"),), "text"), byte_level(), template)
    assert (text.text, targets_of(text), text.notes) == (f"Yes.{end}", [f"Yes.{end.strip()}"], (NOTE_RENDERED,))


def test_a_prompt_that_ends_with_an_end_token_is_not_the_completion():
    rendered = render(Conversation("id", "s", (user("Hi</s>\n"), answer(" ")), "completion"), byte_level())
    assert (rendered.text, rendered.notes) == ("Hi</s>\n </s>", ())


def test_a_text_that_begins_with_the_bos_gets_no_second_one():
    tokenizer = adding(byte_level(), "<s> $A")
    rows = [
        Conversation("id", "s", (user("<s>Hi"), answer("Yes.")), "completion"),
        Conversation("id", "s", (user("Hi"), answer("Yes.")), "completion"),
    ]
    for ids in tokenize_pool(rows, tokenizer).input_ids:
        assert tokenizer.convert_ids_to_tokens(ids.tolist()).count("<s>") == 1
    assert not render(rows[0], tokenizer).adds_bos
