"""Every family of chat templates with every kind of conversation: what is trained to the letter, or why nothing is."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from families import FAMILIES, tokenizer_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from small_tokenizers import byte_level
from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, ToolCall, Turn
from tokenclean.tokens import render
from tokenclean.tokens.rendered_text import Rendered
from tokenclean.tokens.templates import check_template
from tokenclean.tokens.tokenizer_template.chat import DEFAULT_DATE, Chat, open_chat
from tokenclean.tokens.tokenizer_template.locate import NOTE_ENDLESS, NOTE_TAGS
from tokenclean.tokens.tokenizer_template.marks import thought_in

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "templates.md"
TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]'
CALL = ToolCall("weather", '{"city": "Rome"}', "abcdefghi")
HM, AH = "<think>\nHm.\n</think>\n\n", "<think>\nAh.\n</think>\n\n"


def user(content: str) -> Turn:
    return Turn("user", content)


def answer(content: str, *calls: ToolCall, reasoning: str = "", is_trained: bool = True) -> Turn:
    return Turn("assistant", content, reasoning, calls, is_trained)


def result(content: str) -> Turn:
    return Turn("tool", content, name="weather", call_id="abcdefghi")


SCENARIOS: dict[str, tuple[Turn, ...]] = {
    "system": (Turn("system", "Be brief."), user("Hi"), answer("Yes.")),
    "turns": (user("Hi"), answer("Yes."), user("Bye"), answer("Ciao.")),
    "field": (user("Hi"), answer("Yes.", reasoning="Hm.")),
    "field, twice": (user("Hi"), answer("Yes.", reasoning="Hm."), user("Bye"), answer("Ciao.", reasoning="Ah.")),
    "inline": (user("Hi"), answer(f"{HM}Yes.")),
    "inline, twice": (user("Hi"), answer(f"{HM}Yes."), user("Bye"), answer(f"{AH}Ciao.")),
    "calls": (user("Hi"), answer("", CALL), result("5"), answer("Hot.")),
    "thought and call": (user("Hi"), answer("", CALL, reasoning="Hm."), result("5"), answer("Hot.")),
    "blanks": (user(" Hi\n"), answer("\n Yes. \n")),
}
NO_TOOLS = "does not write the tools on offer"
ALTERNATES = "roles must alternate"
Expected = dict[str, list[str] | str]


def plain(end: str, lead: str = "", blanks: str = "\n Yes. \n") -> Expected:
    """A template that writes contents as they stand and knows neither the reasoning field nor tools."""
    return {
        "system": [f"{lead}Yes.{end}"],
        "turns": [f"{lead}Yes.{end}", f"{lead}Ciao.{end}"],
        "field": "drops the thoughts in turns[1] (3 characters)",
        "field, twice": "drops the thoughts in turns[3] (3 characters)",
        "inline": [f"{lead}{HM}Yes.{end}"],
        "inline, twice": [f"{lead}{HM}Yes.{end}", f"{lead}{AH}Ciao.{end}"],
        "calls": NO_TOOLS,
        "thought and call": NO_TOOLS,
        "blanks": [f"{lead}{blanks}{end}"],
    }


def calls(call: str, end: str, lead: str = "") -> Expected:
    """The same answers with and without a thought that the template leaves out."""
    return {"calls": [call, f"{lead}Hot.{end}"], "thought and call": [call, f"{lead}Hot.{end}"]}


def deepseek(end: str = "<｜end▁of▁sentence｜>") -> Expected:
    call = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        '```json\n{"city": "Rome"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )
    return plain(end) | calls(call + end, end)


END, EMPTY = "<|im_end|>", "<think>\n\n</think>\n\n"
QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
QWEN_XML = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call><|im_end|>"
GLM_CALL = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call><|observation|>"
FINAL, ANALYSIS = "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"
THEN = "<|end|><|start|>assistant"
OSS_CALL = ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
# For each family and scenario the targets to the letter, or a part of the reason why the row is refused.
EXPECTED: dict[str, Expected] = {
    "ChatML": plain(END),
    "Llama 3": plain("<|eot_id|>", blanks="Yes.")
    | calls('{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>', "<|eot_id|>"),
    "Mistral": plain("</s>", " ", "Yes.")
    | calls('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}, "id": "abcdefghi"}]</s>', "</s>", " "),
    "Gemma 2": plain("<end_of_turn>", blanks="Yes.")
    | {"system": "System role not supported", "calls": ALTERNATES, "thought and call": ALTERNATES},
    "Gemma 3": plain("<end_of_turn>", blanks="Yes.") | {"calls": ALTERNATES, "thought and call": ALTERNATES},
    "Qwen 3": {
        "system": [f"{EMPTY}Yes.{END}"],
        "turns": [f"Yes.{END}", f"{EMPTY}Ciao.{END}"],
        "field": [f"{HM}Yes.{END}"],
        "field, twice": [f"Yes.{END}", f"{AH}Ciao.{END}"],
        "inline": [f"{HM}Yes.{END}"],
        "inline, twice": [f"Yes.{END}", f"{AH}Ciao.{END}"],
        "calls": [QWEN_CALL, f"{EMPTY}Hot.{END}"],
        "thought and call": [HM + QWEN_CALL, f"{EMPTY}Hot.{END}"],
        "blanks": [f"{EMPTY} Yes. \n{END}"],
    },
    "Qwen 3.5": {
        "system": [f"\n</think>\n\nYes.{END}"],
        "turns": [f"Yes.{END}", f"\n</think>\n\nCiao.{END}"],
        "field": [f"Hm.\n</think>\n\nYes.{END}"],
        "field, twice": [f"Yes.{END}", f"Ah.\n</think>\n\nCiao.{END}"],
        "inline": [f"Hm.\n</think>\n\nYes.{END}"],
        "inline, twice": [f"Yes.{END}", f"Ah.\n</think>\n\nCiao.{END}"],
        "calls": [f"\n</think>\n\n{QWEN_XML}", f"\n</think>\n\nHot.{END}"],
        "thought and call": [f"Hm.\n</think>\n\n{QWEN_XML}", f"\n</think>\n\nHot.{END}"],
        "blanks": [f"\n</think>\n\n Yes. \n{END}"],
    },
    "DeepSeek V3": deepseek(),
    "DeepSeek R1": deepseek()
    | {
        "inline": "drops the thoughts in turns[1] (3 characters)",
        "inline, twice": "drops the thoughts in turns[3] (3 characters)",
    },
    "GLM 4": {
        "system": ["\n<think></think>\nYes."],
        "turns": ["\n<think></think>\nYes.<|user|>", "\n<think></think>\nCiao."],
        "field": ["\n<think>Hm.</think>\nYes."],
        "field, twice": ["\n<think></think>\nYes.<|user|>", "\n<think>Ah.</think>\nCiao."],
        "inline": ["\n<think>Hm.</think>\nYes."],
        "inline, twice": ["\n<think></think>\nYes.<|user|>", "\n<think>Ah.</think>\nCiao."],
        "calls": [f"\n<think></think>\n{GLM_CALL}", "\n<think></think>\nHot."],
        "thought and call": [f"\n<think>Hm.</think>\n{GLM_CALL}", "\n<think></think>\nHot."],
        "blanks": ["\n<think></think>\nYes."],
    },
    "gpt-oss": plain("<|return|>", FINAL)
    | {
        "turns": [f"{FINAL}Yes.<|end|>", f"{FINAL}Ciao.<|return|>"],
        "field": [f"{ANALYSIS}Hm.{THEN}{FINAL}Yes.<|return|>"],
        "field, twice": [f"{FINAL}Yes.<|end|>", f"{ANALYSIS}Ah.{THEN}{FINAL}Ciao.<|return|>"],
        "inline, twice": [f"{FINAL}{HM}Yes.<|end|>", f"{FINAL}{AH}Ciao.<|return|>"],
        "calls": [OSS_CALL, f"{FINAL}Hot.<|return|>"],
        "thought and call": [f"{ANALYSIS}Hm.{THEN}{OSS_CALL}", f"{FINAL}Hot.<|return|>"],
    },
    "Phi 3": plain("<|end|>") | {"system": "drops the system turn in turns[0]"},
    "Phi 4": plain(END),
    "Command R": plain("<|END_OF_TURN_TOKEN|>", blanks="Yes.") | {"calls": ALTERNATES, "thought and call": ALTERNATES},
    "Nemotron": plain("\n<SPECIAL_12>", blanks="Yes.")
    | {
        "inline": ["Hm.\n</think>\n\nYes.\n<SPECIAL_12>"],
        "inline, twice": ["Yes.\n<SPECIAL_12>", "Ah.\n</think>\n\nCiao.\n<SPECIAL_12>"],
    }
    | calls(
        '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Rome"}}]</TOOLCALL>\n<SPECIAL_12>', "\n<SPECIAL_12>"
    ),
    "Granite": plain("<|end_of_text|>")
    | calls('<|tool_call|>[{"name": "weather", "arguments": {"city": "Rome"}}]<|end_of_text|>', "<|end_of_text|>"),
}


def rendered_by(family: str, *turns: Turn, tools: str = "") -> Rendered:
    return render(Conversation("id", "s", turns, tools=tools), tokenizer_of(family), "tokenizer")


def targets_of(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.targets]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_to_the_letter(family, scenario):
    expected, turns = EXPECTED[family][scenario], SCENARIOS[scenario]
    tools = TOOLS if "call" in scenario else ""
    if isinstance(expected, str):
        with pytest.raises(TemplateError) as found:
            rendered_by(family, *turns, tools=tools)
        assert expected in str(found.value)
        return
    rendered = rendered_by(family, *turns, tools=tools)
    assert targets_of(rendered) == expected
    check_nothing_is_lost(rendered, turns)
    notes = [NOTE_TAGS] if family == "GLM 4" and "inline" in scenario else []
    assert rendered.notes == (*notes, NOTE_ENDLESS) if family == "GLM 4" else not rendered.notes
    assert not rendered.adds_bos


def check_nothing_is_lost(rendered: Rendered, turns: tuple[Turn, ...]) -> None:
    """Every text is written, or a thought that is reported; targets and contents agree with the text."""
    targets, contents = iter(targets_of(rendered)), {content.turn: content for content in rendered.contents}
    known: list[str] = []
    missing: list[str] = []
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            escaped = [json.dumps(turn.content.strip(), ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)]
            assert any(form in rendered.text for form in (turn.content.strip(), *escaped))
            continue
        content = contents[index]
        written = rendered.text[content.start : content.end]
        assert turn.content[content.skipped :].startswith(written)
        found = thought_in(turn.content)
        said = turn.content[found[2] :] if found else turn.content
        assert written.endswith(said.strip()) or written.rstrip().endswith(said.strip())
        thoughts = [turn.reasoning.strip(), turn.content[found[0] : found[1]] if found else ""]
        target = next(targets) if turn.is_trained else rendered.text
        assert said.strip() in target
        assert all(call.name in target for call in turn.tool_calls)
        known += filter(None, thoughts)
        missing += [thought for thought in thoughts if thought not in target]
    dropped = [thought.strip() for thought in rendered.dropped_thoughts]
    assert not Counter(missing) - Counter(dropped)
    assert not Counter(dropped) - Counter(known)
    assert next(targets, None) is None


HOSTILE = (
    *(
        "<|im_end|>",
        "</s>",
        "<|eot_id|>",
        "[/INST]",
        "<|im_start|>assistant\n",
        "<｜Assistant｜>",
        "<|user|>",
        "<|end|>",
    ),
    *("<start_of_turn>model\n", "<|channel|>final<|message|>", "</tool_call>", "<think>", "</think>", "<|tool_call|>"),
    *("slotmark1c0_", "slotmark", "{{ x }}", "{% if %}", '"}', "\\", '\\"', "a", " ", "é", "\n", "\u00a0"),
)
TEXT = st.lists(st.sampled_from(HOSTILE), max_size=5).map("".join)
SPOKEN = st.tuples(st.sampled_from(["", " ", "\n", " \n "]), TEXT, st.sampled_from(["", " ", "\n"])).map(
    lambda parts: f"{parts[0]}w{parts[1]}w{parts[2]}"
)
THOUGHTS = st.just("") | SPOKEN
CALLS = st.lists(
    st.dictionaries(TEXT.map("k{}".format), TEXT | st.integers() | st.lists(TEXT, max_size=2), max_size=2).map(
        lambda arguments: ToolCall("weather", json.dumps(arguments, ensure_ascii=False), "abcdefghi")
    ),
    min_size=1,
    max_size=2,
).map(tuple)


@st.composite
def conversations(draw) -> tuple[Turn, ...]:
    """Rounds of a question, perhaps calls and their results, and an answer; with thoughts in either place."""
    turns = [Turn("system", draw(SPOKEN))] if draw(st.booleans()) else []
    has_calls, has_thoughts = draw(st.booleans()), draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        turns.append(user(draw(SPOKEN | st.just(" "))))
        if has_calls and draw(st.booleans()):
            remark = draw(st.just("") | SPOKEN)
            thought = draw(THOUGHTS) if has_thoughts else ""
            turns.append(answer(remark, *draw(CALLS), reasoning=thought, is_trained=draw(st.booleans())))
            turns += [result(draw(SPOKEN | st.just(""))) for _ in turns[-1].tool_calls]
        said = answer(draw(SPOKEN), is_trained=draw(st.booleans()))
        thought = draw(THOUGHTS) if has_thoughts else ""
        if draw(st.booleans()):
            said = replace(said, reasoning=thought)
        elif thought.strip():
            blanks = draw(st.sampled_from(["", "\n", "\n\n"]))
            said = replace(said, content=f"<think>{blanks}{thought}{blanks}</think>{blanks}{said.content}")
        turns.append(said)
    return tuple(turns)


def without_tags(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Some families look for a tag of a thought wherever it is in an answer."""
    return tuple(replace(turn, content=re.sub("</?think>", "", turn.content)) for turn in turns)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(turns=conversations())
