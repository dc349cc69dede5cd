"""First and last sentences in groups, small variations included."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenclean.checks.findings import Found
from tokenclean.checks.repeated_phrases import RepeatedPhrases, closers_of, cluster, head_of, openers_of
from tokenclean.pool import Conversation, Turn

TOPICS = ("harbours", "old ships", "the moon", "bread", "rivers", "winter", "glass", "trains", "salt", "tea")
BODIES = {
    topic: " ".join(f"{topic.split()[-1]}{letter}{n}" for n, letter in enumerate("abcdef")).replace("0", "") + "."
    for topic in TOPICS
}


def phrases(answers: list[str], *, is_closer: bool) -> Found:
    check = RepeatedPhrases(is_closer=is_closer)
    for line, answer in enumerate(answers, 1):
        turns = (Turn("user", "?"), Turn("assistant", answer))
        check.add(Conversation(f"s:{line}:x", "s", turns, "chat", "s.jsonl", line))
    return check.found()


def test_variations_of_a_closer_are_one_group():
    closers = ["I hope this helps!", "I hope that this helps you!", "I hope this helps.", "I really hope this helps!"]
    answers = [f"{BODIES[topic]} {closer}" for topic, closer in zip(TOPICS, closers, strict=False)]
    answers += [f"{topic.capitalize()} are what this is about. {topic.capitalize()} end here." for topic in TOPICS[5:]]
    found = phrases(answers, is_closer=True)
    assert found.rows == 4
    (group,) = found.groups
    assert group.phrase.startswith("I hope")
    assert (group.rows, group.place) == (4, "s.jsonl:1")


def test_variations_of_an_opener_are_one_group():
    openers = ["Sure! Here is a list of", "Sure, here's a list of", "Sure! Here's a list of"]
    answers = [f"{openers[n % 3]} {topic}:\n- one\n- two" for n, topic in enumerate(TOPICS[:6])]
    answers += [BODIES[topic] for topic in TOPICS[6:]]
    groups = {group.phrase: group.rows for group in phrases(answers, is_closer=False).groups}
    assert groups == {"Sure! Here is a list of…": 6, "Sure!": 4}


def test_numbers_are_alike_and_formulas_are_no_phrase():
    assert head_of("The answer is 42.") == head_of("the answer is 17")
    assert head_of("I can't, it’s 5") == ("i", "can", "not", "it", "is", "#")
    assert phrases([f"{n} + 1 = {n + 1}. That is it." for n in range(9)], is_closer=False).rows == 0


def test_a_whole_answer_of_few_words_is_no_opener():
    assert phrases(["Yes."] * 9, is_closer=False).rows == 0
    assert phrases(["The answer is no"] * 9, is_closer=False).rows == 0
    assert list(closers_of("One sentence alone.")) == []
    assert list(openers_of("Sure! Here it is, the list of them.")) == ["Sure!", "Sure! Here it is, the list of them."]


def test_two_rows_are_no_group():
    answers = [BODIES[topic] for topic in TOPICS]
    assert (
        phrases([f"I hope this helps you. {answer}" for answer in answers[:2]] + answers[2:], is_closer=False).rows == 0
    )


def test_no_answer_and_one():
    assert phrases([], is_closer=False) == Found()
    assert phrases(["One. Two three four five."], is_closer=True) == Found()


@given(
    st.dictionaries(
        st.lists(st.sampled_from(["we", "all", "hope", "this", "helps", "you", "now"]), min_size=1, max_size=8).map(
            tuple
        ),
        st.integers(1, 5),
        max_size=12,
    ),
    st.integers(1, 6),
)
def test_groups_are_large_enough_and_a_sentence_is_in_one_of_them(weights: dict[tuple[str, ...], int], least: int):
    clusters = cluster(weights, least)
    members = [words for _, group in clusters for words in group]
    assert len(members) == len(set(members))
    assert all(words in weights for words in members)
    for leader, group in clusters:
        assert sum(weights[words] for words in group) >= least
        assert any(words[: len(leader)] == leader for words in group)
    # Sentences with the same first four words are together wherever they are many.
    for words, rows in weights.items():
        if rows >= least and sum(len(word) > 1 for word in words[:4]) >= 2:
            assert words in members
