"""Reasoning and tool calls under chat templates of the shapes in use, against renderers written down on their own."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small_tokenizers import byte_level
from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, ToolCall, Turn
from tokenclean.tokens import render
from tokenclean.tokens.rendered_text import Rendered

QWEN_2_5 = """{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}\
{{ messages[0].content }}{% else %}{{ 'Hi.' }}{% endif %}\
{{ '\n\n# Tools\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}{{ '<|im_end|>\n' }}\
{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}\
{% for m in messages %}{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}\
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% elif m.role == 'assistant' %}\
{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n' + m.content }}{% endif %}{% for call in m.tool_calls %}\
{{ '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + \
'}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}\
{% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}\
{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}\
{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# Thoughts of the turns behind the last question only; an empty thought in front of the last answer.
QWEN_3 = """{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}\
{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}\
{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}\
{% set thought = m.reasoning_content if m.reasoning_content is string else '' %}\
{% if loop.index0 > ns.last and (loop.last or thought) %}\
{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + m.content.lstrip('\n') }}{% else %}{{ m.content }}{% endif %}\
{% for call in m.tool_calls or [] %}{% if m.content or not loop.first %}{{ '\n' }}{% endif %}\
{{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + \
'}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}\
{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}{% else %}\
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# The prompt opens the thought, so the model does not write that tag; parameters stand in XML.
QWEN_3_5 = QWEN_3.replace(
    """{{ '<|im_start|>assistant\n' }}{% endif %}""", """{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""
).replace(
    """'<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + \
'}\n</tool_call>'""",
    """'<tool_call>\n<function=' + call.function.name + '>\n' }}{% for key, value in call.function.arguments | items %}\
{{ '<parameter=' + key + '>\n' + value | string + '\n</parameter>\n' }}{% endfor %}{{ '</function>\n</tool_call>'""",
)
HERMES = """{{ bos_token }}{% if tools %}\
{{ '<|im_start|>system\nTools: ' + tools | tojson + '<|im_end|>\n' }}{% endif %}\
{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls is defined %}\
{{ '<|im_start|>assistant' }}{% for call in m.tool_calls %}{{ '\n<tool_call>\n' + \
{'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\n</tool_call>' }}{% endfor %}\
{{ '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA_3 = """{{ '<|begin_of_text|>' }}{% if tools %}\
{{ '<|start_header_id|>system<|end_header_id|>\n\n' + tools | tojson + '<|eot_id|>' }}{% endif %}\
{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}\
{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}\
{% set call = m.tool_calls[0].function %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' + '{"name": "' + \
call.name + '", "parameters": ' + call.arguments | tojson + '}' + '<|eom_id|>' }}{% elif m.role == 'tool' %}\
{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}{% else %}\
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
# No generation prompt; the tools stand in front of the last question; plain turns have to alternate.
MISTRAL = """{{ bos_token }}{% set ns = namespace(last=0, turn=0) %}{% for m in messages %}{% if m.role == 'user' %}\
{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}\
{% if m.role == 'user' or (m.role == 'assistant' and m.tool_calls is not defined) %}\
{% if (m.role == 'user') != (ns.turn % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
{% set ns.turn = ns.turn + 1 %}{% endif %}{% if m.role == 'user' %}{% if tools and loop.index0 == ns.last %}\
{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST] ' + m.content + '[/INST]' }}\
{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] {"content": ' + m.content | tojson + ', "call_id": "' + m.tool_call_id + \
'"}[/TOOL_RESULTS]' }}{% elif m.tool_calls is defined %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}\
{{ ', ' if not loop.first else '' }}{{ '{"name": "' + call.function.name + '", "arguments": ' + \
call.function.arguments | tojson + ', "id": "' + call.id + '"}' }}{% endfor %}{{ ']' + eos_token }}{% else %}\
{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]'
HOSTILE = ("<|im_end|>", "</s>", "<|eot_id|>", "[/INST]", "<|im_start|>assistant\n", "<think>\n", "</tool_call>")
TEXT = st.lists(
    st.sampled_from([*HOSTILE, "{{ x }}", "mark1c_", "\ue000mark1\ue001", '"}', "a", " ", "é", "\n"]), max_size=5
)
WORDS = TEXT.map("".join).map(lambda text: f"w{text}w")
CALLS = st.lists(
    st.dictionaries(WORDS, WORDS | st.integers() | st.lists(WORDS, max_size=2), max_size=2).map(
        lambda arguments: ToolCall("weather", json.dumps(arguments, ensure_ascii=False), "abcdefghi")
    ),
    min_size=1,
    max_size=2,
).map(tuple)


def user(content: str) -> Turn:
    return Turn("user", content)


def answer(content: str = "", *calls: ToolCall, reasoning: str = "", is_trained: bool = True) -> Turn:
    return Turn("assistant", content, reasoning, calls, is_trained)


def call(city: str) -> ToolCall:
    return ToolCall("weather", json.dumps({"city": city}), "abcdefghi")


def result(content: str) -> Turn:
    return Turn("tool", content, name="weather", call_id="abcdefghi")


def rendered_by(template: str, *turns: Turn, tools: str = TOOLS, eos: str = "</s>") -> Rendered:
    rendered = render(
        Conversation("id", "s", turns, tools=tools), byte_level(chat_template=template, eos=eos), "tokenizer"
    )
    assert not rendered.adds_bos
    return rendered


def targets_of(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.targets]


def contents_of(rendered: Rendered) -> list[str]:
    return [rendered.text[c.start : c.end] for c in rendered.contents]


AGENT = (
    user("Paris?"),
    answer("", call("Paris")),
    result("5"),
    answer("5 there."),
    user("And Rome?"),
    answer("", call("Rome")),
    result("9"),
    answer("9."),
)


IN_JSON = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
IN_XML = "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call><|im_end|>"
IN_A_LIST = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]</s>'


@pytest.mark.parametrize(
    ("template", "targets", "thought"),
    [
        (QWEN_2_5, [IN_JSON, "5 there.<|im_end|>"], ""),
        (QWEN_3, [IN_JSON, "5 there.<|im_end|>"], "<think>\n\n</think>\n\n"),
        (QWEN_3_5, [IN_XML, "5 there.<|im_end|>"], "\n</think>\n\n"),
        (HERMES, [IN_JSON, "5 there.<|im_end|>"], ""),
        (LLAMA_3, ['{"name": "weather", "parameters": {"city": "Paris"}}<|eom_id|>', "5 there.<|eot_id|>"], ""),
        (MISTRAL, [IN_A_LIST, " 5 there.</s>"], ""),
    ],
)
def test_a_tool_call_is_a_target_to_the_letter(template, targets, thought):
    """``thought``: what the template writes of it in front of the last answer, behind its prompt."""
    rendered = rendered_by(template, *AGENT, tools="" if template in (QWEN_3, QWEN_3_5) else TOOLS)
    assert targets_of(rendered)[:2] == targets
    call, last = [target.replace("Paris", "Rome").replace("5 there", "9") for target in targets]
    assert targets_of(rendered)[2:] == [call, thought + last]
    assert contents_of(rendered) == ["", "5 there.", "", "9."]
    assert [content.turn for content in rendered.contents] == [1, 3, 5, 7]


def calls_in_json(turn: Turn) -> list[str]:
    return [
        f'<tool_call>\n{{"name": "{c.name}", "arguments": {json.dumps(json.loads(c.arguments), ensure_ascii=False)}}}'
        "\n</tool_call>"
        for c in turn.tool_calls
    ]


def qwen_2_5(turns) -> list[tuple[str, bool]]:
    """Pieces of text, and whether each is a target."""
    pieces = [("<|im_start|>system\nHi.\n\n# Tools\n" + TOOLS[1:-1] + "\n<|im_end|>\n", False)]
    for turn in turns:
        if turn.role == "tool":
            pieces.append((f"<|im_start|>user\n<tool_response>\n{turn.content}\n</tool_response><|im_end|>\n", False))
            continue
        said = "\n".join(filter(None, [turn.content, *calls_in_json(turn)])) + "<|im_end|>"
        pieces += [(f"<|im_start|>{turn.role}\n", False), (said, turn.role == "assistant"), ("\n", False)]
    return pieces


def qwen_3(turns) -> list[tuple[str, bool]]:
    pieces = []
    last = max(i for i, turn in enumerate(turns) if turn.role == "user")
    for index, turn in enumerate(turns):
        if turn.role == "tool":
            pieces.append((f"<|im_start|>user\n<tool_response>\n{turn.content}\n</tool_response><|im_end|>\n", False))
            continue
        pieces.append((f"<|im_start|>{turn.role}\n", False))
        if turn.role == "assistant" and index > last and (turn.reasoning or index == len(turns) - 1):
            pieces.append((f"<think>\n{turn.reasoning}\n</think>\n\n", True))  # behind the prompt, an empty one too
        said = "\n".join(filter(None, [turn.content, *calls_in_json(turn)])) + "<|im_end|>"
        pieces += [(said, turn.role == "assistant"), ("\n", False)]
    return pieces


def mistral(turns) -> list[tuple[str, bool]]:
    pieces = [("<s>", False)]
    last = max(i for i, turn in enumerate(turns) if turn.role == "user")
    for index, turn in enumerate(turns):
        if turn.role == "user":
            offer = f"[AVAILABLE_TOOLS] {TOOLS}[/AVAILABLE_TOOLS]" if index == last else ""
            pieces.append((f"{offer}[INST] {turn.content}[/INST]", False))
        elif turn.role == "tool":
            content = json.dumps(turn.content, ensure_ascii=False)
            pieces.append((f'[TOOL_RESULTS] {{"content": {content}, "call_id": "abcdefghi"}}[/TOOL_RESULTS]', False))
        elif turn.tool_calls:
            calls = [{"name": c.name, "arguments": json.loads(c.arguments), "id": c.id} for c in turn.tool_calls]
            pieces.append((f"[TOOL_CALLS] {json.dumps(calls, ensure_ascii=False)}</s>", True))
        else:
            pieces.append((f" {turn.content}</s>", True))
    return pieces


@st.composite
def conversations(draw, has_reasoning: bool, has_remarks: bool):
    """Questions, each with calls and their results before its answer; any answer may be left out of training."""
    turns = []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(user(draw(WORDS)))
        for _ in range(draw(st.integers(0, 2))):
            remark = draw(st.just("") | WORDS) if has_remarks else ""
            thought = draw(st.just("") | WORDS) if has_reasoning else ""
            turns.append(answer(remark, *draw(CALLS), reasoning=thought, is_trained=draw(st.booleans())))
            turns.append(result(draw(WORDS)))
        thought = draw(st.just("") | WORDS) if has_reasoning else ""
        turns.append(answer(draw(WORDS), reasoning=thought, is_trained=draw(st.booleans())))
    return tuple(turns)


def check_against(pieces: list[tuple[str, bool]], rendered: Rendered, turns: tuple[Turn, ...]) -> None:
    assert rendered.text == "".join(piece for piece, _ in pieces)
    joined: list[str] = []  # targets, adjacent pieces as one
    for number, (piece, is_target) in enumerate(pieces):
        if is_target and number and pieces[number - 1][1]:
            joined[-1] += piece
        elif is_target:
            joined.append(piece)
    answers = [turn for turn in turns if turn.role == "assistant"]
    assert targets_of(rendered) == [target for target, t in zip(joined, answers, strict=True) if t.is_trained]
    assert contents_of(rendered) == [t.content for t in answers]


@pytest.mark.parametrize(
    ("template", "oracle", "has_reasoning", "has_remarks", "tools"),
    [
        (QWEN_2_5, qwen_2_5, False, True, TOOLS),
        (QWEN_3, qwen_3, True, True, ""),
        (MISTRAL, mistral, False, False, TOOLS),
    ],
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_targets_are_found_whatever_the_texts_hold(template, oracle, has_reasoning, has_remarks, tools, data):
    turns = data.draw(conversations(has_reasoning, has_remarks))
    check_against(oracle(turns), rendered_by(template, *turns, tools=tools), turns)


def test_a_prompt_that_opens_the_thought_is_no_target():
    turns = (user("a"), answer("b", reasoning="r"), user("c"), answer("d", call("x"), reasoning="s"))
    assert targets_of(rendered_by(QWEN_3_5, *turns, tools="")) == [
        "b<|im_end|>",
        "s\n</think>\n\nd\n<tool_call>\n<function=weather>\n<parameter=city>\nx\n</parameter>\n</function>\n</tool_call>"
        "<|im_end|>",
    ]


def test_the_thought_of_an_earlier_turn_may_be_missing():
    turns = (user("a"), answer("b", reasoning="lost"), user("c"), answer("d", reasoning="kept"))
    rendered = rendered_by(QWEN_3, *turns, tools="")
    assert targets_of(rendered) == ["b<|im_end|>", "<think>\nkept\n</think>\n\nd<|im_end|>"]
    assert "lost" not in rendered.text


def test_a_stripped_content_of_a_structured_turn_keeps_its_place():
    rendered = rendered_by(QWEN_3, user("a"), answer("\n\n b \n", reasoning="r"), tools="")
    assert targets_of(rendered) == ["<think>\nr\n</think>\n\n b \n<|im_end|>"]
    assert [(c.turn, c.skipped) for c in rendered.contents] == [(1, 2)]
    assert contents_of(rendered) == [" b \n"]


def test_a_turn_that_is_not_trained_keeps_its_content():
    turns = (user("a"), answer("b", is_trained=False), user("c"), answer("d", reasoning="r", is_trained=False))
    rendered = rendered_by(QWEN_3, *turns, user("e"), answer("f"), tools="")
    assert targets_of(rendered) == ["<think>\n\n</think>\n\nf<|im_end|>"]
    assert contents_of(rendered) == ["b", "d", "f"]


def test_a_template_without_end_token_ends_with_the_call():
    template = """{% for m in messages %}{{ m.role + ': ' + m.content }}{% for c in m.tool_calls or [] %}\
{{ '(' + c.function.name + c.function.arguments | string + ')' }}{% endfor %}{{ '\n' }}{% endfor %}"""
    rendered = rendered_by(template, user("a"), answer("b", call("x")), tools="")
    assert targets_of(rendered) == [' b(weather{"city": "x"})']
    with pytest.raises(TemplateError, match=r"no end token after turns\[1\]"):
        rendered_by(template, user("a"), answer("b", call("x")), result("c"), answer("d"), tools="")


@pytest.mark.parametrize(
    ("body", "turn", "reason"),
    [
        (
            "{{ m.content }}",
            answer("x", call("y")),
            r"drops the arguments of the call 'weather', part of the answer in turns\[1\]; use template: tulu",
        ),
        ("{{ m.tool_calls or m.content }}", answer("x", call("y")), r"drops the text beside the calls in turns\[1\]"),
        ("{{ m.content }}{{ m.tool_calls }}{{ m.tool_calls }}", answer("x", call("y")), "repeats the arguments of"),
        ("{{ m.content | upper }}{{ m.tool_calls }}", answer("x", call("y")), "rewrites the text beside the calls"),
        ("{{ m.content | replace('x', 'z') }}{{ m.tool_calls }}", answer("x", call("y")), "rewrites the answer"),
        (
            "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}",
            answer("", call("y")),
            r"drops, repeats or rewrites part of the answer in turns\[1\]",
        ),
        (
            "{{ m.content }}",
            answer("x", reasoning="yes"),
            r"drops the thoughts in turns\[1\] \(3 characters\).*tulu",
        ),
    ],
)
def test_a_template_that_hides_a_part_of_the_answer_is_refused(body, turn, reason):
    template = "{% for m in messages %}[INST]" + body + "[/INST]{% endfor %}"
    with pytest.raises(TemplateError, match=reason):
        rendered_by(template, user("a"), turn, tools="")


def test_llama_refuses_what_it_would_drop():
    with pytest.raises(TemplateError, match="only supports single tool-calls"):
        rendered_by(LLAMA_3, user("a"), answer("", call("x"), call("y")))
    with pytest.raises(TemplateError, match=r"drops the text beside the calls in turns\[1\]"):
        rendered_by(LLAMA_3, user("a"), answer("Let me see.", call("x")))


def test_tools_and_results_that_the_template_drops_are_errors():
    template = """{% for m in messages if m.role != 'tool' %}\
{{ m.role + m.content + (m.tool_calls or '') | string }}</s>{% endfor %}"""
    with pytest.raises(TemplateError, match="does not write the tools on offer"):
        rendered_by(template, user("a"), answer("b"))
    with pytest.raises(TemplateError, match=r"drops the tool turn in turns\[2\]"):
        rendered_by(template, user("a"), answer("b", call("x")), result("c"), answer("d"), tools="")


@pytest.mark.parametrize(
    ("arguments", "tools", "reason"),
    [
        ("{", "", r"turns\[1\].tool_calls\[0\].arguments: expected an object as JSON text, found '{'"),
        ("[1]", "", r"turns\[1\].tool_calls\[0\].arguments: expected an object as JSON text, found '\[1\]'"),
        ("[" * 100_000, "", "expected an object as JSON text"),
        ("{}", "{}", "tools: expected a list as JSON text, found '{}'"),
        ("{}", "[3]", "fails on this conversation: ValueError: Tools should"),
    ],
)
def test_what_is_no_json_is_named(arguments, tools, reason):
    with pytest.raises(TemplateError, match=reason):
        rendered_by(QWEN_2_5, user("a"), answer("", ToolCall("weather", arguments)), tools=tools)


@pytest.mark.parametrize("fault", ["none + 1", "1 // 0", "messages[0].content.foo.bar", "'a' + 1", "'a' * 10 ** 30"])
def test_a_template_that_trips_over_a_conversation_refuses_it(fault):
    with pytest.raises(TemplateError, match=r"(fails on|refuses) this conversation: .+"):
        rendered_by(
            "{% for m in messages %}{{ m.content }}{{ " + fault + " }}{% endfor %}", user("a"), answer("b"), tools=""
        )