@example(turns=(user("Why?"), answer("<think>So</think> it says </think> here")))
def test_a_text_is_written_reported_or_the_row_is_refused(family, turns):
    tools = TOOLS if any(turn.tool_calls for turn in turns) else ""
    try:
        rendered = rendered_by(family, *turns, tools=tools)
    except TemplateError:
        return
    check_nothing_is_lost(rendered, turns)
    check_the_prompt(family, rendered, turns, tools)


def check_the_prompt(family: str, rendered: Rendered, turns: tuple[Turn, ...], tools: str) -> None:
    """The last answer begins where a server's prompt for it ends, up to a space; or, where it is not clear which tag
    closes its thought, where its own text does, which may repeat the prompt's opening tag."""
    asked = Chat(Conversation("id", "s", turns[:-1], tools=tools), tokenizer_of(family))
    try:
        prompt = asked.apply(asked.messages, has_prompt=True)
    except TemplateError:  # it takes arguments as text
        asked = replace(asked, has_text_arguments=True)
        prompt = asked.apply(asked.messages, has_prompt=True)
    if turns[-1].is_trained and rendered.text.startswith(prompt):
        start, content = rendered.targets[-1][0], turns[-1].content.strip()
        is_unclear = content.startswith("<think>") and content.count("</think>") > 1
        is_own_text = is_unclear and rendered.text.startswith(content, start)
        assert start == len(prompt.rstrip(" ")) or is_own_text


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.tuples(SPOKEN, SPOKEN), min_size=1, max_size=3))
def test_no_plain_conversation_is_refused(family, texts):
    turns = without_tags(tuple(turn for asked, said in texts for turn in (user(asked), answer(said))))
    check_nothing_is_lost(rendered_by(family, *turns), turns)


