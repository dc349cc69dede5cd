from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenclean.models.attention.length_buckets import LengthBucket, plan_buckets, starts_of

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30).map(tuple)


@settings(deadline=None)
@given(LENGTHS, st.sampled_from([0.0, 0.125, 0.5]))
def test_a_plan_covers_the_pack_and_wastes_no_more_than_its_share(lengths, padding):
    buckets = plan_buckets(lengths, padding)
    assert sum((bucket.lengths for bucket in buckets), ()) == lengths
    for bucket, following in zip(buckets, [*buckets[1:], None], strict=True):
        places = bucket.width * len(bucket.lengths)
        assert places - bucket.tokens <= padding * places
        if following is not None:  # one more row would have been too much
            grown = LengthBucket((*bucket.lengths, following.lengths[0]))
            places = grown.width * len(grown.lengths)
            assert places - grown.tokens > padding * places


def test_without_padding_only_rows_of_one_length_share_a_bucket():
    buckets = plan_buckets((9, 9, 8, 9, 9, 9, 1), 0.0)
    assert [bucket.lengths for bucket in buckets] == [(9, 9), (8,), (9, 9, 9), (1,)]
    assert all(bucket.is_full for bucket in buckets)


@settings(deadline=None)
@given(LENGTHS)
def test_rows_hold_their_own_conversation_and_lie_flat_again(lengths):
    bucket = LengthBucket(lengths)
    flat = torch.arange(1.0, bucket.tokens + 1)[None, None, :, None].expand(1, 2, bucket.tokens, 3)
    rows = bucket.pad(flat)
    assert rows.shape == (len(lengths), 2, max(lengths), 3)
    for row, start, length in zip(rows, starts_of(lengths), lengths, strict=True):
        expected = torch.arange(max(lengths)).clamp(max=length - 1) + start + 1
        assert (row == expected[None, :, None]).all()
    assert torch.equal(bucket.unpad(rows), flat.transpose(1, 2))


def test_a_full_bucket_is_a_view():
    flat = torch.randn(1, 12, 4, 8).transpose(1, 2)
    rows = LengthBucket((3, 3, 3, 3)).pad(flat)
    assert rows.data_ptr() == flat.data_ptr()
    assert rows._is_view()


@pytest.mark.parametrize("lengths", [(4, 4), (4, 3)])
def test_gradients_pass_through(lengths):
    flat = torch.randn(1, 2, sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    bucket = LengthBucket(lengths)
    assert torch.autograd.gradcheck(lambda t: bucket.unpad(bucket.pad(t) ** 2), flat)
