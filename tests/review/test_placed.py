"""Where decisions are on the rows of a pool, and on its tokens."""

from __future__ import annotations

import numpy as np
import pytest
from reviewing import phrase, row, signed, span, undo

from tokenclean.pool.conversation import Conversation, LabelledTokens, Pool, Turn
from tokenclean.review.agreement import agreements, cohens_kappa
from tokenclean.review.decisions import TokenDecision, in_force
from tokenclean.review.phrases import find_phrase, passage_groups, repeated_phrases
from tokenclean.review.placed import TOKENS, place, place_by_person
from tokenclean.review.review_file import append_decisions, read_review
from tokenclean.review.reviewed_pool import review_pool
from tokenclean.review.token_places import NO_PLACE, token_places
from tokenclean.selection.repeated_passages import Passage
from tokenclean.tokens import tokenize_pool
from tokenclean.tokens.weight_spans import WeightSpan
from viewer_tables import byte_level

NAN = float("nan")


def tokens_row(ids=(5, 6, 7, 8)) -> Conversation:
    labels = LabelledTokens(np.array(ids), np.arange(len(ids)) > 0)
    return Conversation("tokens:0:abc", "tokens", (), "tokens", tokens=labels)


def test_later_decisions_replace_earlier_ones_character_by_character():
    of = row("abcdefgh", "second")
    placed = place([span(of, 0, 6), span(of, 4, 9, 1.0), span(of, 0, 3, 0.5, message=3)], [row("other"), of])
    np.testing.assert_equal(placed.weights[1, 1], np.array([0, 0, 0, 0, 1, 1, 1, 1, 1], np.float32))
    np.testing.assert_equal(placed.weights[1, 3], np.array([0.5] * 3 + [NAN] * 4, np.float32))
    expected = (WeightSpan(1, 0, 4, 0.0), WeightSpan(1, 4, 9, 1.0), WeightSpan(3, 0, 3, 0.5))
    assert placed.spans(2) == [(), expected]
    assert (placed.placed, placed.replaced, placed.unplaced) == (3, 2, ())


def test_a_row_is_found_by_its_id_or_by_its_own_id_alone():
    before = row("An answer.", id="file:3:aaa", original_id="x7")
    moved = row("An answer.", id="file:9:bbb", original_id="x7")
    decision = span(before, 3, 9)
    assert place([decision], [row("other"), moved]).rows == [1]
    twice = place([decision], [moved, row("An answer.", original_id="x7")])
    assert [one.reason for one in twice.unplaced] == ["no row has its id, or its own id alone"]
    assert place([span(row("An answer."), 0, 2)], [row("An answer.")]).placed == 0


def test_what_no_longer_matches_is_listed_with_its_reason():
    of = row("An answer.")
    changed = row("An answer!", id=of.id)
    shorter = row("An", id=of.id)
    longer = row("An answer. More.", id=of.id)
    end = span(of, 10, 11)
    assert place([span(of, 3, 10)], [changed]).unplaced[0].reason == (
        "its text has changed: expected 'answer.', found 'answer!'"
    )
    assert place([end], [of]).placed == 1
    for now in (longer, shorter):
        assert "its text has changed" in place([end], [now]).unplaced[0].reason
    prompt = span(of, 0, 2, message=0)
    assert place([prompt], [of]).unplaced[0].reason == "message 0 is no answer"
    four = row(*"abcd")
    assert place([span(four, 0, 1, message=7)], [row("a", id=four.id)]).unplaced[0].reason == "message 7 is no answer"