@pytest.mark.parametrize("family", ["Qwen 3", "Qwen 3.5", "GLM 4", "Granite", "DeepSeek V3"])
@settings(max_examples=40, deadline=None)
@given(turns=conversations())
def test_a_family_that_knows_tools_and_thoughts_refuses_none(family, turns):
    """Where thoughts stand in the field, those of an answer that the template would drop left out."""
    knows = family in ("Qwen 3", "Qwen 3.5", "GLM 4")
    turns = tuple(replace(turn, reasoning=turn.reasoning if knows else "") for turn in without_tags(turns))
    tools = TOOLS if any(turn.tool_calls for turn in turns) else ""
    if family == "GLM 4" and turns[0].role == "system":
        turns = turns[1:]
    check_nothing_is_lost(rendered_by(family, *turns, tools=tools), turns)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_conversation_is_rendered(family):
    turns = tuple(turn for n in range(1500) for turn in (user(f"q{n}"), answer(f"a{n}")))
    rendered = rendered_by(family, *turns)
    assert len(rendered.targets) == 1500
    check_template(tokenizer_of(family), "tokenizer")


def test_a_system_turn_that_switches_thinking_off_moves_the_prompt():
    turns = (Turn("system", "Be brief. /no_think"), user("Hi"), answer("Yes."))
    rendered = rendered_by("Nemotron", *turns)
    assert rendered.text.endswith("<SPECIAL_11>Assistant\n<think></think>Yes.\n<SPECIAL_12>\n")
    assert targets_of(rendered) == ["Yes.\n<SPECIAL_12>"]
    assert rendered.notes == ("the template rewrites a system turn",)


