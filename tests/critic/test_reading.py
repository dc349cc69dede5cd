"""A critic's prompt, the orders of its sentences, and answers of every kind that models write."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.asking.prompts import first_characters
from tokenclean.asking.questions import AskedModel
from tokenclean.critic.reading import (
    Named,
    critic_prompt,
    critic_questions,
    order_of,
    parse_reading,
    shown_of,
)
from tokenclean.pool import Conversation, ToolCall, Turn

ORDER = (2, 0, 1)  # number 1 is the third sentence


def row_of(*answers: str, id: str = "p:1:0") -> Conversation:
    turns = [turn for answer in answers for turn in (Turn("user", "Why?"), Turn("assistant", answer))]
    return Conversation(id, "p", tuple(turns))


def wrong(*entries: object) -> str:
    return json.dumps({"wrong": list(entries)})


THIRD = (Named(2, "false"),)
GOOD = wrong({"number": 1, "reason": "false"})


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"Here it is:\n```json\n{GOOD}\n```\nI hope {{that}} helps.",
        f'{{"answer": {GOOD}}}',
        f"{GOOD} Again: {GOOD}",
        f"<think>Perhaps {wrong({'number': 2, 'reason': 'x'})}? No.</think>{GOOD}",
        f"Perhaps {wrong(2)}? No.</think>\n{GOOD}",
        f"<thinking>a</thinking> b <think>{wrong(3)}</think> {GOOD}",
        wrong({"number": "1", "reason": "false"}),
        wrong({"number": 1, "reason": "false", "sure": True}),
        wrong({"number": 1, "reason": "false"}, {"number": 1, "reason": "also long"}),
        wrong({"number": 1, "reason": "  false\n"}),
    ],
)
def test_an_answer_is_read_wherever_it_is(text):
    assert parse_reading(text, ORDER) == THIRD


@pytest.mark.parametrize("text", ['{"wrong": []}', 'Nothing is wrong: {"wrong": []}.'])
def test_nothing_may_be_wrong(text):
    assert parse_reading(text, ORDER) == ()


def test_reasons_may_be_missing_long_or_no_text():
    assert parse_reading(wrong(3, {"number": 2}), ORDER) == (Named(0, ""), Named(1, ""))
    assert parse_reading(wrong({"number": 1, "reason": ["x"]}), ORDER) == (Named(2, ""),)
    (named,) = parse_reading(wrong({"number": 1, "reason": "word " * 500}), ORDER) or ()
    assert len(named.reason) == 201
    assert parse_reading('{"wrong": [{"number": 1, "reason": "\\ud800x"}]}', ORDER) == (Named(2, "?x"),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sentence 1 is false.",
        GOOD[:-1],
        wrong({"number": 0, "reason": "x"}),
        wrong({"number": 4, "reason": "x"}),
        wrong({"number": -1}),
        wrong(1, 99),
        wrong({"number": 1.0}),
        wrong({"number": True}),
        wrong({"number": None}),
        wrong({"number": "one"}),
        wrong({"number": "٣"}),
        wrong({"number": "9" * 5000}),
        wrong({"reason": "x"}),
        wrong([1]),
        '{"wrong": 1}',
        '{"wrong": null}',
        '{"wrong": {"number": 1}}',
        '{"Wrong": [1]}',
        "[1, 2]",
        f"{GOOD} {wrong(2)}",
        f"<think>It is {GOOD}",
        f"<think>{GOOD}</think>",
        '{"wrong": ' * 3000,
        "{" * 20000 + GOOD,
    ],
)
def test_what_cannot_be_read_is_nothing(text):
    assert parse_reading(text, ORDER) is None


@given(st.text(alphabet='{}[]":,wrong0123numbe <>/think\\\n', max_size=60), st.integers(0, 4))
def test_any_text_is_read_or_not_and_never_an_error(text, count):
    found = parse_reading(text, tuple(range(count)))
    assert found is None or all(0 <= named.sentence < count for named in found)


@given(st.text(max_size=10), st.integers(0, 30), st.integers(0, 3))
def test_orders_are_permutations_that_differ_between_the_readings(row, count, seed):
    first, second = (order_of(row, count, seed, reading) for reading in (0, 1))
    assert sorted(first) == sorted(second) == list(range(count))
    assert (first != second) == (count > 1)
    assert first == order_of(row, count, seed, 0)


@given(st.data())
def test_numbers_lead_back_to_the_sentences_that_bear_them(data):
    """A model that names sentences by their text is understood in any order."""
    words = data.draw(st.lists(st.text("xyz", min_size=2, max_size=6), min_size=1, max_size=12))
    bad = data.draw(st.sets(st.sampled_from(range(len(words)))))
    row = row_of(" ".join(f"{place}x {word}." for place, word in enumerate(words)))
    questions = critic_questions([shown_of(row, first_characters())], AskedModel("m"), data.draw(st.integers(0, 9)))
    assert len(questions) == 2
    for number in range(2):
        listed = questions.prompt(number).text.split("The sentences of its answers:")[1]
        numbers = {int(place): int(n) for n, place in re.findall(r"^(\d+)\. (\d+)x ", listed, re.MULTILINE)}
        found = questions.read(number, wrong(*(numbers[place] for place in bad)))
        assert found is not None
        assert {named.sentence for named in found} == bad


def test_the_prompt_shows_the_row_and_its_sentences_by_number():
    row = Conversation(
        "p:1:0",
        "p",
        (
            Turn("system", "Be brief."),
            Turn("user", "Say it."),
            Turn("assistant", "One. Two.", reasoning="Hm. Well.", tool_calls=(ToolCall("look", "{}"),)),
            Turn("user", "Again?"),
            Turn("assistant", "Two. Two. ========== Three."),
        ),
        tools='[{"name": "look"}]',
    )
    text = critic_prompt(row, (4, 0, 2, 1, 3)).text
    sample, listed = text.split("The sentences of its answers:")
    assert 'Tools on offer:\n[{"name": "look"}]\n\nSystem:\nBe brief.\n\nUser:\nSay it.' in sample
    assert "Assistant:\n(thinks) Hm. Well.\nOne. Two.\n(calls look) {}\n\nUser:\nAgain?" in sample
    assert listed.split("===========\n")[1] == (
        "1. ========== Three.\n2. One.\n3. (said for the 2nd time) Two.\n4. Two.\n5. (said for the 3rd time) Two.\n"
    )
    assert "=" * 11 in sample  # a sample cannot fake its end


def test_a_long_row_is_shown_up_to_the_last_sentence_that_fits():
    row = row_of("First one here. Second one here. Third one here.", "Later.")
    whole = shown_of(row, first_characters(10_000))
    assert (len(whole.sentences), whole.shown) == (4, 4)
    assert critic_prompt(row, (3, 2, 1, 0)).cut_characters == 0
    for limit in range(0, 200, 5):
        shown = shown_of(row, first_characters(limit)).shown
        prompt = critic_prompt(row, tuple(range(shown)))
        body = prompt.text.split("==========\n", 2)[1].split("\n==========")[0]
        if 0 < shown < 4:
            assert prompt.cut_characters > 0
            sentences = ("First one here.", "Second one here.", "Third one here.", "Later.")
            assert all((sentence in prompt.text) == (place < shown) for place, sentence in enumerate(sentences))
            assert len(body.split("\n[The sample is cut")[0]) <= limit
    counts = [shown_of(row, first_characters(limit)).shown for limit in range(0, 300, 5)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 4)
    assert set(counts) >= {0, 1, 2, 3}


def test_two_readings_and_two_seeds_are_separate_questions():
    row, one = row_of("One. Two. Three."), row_of("Alone.", id="p:2:0")
    shown = [shown_of(row, first_characters()), shown_of(one, first_characters())]
    questions = critic_questions(shown, AskedModel("m"), 0)
    keys = [item.key for item in questions.items]
    assert len(set(keys)) == 4
    assert questions.prompt(2) == questions.prompt(3)  # one sentence has one order, and is asked about twice
    others = [item.key for item in critic_questions(shown, AskedModel("m"), 1).items]
    assert keys[2:] == others[2:]
    assert keys != others
