from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.models.prefix_tree import plan_prefix_packs, plan_prefix_tree

sequences_of_few_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=14)


@given(sequences_of_few_tokens)
def test_every_sequence_is_read_off_its_path(sequences):
    tree = plan_prefix_tree(sequences)
    for sequence, end in zip(sequences, tree.ends.tolist(), strict=True):
        path = tree.path(end)
        assert np.concatenate([tree.nodes[number].tokens for number in path]).tolist() == sequence
        assert [tree.nodes[number].depth for number in path] == np.cumsum(
            [0, *(len(tree.nodes[number].tokens) for number in path[:-1])]
        ).tolist()
        for position, token in enumerate(sequence):
            node, offset = tree.place(end, position)
            assert tree.nodes[node].tokens[offset] == token


@given(sequences_of_few_tokens)
def test_every_beginning_stands_once_and_before_what_follows_it(sequences):
    tree = plan_prefix_tree(sequences)
    beginnings = {tuple(sequence[: stop + 1]) for sequence in sequences for stop in range(len(sequence))}
    assert tree.tokens == len(beginnings)
    assert all(node.parent < number for number, node in enumerate(tree.nodes))
    assert all(len(node.tokens) for node in tree.nodes)


@given(sequences_of_few_tokens, st.integers(1, 12), st.none() | st.integers(1, 6))
def test_packs_hold_every_node_once_and_know_what_comes_before(sequences, budget, group_tokens):
    """What a query may see, by the pack's account, is what stands before it in its sequence."""
    tree = plan_prefix_tree(sequences)
    kept: set[int] = set()
    reported: dict[tuple[int, int], list[int]] = {}  # (node, offset) -> the tokens it sees
    for pack in plan_prefix_packs(tree, budget, group_tokens):
        assert len(pack.ids) <= budget or len(pack.starts) == 1
        assert group_tokens is not None or len(pack.attending) == 1
        owners = {
            pack.starts[number] + offset: (number, offset)
            for number in pack.starts
            for offset in range(len(tree.nodes[number].tokens))
        }
        for call in pack.attending:
            assert set(call.kept) <= kept
            seen = [tree.nodes[number].tokens for number in call.kept] + [pack.ids[a:b] for a, b in call.inside]
            keys = np.concatenate(seen)
            assert len(keys) == len(call.keys)
            for place, (node, position) in zip(range(*call.inside[-1]), call.queries.tolist(), strict=True):
                visible = call.sees[node][call.keys[:, 0]] & (call.keys[:, 1] <= position)
                order = np.argsort(call.keys[visible, 1])
                reported[owners[place]] = keys[visible][order].tolist()
                assert pack.positions[place] == position
        kept |= set(pack.keep)
        kept -= set(pack.drop)
    assert not kept
    for sequence, end in zip(sequences, tree.ends.tolist(), strict=True):
        for position in range(len(sequence)):
            assert reported[tree.place(end, position)] == sequence[: position + 1]


def test_few_shot_questions_share_their_block():
    block = list(range(40))
    tree = plan_prefix_tree([[*block, 50 + question, *range(9)] for question in range(5)])
    assert tree.tokens == 40 + 5 * 10
    assert [node.parent for node in tree.nodes] == [-1, 0, 0, 0, 0, 0]
    packs = plan_prefix_packs(tree, 60)
    assert [len(pack.ids) for pack in packs] == [60, 30]
    assert packs[0].keep == {0: (0, 40)}
    assert packs[1].drop == (0,)
    assert [call.inside[-1] for call in packs[1].attending] == [(0, 30)]


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="without tokens"):
        plan_prefix_tree([[1], []])
