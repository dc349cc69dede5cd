from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.pool.formats.field_types import RowError
from tokenclean.pool.formats.labelled_tokens import parse_labelled_tokens


@st.composite
def labelled_rows(draw: st.DrawFn) -> dict[str, list[int]]:
    """Rows whose labels stand on their tokens, padding anywhere, the first token a target or not."""
    positions = draw(st.lists(st.sampled_from(["target", "prompt", "padding"]), min_size=3, max_size=20))
    ids = draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(positions), max_size=len(positions)))
    return {
        "input_ids": ids,
        "labels": [i if p == "target" else -100 for i, p in zip(ids, positions, strict=True)],
        "attention_mask": [int(p != "padding") for p in positions],
    }


@given(labelled_rows(), st.sampled_from([list, json.dumps]))
def test_padding_goes_and_the_first_token_is_no_target(row, convert):
    kept = [t for t, flag in enumerate(row["attention_mask"]) if flag]
    targets = [row["labels"][t] != -100 for t in kept]
    targets[:1] = [False] * len(targets[:1])
    given_row = {key: convert(values) for key, values in row.items()}
    if len(kept) < 2 or not any(targets):
        with pytest.raises(RowError):
            parse_labelled_tokens(given_row)
        return
    tokens = parse_labelled_tokens(given_row)
    assert tokens.input_ids.dtype == np.int64
    assert tokens.is_response.dtype == bool
    assert tokens.input_ids.tolist() == [row["input_ids"][t] for t in kept]
    assert tokens.is_response.tolist() == targets


@pytest.mark.parametrize(
    ("ids", "labels", "mask", "reason"),
    [
        (None, [1], None, "input_ids: missing"),
        ([1, 2], None, None, "labels: missing"),
        (3, [1], None, "input_ids: expected a list, found number"),
        ("1, 2", [1], None, "input_ids: text is not JSON at character 2: Extra data"),
        ([], [], None, "input_ids: expected at least 2 tokens, found 0"),
        ([1], [1], None, "input_ids: expected at least 2 tokens, found 1"),
        ([1, 2], [1, 2], [0, 1], "labels[0]: expected -100 where attention_mask is 0, found 1"),
        ([1, 2], [-100, 2], [0, 1], "input_ids: expected at least 2 tokens, found 1"),
        ([1, 2], [1], None, "labels: expected 2 numbers, as many as input_ids, found 1"),
        ([1, 2], [1, 2], [1], "attention_mask: expected 2 numbers, as many as input_ids, found 1"),
        ([1, 2], [1, 2], [1, 2], "attention_mask[1]: expected 0 or 1, found 2"),
        ([1, True], [1, 1], None, "input_ids[1]: expected an integer, found true"),
        ([1, 2.0], [1, 2], None, "input_ids[1]: expected an integer, found 2.0"),
        ([1, None], [1, 2], None, "input_ids[1]: expected an integer, found null"),
        ([1, [2]], [1, 2], None, "input_ids[1]: expected an integer, found list"),
        ([1, 2**63], [1, 2], None, "input_ids: holds a number beyond 64 bits"),
        ([1, 10**5000], [1, 2], None, "input_ids: holds a number beyond 64 bits"),
        ([1, -2], [-100, -2], None, "input_ids[1]: expected a token id of 0 or more, found -2"),
        ([1, 2, 3], [-100, -100, -100], None, "labels: no target after position 0"),
        ([1, 2, 3], [1, -100, -100], None, "labels: no target after position 0"),
        ([1, 2, 3], [-100, 2, 9], None, "labels[2]: expected -100 or the id of its own token, 3, found 9"),
        ([1, 2, 3], [-100, -1, 3], None, "labels[1]: expected -100 or the id of its own token, 2, found -1"),
    ],
)
def test_faults(ids, labels, mask, reason):
    with pytest.raises(RowError) as caught:
        parse_labelled_tokens({"input_ids": ids, "labels": labels, "attention_mask": mask})
    assert str(caught.value).startswith(reason)
    assert "shifted" not in str(caught.value)


@pytest.mark.parametrize("last", [-100, 4, 9])
def test_labels_that_stand_before_their_token_are_told(last):
    with pytest.raises(RowError, match=r"labels\[1\]: .* 2, found 3; every label is .* shifted by one\?"):
        parse_labelled_tokens({"input_ids": [1, 2, 3, 4], "labels": [-100, 3, 4, last]})