def test_a_tool_result_that_was_put_into_a_question_is_no_last_question():
    turns = (user("Hi"), answer("Let me see.", reasoning="Hm."), user("<tool_response>\n5\n</tool_response>"))
    rendered = rendered_by("Qwen 3", *turns, answer("Hot.", reasoning="Ah."))
    assert targets_of(rendered) == [f"{HM}Let me see.{END}", f"{AH}Hot.{END}"]
    assert not rendered.dropped_thoughts


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_token_is_trained_where_the_tokenizer_does_not_know_it(family):
    """A template beside another model's tokenizer, which spells its tokens out."""
    own = tokenizer_of(family)
    foreign = byte_level(chat_template=own.chat_template, eos=own.eos_token)
    rendered = render(Conversation("id", "s", SCENARIOS["turns"]), foreign, "tokenizer")
    assert targets_of(rendered) == EXPECTED[family]["turns"]


def table() -> str:
    """The table of docs/reference/templates.md, from what is rendered."""
    header = "family | system turn | thoughts in the field | thoughts in the content | earlier thoughts | tool calls | "
    lines = [f"| {header}blanks around an answer | last answer, as it is trained |", "|" + "---|" * 8]
    return "\n".join([*lines, *(f"| {' | '.join([family, *_facts(family)])} |" for family in FAMILIES)]) + "\n"


