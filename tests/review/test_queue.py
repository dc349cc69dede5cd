"""What is suggested first, and how far labels and scores agree with people."""

from __future__ import annotations

import numpy as np
import pytest

from tokenclean.errors import TableError
from tokenclean.ragged import Ragged
from tokenclean.report.viewer.ranked_table import Sample
from tokenclean.report.viewer.review_data import rows_to_review
from tokenclean.review.detection import measure_detection
from tokenclean.review.queue import CriticSpan, Suggestion, suggest
from tokenclean.review.token_places import NO_PLACE, TokenPlaces
from tokenclean.token_table import TokenTable

NAN = float("nan")


def table_of(
    kept: list[str] | None = None, scores: list[list[float]] | None = None, lengths=(12, 12, 12)
) -> TokenTable:
    """Rows a, b, c; the first two tokens of each are its prompt. ``kept``: x for kept, - for dropped."""
    is_response = Ragged.from_rows([np.arange(length) > 1 for length in lengths], np.bool_)
    columns = {"input_ids": Ragged.from_rows([np.arange(length) for length in lengths], np.int64)}
    columns["is_response"] = is_response
    if kept is not None:
        columns["is_kept"] = Ragged.from_rows([[sign == "x" for sign in row] for row in kept], np.bool_)
    if scores is not None:
        columns["score"] = Ragged.from_rows(scores, np.float32)
    return TokenTable(tuple("abc"[: len(lengths)]), ("s",) * len(lengths), columns)


def places_of(table: TokenTable) -> TokenPlaces:
    message = table["is_response"].map_values(lambda labels: np.where(labels, 1, NO_PLACE))
    position = message.with_values(np.concatenate([np.arange(length) for length in message.lengths]))
    return TokenPlaces(message, position, position.map_values(lambda values: values + 1))


def spans(found: list[Suggestion]) -> list[tuple[int, int, int, str]]:
    return [(one.row, one.first, one.behind, one.reason) for one in found]


def test_dropped_passages_come_by_the_sum_of_their_scores():
    kept = ["..xxxx------", "..----xxxx--", "..xxxxxxxxxx"]
    scores = [[NAN, NAN, *[1.0] * 4, *[-1.0] * 6], [NAN, NAN, *[-3.0] * 4, *[1.0] * 4, *[-0.5] * 2], [NAN] * 12]
    table = table_of(kept, scores)
    found = suggest(table, places_of(table), {}, {}, 10)
    assert spans(found) == [(1, 2, 6, "dropped"), (1, 10, 12, "dropped"), (0, 6, 12, "dropped")]
    assert spans(suggest(table, places_of(table), {}, {}, 1)) == [(1, 2, 6, "dropped")]


def test_without_scores_the_longest_come_first_and_short_gaps_are_joined():
    table = table_of(["..-x--xx-xxx", "..xxx-xxx-xx", "..xxxxxxxxxx"])
    found = suggest(table, places_of(table), {}, {}, 10)
    assert spans(found) == [(0, 2, 9, "dropped"), (1, 5, 6, "dropped"), (1, 9, 10, "dropped")]


def test_passages_do_not_join_across_messages():
    table = table_of(["..--x---xxxx"], lengths=(12,))
    message = np.array([NO_PLACE] * 2 + [1] * 4 + [3] * 6)
    places = TokenPlaces(*(table["input_ids"].with_values(values) for values in (message, message, message)))
    assert spans(suggest(table, places, {}, {}, 9)) == [(0, 2, 6, "dropped"), (0, 6, 8, "dropped")]
    places = TokenPlaces(*(table["input_ids"].with_values(np.full(12, NO_PLACE)) for _ in range(3)))
    assert suggest(table, places, {}, {"a": 0.5}, 9) == []


def test_a_row_gives_five_passages_at_most():
    table = table_of(["..-xxx" + "-xxx" * 8], lengths=(38,))
    assert len(suggest(table, places_of(table), {}, {}, 100)) == 5


def test_without_labels_the_lowest_scores_are_suggested():
    scores = [[NAN, NAN, *range(10)], [NAN, NAN, *range(10, 20)], [NAN, NAN, *range(20, 30)]]
    table = table_of(None, scores)
    assert spans(suggest(table, places_of(table), {}, {}, 10)) == [(0, 2, 5, "low score")]
    bare = table_of()
    assert suggest(bare, places_of(bare), {}, {}, 10) == []


