"""Each check of single rows on small answers: what it finds, and what looks like it and is none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.checks import POOL_CHECKS, ROW_CHECKS
from tokenclean.checks.copied_prompts import copied_share
from tokenclean.checks.cut_ends import CutEnds
from tokenclean.checks.loops import loop_in
from tokenclean.pool import Conversation, ToolCall, Turn

LONG = (
    "The harbour was built in 1850. It was made larger twice since then. Today it is the second largest on the coast. "
)


def row(answer: str, prompt: str = "Tell me about it.", line: int = 1) -> Conversation:
    turns = (Turn("user", prompt), Turn("assistant", answer))
    return Conversation(f"s:{line}:x", "s", turns, "chat", "s.jsonl", line)


def is_found(check: str, answer: str, prompt: str = "Tell me about it.") -> bool:
    spot = ROW_CHECKS[check].find(row(answer, prompt))
    if spot is not None:
        assert 0 <= spot.start < spot.end <= len(row(answer, prompt).turns[spot.turn].content)
    return spot is not None


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but as an AI language model I cannot browse the internet.",
        "I’m sorry, but I can’t assist with that request.",
        "Sorry, as an AI language model, I am not able to provide real-time data.",
        "As an AI language model, I don't have personal opinions, but here is one.",
        "Unfortunately, I cannot help you with this.",
        "I'm just an AI and cannot feel.",
        "I am sorry, I do not understand.",
        "<nooutput>",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
        "Als KI-Sprachmodell habe ich keine eigene Meinung.",
        "Je suis désolé, mais je ne peux pas répondre à cette question.",
        "很抱歉，我无法提供这些信息。",
        "作为一个人工智能，我不能这样做。",
    ],
)
def test_refusals(answer: str):
    assert is_found("refusal", answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that you are feeling down. Take a walk.",
        "Dear Tom, I am sorry, but we cannot come to your party on Friday.",
        "As an AI engineer, she cannot work without a computer.",
        "I cannot hide my joy, the sun is shining.",
        "The model cannot process this, because the input is too long.",
        "An AI language model is a program that predicts words.",
        "No output is shown, since the loop never runs.",
        "Ich kann nicht schwimmen.",
    ],
)
def test_no_refusals(answer: str):
    assert not is_found("refusal", answer)


@pytest.mark.parametrize(
    "answer",
    [
        "It is what it is and so on. " * 4,
        "First a word. " + "We like to swim in the lake. " * 5 + "Then it ends.",
        "yes " * 30,
        "我们喜欢在湖里游泳。" * 5,
    ],
)
def test_loops(answer: str):
    assert is_found("loop", answer)


@pytest.mark.parametrize(
    "answer",
    [
        LONG * 1,
        "1 2 3 1 2 3 " * 10,
        "<td>Row one</td>\n" * 12,
        "Row, row, row your boat, gently down the stream. Row, row, row your boat.",
        "| yes | no |\n" * 12,
        "model.add(Dense(12, relu))\n" * 6,
    ],
)
def test_no_loops(answer: str):
    assert not is_found("loop", answer)


@given(st.integers(1, 8), st.integers(0, 5), st.integers(0, 10))
def test_a_planted_loop_is_found_where_it_is(period: int, before: int, seed: int):
    draw = random.Random(seed)
    unit = [f"{''.join(draw.choices('abcdefg', k=4))}{chr(104 + n)}" for n in range(period)]
    times = max(3, -(-20 // period))
    text = " ".join([f"front{'x' * n}" for n in range(before)] + unit * times)
    found = loop_in(text)
    assert found is not None
    start, end, turn = found
    assert turn == period
    assert text[start:end].split()[:period] == unit
    shorter = " ".join(unit * 2)
    assert loop_in(shorter) is None or period * 2 >= 20


@pytest.mark.parametrize(
    ("answer", "prompt", "said"),
    [
        ("A caf\ufffd in town", "Where?", "replacement character"),
        ("A cafÃ© in town", "Where?", "another encoding"),
        ("Itâ€™s late", "Where?", "another encoding"),
        ("price Â£5", "Where?", "another encoding"),
        ("a\x07b", "Where?", "control character"),
        ("zero\u200bwidth", "Where?", "invisible character"),
        ("\ufeffText", "Where?", "byte order mark"),
        ("icon \ue001 here", "Where?", "private-use"),
        ("Fine.", "Choose one?\\nOptions:\\n(A) this\\n(B) that", "escaped line break"),
        ("Tom &amp; Jerry", "Who?", "HTML entity"),
    ],
)
def test_odd_characters(answer: str, prompt: str, said: str):
    spot = ROW_CHECKS["odd_characters"].find(row(answer, prompt))
    assert spot is not None
    assert said in spot.text


@pytest.mark.parametrize(
    "answer",
    [
        "Café, naïve, Ångström, São Paulo, âge, Â, Ã",
        "👩\u200d👩\u200d👧 family, ❤️",
        "می\u200cخواهم",
        "क\u094d\u200dष",
        'print("a\\nb")',
        "Use `\\n` for a new line and &amp; in HTML.",
        "C:\\new\\name",
        "tab\there\r\nnext line",
        "\u201cquoted\u201d – dash… 10\u00a0km",
    ],
)
def test_no_odd_characters(answer: str):
    assert not is_found("odd_characters", answer)


def test_copied_prompts():
    instruction = "Write a short poem about the old harbour in the evening light."
    assert is_found("copied_prompt", f"{instruction}\nThe boats are home.", instruction)
    assert is_found("copied_prompt", f'"""\n{instruction}\n"""\ncode()', f"{instruction}\nIn English.")
    assert is_found("copied_prompt", LONG.strip(), f"Correct the text.\n{LONG}")
    assert is_found("copied_prompt", f"{LONG}Yes", f"Correct the text.\n{LONG}")
    assert not is_found("copied_prompt", "Paris", "What is the capital of France? Paris or London?")
    assert not is_found("copied_prompt", LONG[:40], f"Extract it.\n{LONG}")  # a short extract is an answer
    assert not is_found("copied_prompt", LONG + LONG.upper().replace("THE", "ONE"), f"Tell more.\n{LONG}")
    assert not is_found("copied_prompt", "The poem is here.", "Write a poem.")


@given(st.text("ab ", min_size=1, max_size=30), st.text("ab ", max_size=60))
def test_the_copied_share_is_that_of_the_longest_common_passage(answer: str, prompt: str):
    pairs = ((i, j) for i in range(len(answer)) for j in range(i + 1, len(answer) + 1))
    longest = max((j - i for i, j in pairs if answer[i:j] in prompt), default=0)
    expected = longest / len(answer) if longest >= 0.9 * len(answer) else 0.0
    assert copied_share(answer, prompt) == pytest.approx(expected)


def cut(*answers: str) -> int:
    check = CutEnds()
    for number, answer in enumerate(answers):
        check.add(row(answer, line=number + 1))
    return check.found().rows


@pytest.mark.parametrize(
    "answer",
    [
        "Here is the code:\n```python\nprint(1)\n",
        "Calcium is a chemical element with the symbol Ca and an atomic number of",
        "The word aurora is derived from the name of the goddess of the dawn,",
        f"{LONG}It is the home of many boats and the main sour",
        f"{LONG}Your house was built by the sea, and the wind blew Anna",
        f"{LONG}He said “I would never come back to",
        f"{LONG}The largest ship (built by a company in the nort",
    ],
)
def test_cut_ends(answer: str):
    assert cut(answer) == 1


@pytest.mark.parametrize(
    "answer",
    [
        LONG,
        "Paris",
        "the capital of France and the largest city of the country on the river Seine",
        "- apples and pears\n- bread for the week\n- milk\n- something that I can bake with",
        "Dear Tom,\n\nThank you for coming to see us in June. It was a pleasure to have you.\n\nSincerely,",
        "Roses are red and violets are blue\nSugar is sweet and so are you\nThe night is long and the stars are for",
        "```python\nprint(1)\n```",
        f"{LONG}Yours sincerely, Anna Miller",
        f"{LONG}Yours in hope and anticipation, Dracula",
        f"{LONG}\n\nYours in hope and anticipation,\nDracula",
        f"{LONG}\n\nWith hope and love,\nDoctor Anna Miller of the old harbour",
        f"{LONG}#harbour #boats",
        f"{LONG}SELECT name FROM ships WHERE length > 5",
        "1. Take the first step and wait for a while\n2. Take the second one\n3. Go home with what you have to",
    ],
)
def test_no_cut_ends(answer: str):
    assert cut(answer) == 0


def test_a_missing_full_stop_is_no_cut_where_the_pool_leaves_it_out():
    missing = f"{LONG}It is the home of many boats and of the people who love them"
    habit = ["the boats are in the harbour and the people are at home in the evening"] * 3
    assert cut(missing, *[f"{answer}." for answer in habit]) == 1
    check = CutEnds()
    for answer in (missing, *habit):
        check.add(row(answer))
    assert check.found().rows == 0
    assert "1 more without a last full stop" in check.found().note


def test_lone_thought_tags():
    assert is_found("lone_thought_tag", "thinking </think> answer")
    assert not is_found("lone_thought_tag", "<think>thinking</think> answer")


@pytest.mark.parametrize("name", ROW_CHECKS)
def test_rows_with_tools_several_turns_or_no_text(name: str):
    call = Turn("assistant", "", "", (ToolCall("look", "{}"),))
    turns = (Turn("system", "Be brief."), Turn("user", "Look"), call, Turn("tool", "found"), Turn("assistant", "Here."))
    find = ROW_CHECKS[name].find
    assert find(Conversation("s:1:x", "s", turns)) is None
    assert find(Conversation("s:2:x", "s", (Turn("assistant", "Once. "),), "text")) is None
    assert find(Conversation("s:3:x", "s", (), "tokens")) is None


def test_the_docs_list_the_checks_of_the_registry():
    docs = Path(__file__).parents[2] / "docs" / "reference" / "look.md"
    listed = [line.split("|")[1:3] for line in docs.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    checks = POOL_CHECKS | ROW_CHECKS
    found = {name.strip(" `"): severity.strip() for name, severity in listed if name.strip(" `") in checks}
    assert found == {name: check.severity for name, check in checks.items()}
