"""Losses of two policies are never subtracted, and every policy is on record."""

from __future__ import annotations

import pytest

from tokenclean.errors import PolicyMismatchError, TokencleanError
from tokenclean.scoring.scorer import check_same_policy, merge_policies

POLICY = {"precision": "safe", "pack_tokens": 4096, "kernel": "packed"}


def test_one_policy_passes():
    check_same_policy(POLICY, dict(reversed(POLICY.items())))
    check_same_policy({}, {})


@pytest.mark.parametrize(("key", "value"), [("precision", "fast"), ("pack_tokens", 512), ("kernel", "one a pass")])
def test_any_difference_is_told_with_both_values_and_the_way_out(key, value):
    with pytest.raises(PolicyMismatchError, match="under another output name") as raised:
        check_same_policy(POLICY, POLICY | {key: value})
    assert f"differ in {key} (base: {POLICY[key]}; reference: {value})" in str(raised.value)
    assert isinstance(raised.value, TokencleanError)
    assert isinstance(raised.value, ValueError)


def test_a_policy_that_was_not_recorded_differs():
    older = {"precision": "safe", "pack_tokens": 4096}
    with pytest.raises(PolicyMismatchError, match=r"kernel \(base: nothing recorded; reference: packed\)"):
        check_same_policy(older, POLICY)
    with pytest.raises(PolicyMismatchError, match=r"kernel \(base: packed; reference: nothing recorded\)"):
        check_same_policy(POLICY, older)


def test_the_record_lists_values_in_which_shards_differ():
    assert merge_policies([]) == {}
    assert merge_policies([POLICY, POLICY]) == POLICY
    other = POLICY | {"kernel": "other"}
    assert merge_policies([POLICY, other, POLICY]) == POLICY | {"kernel": ["packed", "other"]}