def _facts(family: str) -> list[str]:
    found: dict[str, Rendered | None] = {}
    for scenario, turns in SCENARIOS.items():
        try:
            found[scenario] = rendered_by(family, *turns, tools=TOOLS if "call" in scenario else "")
        except TemplateError:
            found[scenario] = None
    is_taken = [("yes" if found[scenario] else "refused") for scenario in ("system", "field", "inline")]
    twice = found["field, twice"] or found["inline, twice"]
    earlier = "–" if twice is None else "left out" if twice.dropped_thoughts else "kept"
    blanks = found["blanks"]
    written = blanks.text[blanks.contents[0].start : blanks.contents[0].end]
    kept = {"\n Yes. \n": "kept", " Yes. \n": "newlines in front stripped", "Yes.": "stripped"}[written]
    last = json.dumps(targets_of(found["turns"])[-1], ensure_ascii=False)[1:-1].replace("|", "\\|")
    return [*is_taken, earlier, _form_of_arguments(family, found), kept, f"`{last}`"]


def _form_of_arguments(family: str, found: dict[str, Rendered | None]) -> str:
    if found["calls"] is None:
        return "refused"
    conversation = Conversation("id", "s", SCENARIOS["calls"], tools=TOOLS)
    chat, _ = open_chat(conversation, tokenizer_of(family), DEFAULT_DATE)
    return "arguments as text" if chat.has_text_arguments else "arguments as objects"


def test_the_page_states_what_is_rendered():
    assert table() in PAGE.read_text(encoding="utf-8"), f"docs/reference/templates.md needs this table:\n{table()}"
