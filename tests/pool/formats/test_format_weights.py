from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parsing import parse_row

from tokenclean.pool import Turn
from tokenclean.pool.formats import RowError

QUESTION = {"role": "user", "content": "Why?"}


def answer(content: object = "abcdef", **more: Any) -> Turn:
    row = {
        "messages": [
            QUESTION,
            {"role": "assistant", "content": content, **more},
            QUESTION,
            {"role": "assistant", "content": "z"},
        ]
    }
    return parse_row(row).turns[1]


def reason(row: dict[str, Any]) -> str:
    with pytest.raises(RowError) as caught:
        parse_row(row)
    return str(caught.value)


@pytest.mark.parametrize(
    ("stated", "weight"),
    [
        ({"weight": 0.5}, 0.5),
        ({"loss_weight": 0.25}, 0.25),
        ({"loss_scale": 1}, 1.0),
        ({"train": 0.5}, 0.5),
        ({"train": True, "weight": 0.5}, 0.5),
        ({"mask": False}, 1.0),
        ({"weight": True}, 1.0),
        ({"loss": 1}, 1.0),
    ],
)
def test_the_weight_of_a_message(stated, weight):
    assert answer(**stated) == Turn("assistant", "abcdef", weight=weight)


@pytest.mark.parametrize("stated", [{"loss_weight": 0.0}, {"train": 0}, {"mask": True}, {"loss_scale": 0}])
def test_a_weight_of_zero_is_not_trained(stated):
    assert answer(**stated) == Turn("assistant", "abcdef", is_trained=False)


def test_parts_have_weights_of_their_own():
    parts = [{"type": "text", "text": "ab", "train": False}, "cd", {"type": "text", "value": "ef", "loss_weight": 0.5}]
    assert answer(parts) == Turn("assistant", "abcdef", spans=((0, 2, 0.0), (4, 6, 0.5)))
    assert answer(parts[:1]).is_trained is True  # its end token
    assert answer(parts[:1], train=False).is_trained is False
    assert answer(["ab", {"type": "text", "text": "cd", "weight": 1}], weight=0.5).spans == ((2, 4, 1.0),)


def test_train_detail_counts_characters_the_last_one_included():
    detail = [{"begin_offset": 3, "end_offset": 5, "train": False}, {"begin_offset": 0, "end_offset": 0, "train": True}]
    assert answer(train_detail=detail) == Turn("assistant", "abcdef", spans=((3, 6, 0.0),))
    only = answer(train=False, train_detail=[{"begin_offset": 1, "end_offset": 2, "train": True}])
    assert (only.is_trained, only.weight, only.spans) == (True, 0.0, ((1, 3, 1.0),))
    faults = (
        [{"begin_offset": 0, "end_offset": 6, "train": True}],
        [{"begin_offset": 0, "end_offset": 2, "train": True}, {"begin_offset": 2, "end_offset": 3, "train": True}],
        [{"begin_offset": "0", "end_offset": 2}],
    )
    for fault in faults:
        messages = [QUESTION, {"role": "assistant", "content": "abcdef", "train_detail": fault}]
        assert "train_detail" in reason({"messages": messages})


def test_parts_of_llamafactory():
    parts = [
        {"type": "reasoning", "value": "Hm."},
        {"type": "text", "value": "So."},
        {"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
    ]
    turn = answer(parts)
    assert (turn.reasoning, turn.content, turn.tool_calls[0].name) == ("Hm.", "So.", "add")
    assert "found 'reasoning'" in reason(
        {"messages": [QUESTION | {"content": parts[:1]}, {"role": "assistant", "content": "x"}]}
    )


def test_an_image_part_may_be_ignored():
    messages = [
        QUESTION | {"content": [{"type": "image_url", "image_url": {"url": "x"}}, "Why?"]},
        {"role": "assistant", "content": "x"},
    ]
    assert "found 'image_url'" in reason({"messages": messages})
    parsed = parse_row({"messages": messages}, ignore=("image_url",))
    assert (parsed.turns[0].content, parsed.notes) == ("Why?", ("parts of type image_url left out",))


def test_the_weight_of_a_row_weighs_all_that_is_trained():
    row = {
        "messages": [
            QUESTION,
            {"role": "assistant", "content": ["ab", {"type": "text", "text": "c", "weight": 0.5}], "weight": 1},
        ]
    }
    turn = parse_row(row | {"sample_weight": 0.5}).turns[1]
    assert (turn.weight, turn.spans) == (0.5, ((2, 3, 0.25),))
    assert parse_row({"prompt": "a", "completion": "b", "weight": 0.5}).turns[1].weight == 0.5
    unlearned = parse_row(row | {"weight": -1}).turns[1]
    assert (unlearned.weight, unlearned.spans, unlearned.is_trained) == (-1.0, ((2, 3, -0.5),), True)
    assert reason(row | {"weight": -2}).startswith("weight: expected a number from -1 to 1, found -2")
    with pytest.raises(RowError, match="not trained") as left_out:
        parse_row(row | {"train": False})
    assert left_out.value.is_chosen
    assert parse_row(row | {"mask": "User"}).turns == parse_row(row).turns


def test_masks_and_weights_of_tokens():
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}
    masked = parse_row(row | {"completion_mask": [0, 0, 1, 1], "loss_mask": [True, True, True, False]}).tokens
    assert masked is not None
    assert masked.is_response.tolist() == [False, False, True, False]
    assert masked.weight is None
    weighed = parse_row(row | {"token_weight": [1, 0, 0.5, 1], "weight": 0.5}).tokens
    assert weighed is not None
    assert weighed.weight is not None
    assert weighed.is_response.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(weighed.weight, np.float32([0.5, 0, 0.25, 0.5]))
    assert reason(row | {"token_weight": [1, 0, -2, 1]}).startswith("token_weight[2]: expected a number from -1 to 1")
    assert reason(row | {"loss_mask": [1]}).startswith("loss_mask: expected 4 numbers")


def test_tokens_of_negative_weight_are_unlearned_with_a_label_or_without():
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "token_weight": [-1, -0.5, -1, 1]}
    tokens = parse_row(row).tokens
    assert tokens is not None
    assert tokens.weight is not None
    assert tokens.is_response.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(tokens.weight, np.float32([0, -0.5, -1, 1]))
    turned = parse_row({"input_ids": [5, 6, 7], "labels": [-100, 6, -100], "weight": -0.5}).tokens
    assert turned is not None
    assert turned.weight is not None
    assert turned.is_response.tolist() == [False, False, False]
    np.testing.assert_array_equal(turned.weight, np.float32([0, -0.5, 0]))


def test_messages_and_parts_with_negative_weights():
    assert answer(weight=-0.5).weight == -0.5
    assert answer(train=-1).weight == -1
    assert answer(loss_scale=-1, train=True).weight == -1
    turn = answer(["ab", {"type": "text", "text": "c", "weight": -0.25}], train=False)
    assert (turn.is_trained, turn.weight, turn.spans) == (True, 0, ((2, 3, -0.25),))


def test_details_in_a_cell_that_python_wrote():
    cell = "[{'begin_offset': 0, 'end_offset': 1, 'train': False}]"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo no", "train_detail": cell}]
    assert parse_row({"messages": messages}, python_literals=True).turns[1].spans == ((0, 2, 0.0),)
    assert reason({"messages": messages}).startswith("messages[1].train_detail: text is not JSON")