def test_a_row_without_text_takes_token_positions():
    of = tokens_row()
    good = TokenDecision(signed(), "drop", of.id, "", 1, 3, 0.0, (6, 7))
    changed = TokenDecision(signed(), "drop", of.id, "", 1, 3, 0.0, (6, 9))
    placed = place([good, changed], [of])
    np.testing.assert_equal(placed.weights[0, TOKENS], np.array([NAN, 0, 0, NAN], np.float32))
    assert [one.reason for one in placed.unplaced] == ["its tokens 1 to 3 have changed"]
    assert place([good], [row("text", id=of.id)]).unplaced[0].reason == "it names tokens, but the row has text"


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("Sure!", "Sure! I am Sure!", [(0, 5), (11, 16)]),
        ("sure", "unsure, sure, surely", [(8, 12)]),
        ("a.b", "a.b axb", [(0, 3)]),
        ("aa", "aaaa aa", [(5, 7)]),
        ("...", "a......b", [(1, 4), (4, 7)]),
        ("水", "水は水", [(0, 1), (2, 3)]),
        ("👍", "x👍👍y", [(1, 2), (2, 3)]),
        ("$1\\", "pay $1\\", [(4, 7)]),
    ],
)
def test_occurrences_of_a_phrase(phrase, text, found):
    assert list(find_phrase(phrase, text)) == found


def test_a_phrase_is_dropped_wherever_it_occurs_in_an_answer():
    rows = [row("Sure! Yes."), row("No."), row("Well. Sure!", "Sure!")]
    placed = place([phrase("Sure!"), phrase("nowhere")], rows)
    assert placed.spans(3) == [
        (WeightSpan(1, 0, 5, 0.0),),
        (),
        (WeightSpan(1, 6, 11, 0.0), WeightSpan(3, 0, 5, 0.0)),
    ]
    assert [str(one) for one in placed.unplaced] == ["Ann: drop everywhere 'nowhere': it occurs in no answer"]
    untrained = Conversation("x", "x", (Turn("user", "Sure!"), Turn("assistant", "Sure!", is_trained=False)))
    assert place([phrase("Sure!")], [untrained]).placed == 0


def test_phrases_are_grouped_and_listed_as_written():
    openers = ["Certainly, here is the answer you want."] * 4 + ["Certainly, here is the answer you asked for!"] * 3
    rows = [row(f"{text} It is {number}. More words follow.") for number, text in enumerate(openers)]
    groups = repeated_phrases(rows)
    first = next(group for group in groups if group.place == "first sentence")
    assert [(one.text, one.rows) for one in first.phrases] == [(openers[0], 4), (openers[-1], 3)]
    last = next(group for group in groups if group.place == "last sentence")
    assert [(one.text, one.rows) for one in last.phrases] == [("More words follow.", 7)] or not last.phrases
    texts = {1: " a passage of words ", 2: openers[0], 3: "ab", 4: "broken \ufffd text"}
    passages = [Passage((token,), 5, 5) for token in texts]
    found = passage_groups(passages, lambda ids: texts[ids[0]], groups)
    assert [(group.place, group.phrases[0].text) for group in found] == [("passage", "a passage of words")]


def tokenized(rows):
    return tokenize_pool(Pool(tuple(rows)), byte_level(), template="tulu", max_length=400)


def test_weights_that_people_decided_replace_others(tmp_path):
    rows = [row("Water keeps the garden 水 cool."), tokens_row((65, 66, 67, 68)), row("Another answer.")]
    tokens = tokenized(rows)
    decisions = [span(rows[0], 0, 5), span(rows[0], 30, 31, 1.0), span(rows[0], 23, 24, 0.25)]
    decisions += [TokenDecision(signed(), "drop", rows[1].id, "", 1, 3, 0.0, (66, 67))]
    append_decisions(tmp_path / "r.jsonl", decisions)
    reviewed = review_pool(read_review(tmp_path / "r.jsonl"), tokens, rows)
    text = "<|user|>\nWhy?\n<|assistant|>\nWater keeps the garden 水 cool.</s>\n"
    begin = text.index("Water")
    start, end = tokens.char_start[0], tokens.char_end[0]
    default = np.where(tokens.is_response.values, 0.5, 0).astype(np.float32)
    weights = reviewed.apply(tokens.input_ids.with_values(default))

    expected = default[: len(start)].copy()
    is_response = tokens.is_response[0]
    expected[(end > begin) & (start < begin + 5) & is_response] = 0
    water = (start >= begin + 22) & (end <= begin + 24) & (end > begin + 23) & is_response
    expected[water] = 0.25  # the token with the space before 水 takes the smaller of the two
    expected[np.flatnonzero(is_response)[-1]] = 1  # </s>
    np.testing.assert_array_equal(weights[0], expected)
    np.testing.assert_array_equal(weights[1], [0, 0, 0, 0.5])
    np.testing.assert_array_equal(weights[2], default[-len(weights[2]) :])
    kept = reviewed.fix_labels(tokens.is_response.map_values(np.zeros_like))
    assert kept.values.sum() == int((reviewed.decided.values > 0).sum())
    assert np.isnan(reviewed.decided.values[~tokens.is_response.values]).all()
    assert reviewed.lines()[0].endswith(
        f"4 decisions on 2 rows fix {int(reviewed.is_fixed.values.sum())} response tokens, "
        f"{int(reviewed.is_dropped.values.sum())} dropped and {int(reviewed.is_trained.values.sum())} trained"
    )