def test_the_three_lists_take_turns():
    own = table_of(["..xxxxxxxxxx", "..xxxxxx----", "..xxxxxxxxxx"])
    other = table_of(["..---xxxxxxx", "..xxxxxx----", "..xxxxxxxxxx"])
    found = suggest(own, places_of(own), {"other": other}, {"c": 0.4, "a": 0.1, "b": 0.0}, 10)
    assert spans(found) == [
        (2, 2, 12, "estimated noise"),
        (1, 8, 12, "dropped"),
        (0, 2, 5, "methods disagree"),
        (0, 2, 12, "estimated noise"),
    ]
    everything = table_of(["..xxxxxxxxxx"] * 3)  # is no opinion
    assert spans(suggest(own, places_of(own), {"full_tokens": everything}, {}, 9)) == [(1, 8, 12, "dropped")]


def test_what_a_critic_named_comes_first_with_its_reasons():
    table = table_of(["..xxxxxx----", "..xxxxxxxxxx", "..xxxxxxxxxx"])
    places = places_of(table)
    critic = [
        CriticSpan("c", 1, 3, 5, "critic: false"),
        CriticSpan("a", 1, 2, 4, "critic"),
        CriticSpan("a", 0, 2, 4, "another message"),
        CriticSpan("a", 1, 0, 2, "its prompt, which has no place"),
        CriticSpan("gone", 1, 2, 4, "another row"),
        *(CriticSpan("b", 1, start, start + 1, "many") for start in range(2, 12)),
    ]
    found = spans(suggest(table, places, {}, {}, 100, critic))
    assert found[:3] == [(2, 3, 5, "critic: false"), (0, 2, 4, "critic"), (0, 8, 12, "dropped")]
    assert [one[1] for one in found[3:]] == [2, 3, 4, 5, 6]
    assert spans(suggest(table, places, {}, {}, 1, critic)) == [(2, 3, 5, "critic: false")]


def test_rows_with_suggestions_are_shown_first():
    suggested = [Suggestion(3, 0, 1, ""), Suggestion(3, 2, 3, ""), Suggestion(1, 0, 1, "")]
    lengths = np.array([10, 10, 10, 10, 500])
    assert rows_to_review(suggested, lengths, Sample(conversations=3, tokens=100)).tolist() == [0, 1, 3]
    assert rows_to_review(suggested, lengths, Sample(conversations=9, tokens=20)).tolist() == [1, 3]


def test_detection_against_hand_counted_values():
    kept = ["..xx----xxxx"]
    scores = [[NAN, NAN, 4.0, 3, 1, 1, 0, 2, NAN, 9, 9, 9]]
    table = table_of(kept, scores, lengths=(12,))
    decided = table["input_ids"].with_values(np.array([NAN, NAN, 1, 0, 0, 0, 1, NAN, 0.5, NAN, NAN, NAN], np.float32))
    found = measure_detection(table, decided)
    assert (found.tokens, found.noise, found.scored) == (6, 3, 5)
    assert found.precision == pytest.approx(2 / 3)  # of the dropped 4, 5, 6 people drop 4 and 5
    assert found.recall == pytest.approx(2 / 3)  # of 3, 4, 5 the table drops 4 and 5
    # kept: 4 and 0; dropped: 3, 1, 1: of six pairs three are right
    assert found.auroc == pytest.approx(3 / 6)


def test_detection_of_nothing_is_not_defined():
    table = table_of(["..xxxxxxxxxx"], lengths=(12,))
    nothing = table["input_ids"].with_values(np.full(12, np.nan, np.float32))
    found = measure_detection(table, nothing)
    assert (found.tokens, found.scored) == (0, 0)
    assert np.isnan([found.precision, found.recall, found.auroc]).all()
    assert np.isnan(measure_detection(table, nothing.map_values(np.nan_to_num)).auroc)
    with pytest.raises(TableError, match="of other rows"):
        measure_detection(table, Ragged.from_rows([[0.0]], np.float32))