def test_places_of_tokens_are_those_that_decisions_name(tmp_path):
    rows = [row("Kühl 👨‍👩‍👧 ok.", "Zwei."), tokens_row((65, 66, 67, 68))]
    tokens = tokenized(rows)
    places = token_places(tokens, rows)
    assert set(np.unique(places.message[0])) == {NO_PLACE, 1, 3}
    assert places.message[1].tolist() == [NO_PLACE, TOKENS, TOKENS, TOKENS]
    assert (places.has_place == tokens.is_response.values).all()
    for message, answer in ((1, "Kühl 👨‍👩‍👧 ok."), (3, "Zwei.")):
        there = places.message[0] == message
        covered = {n for a, b in zip(places.start[0][there], places.end[0][there], strict=True) for n in range(a, b)}
        assert covered == set(range(len(answer) + 1))
    token = int(np.flatnonzero(places.message[0] == 3)[0])
    append_decisions(
        tmp_path / "r.jsonl", [span(rows[0], *map(int, (places.start[0][token], places.end[0][token])), message=3)]
    )
    decided = review_pool(read_review(tmp_path / "r.jsonl"), tokens, rows).decided[0]
    assert np.flatnonzero(~np.isnan(decided)).tolist() == [token]


def test_kappa_against_the_textbook():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5, kappa = 0.4
    first = np.repeat([True, True, False, False], [20, 5, 10, 15])
    second = np.repeat([True, False, True, False], [20, 5, 10, 15])
    assert cohens_kappa(first, second) == pytest.approx((0.7, 0.4))
    assert cohens_kappa(first, first) == pytest.approx((1, 1))
    share, kappa = cohens_kappa(np.ones(3, bool), np.ones(3, bool))
    assert (share, np.isnan(kappa)) == (1, True)
    assert np.isnan(cohens_kappa(np.ones(0, bool), np.ones(0, bool))).all()


def test_people_agree_over_characters_that_both_decided():
    of, other = row("abcdefghij"), row("klm")
    ann = [span(of, 0, 6), span(of, 6, 10, 1.0), span(other, 0, 3)]
    bob = [span(of, 2, 8, who="Bob"), span(of, 8, 11, 1.0, who="Bob")]
    [found] = agreements(place_by_person(in_force([*ann, *bob]), [of, other]))
    # both decided 2 … 10: they agree on dropping 2–6 and keeping 8–10, not on 6–8
    assert (found.people, found.positions, found.share) == (("Ann", "Bob"), 8, 0.75)
    expected = (0.75 - (0.5 * 0.75 + 0.5 * 0.25)) / (1 - (0.5 * 0.75 + 0.5 * 0.25))
    assert found.kappa == pytest.approx(expected)
    assert "Ann and Bob: agree on 75.0% of 8 characters" in str(found)
    [apart] = agreements(place_by_person([span(of, 0, 1), span(of, 1, 2, who="Bob")], [of]))
    assert str(apart) == "Ann and Bob: no character that both decided"
    [undone] = agreements(place_by_person(in_force([*ann, *bob, undo(bob[0])]), [of, other]))
    assert (undone.positions, undone.share) == (2, 1)
