from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tokenclean.models.causal_lm import CausalLM, evaluating
from tokenclean.models.prefix_tree import plan_prefix_packs, plan_prefix_tree

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

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
    assert tree.requested_tokens == sum(map(len, sequences))
    assert all(node.parent < number for number, node in enumerate(tree.nodes))
    assert all(len(node.tokens) for node in tree.nodes)


@given(sequences_of_few_tokens, st.integers(1, 12), st.integers(1, 6))
def test_packs_hold_every_node_once_and_know_what_comes_before(sequences, budget, group_tokens):
    """What a query may see, by the pack's account, is what stands before it in its sequence."""
    tree = plan_prefix_tree(sequences)
    kept: set[int] = set()
    told: dict[tuple[int, int], list[int]] = {}  # (node, offset) -> the tokens it sees
    for pack in plan_prefix_packs(tree, budget, group_tokens):
        assert len(pack.ids) <= budget or len(pack.starts) == 1
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
            for place, (branch, position) in zip(range(call.start, call.stop), call.queries.tolist(), strict=True):
                visible = ((call.keys[:, 0] == -1) | (call.keys[:, 0] == branch)) & (call.keys[:, 1] <= position)
                order = np.argsort(call.keys[visible, 1])
                told[owners[place]] = keys[visible][order].tolist()
                assert pack.positions[place] == position
        kept |= set(pack.keep)
        kept -= set(pack.drop)
    assert not kept
    for sequence, end in zip(sequences, tree.ends.tolist(), strict=True):
        for position in range(len(sequence)):
            assert told[tree.place(end, position)] == sequence[: position + 1]


def test_few_shot_questions_share_their_block():
    block = list(range(40))
    tree = plan_prefix_tree([[*block, 50 + question, *range(9)] for question in range(5)])
    assert tree.tokens == 40 + 5 * 10
    assert [node.parent for node in tree.nodes] == [-1, 0, 0, 0, 0, 0]
    packs = plan_prefix_packs(tree, 60)
    assert [len(pack.ids) for pack in packs] == [60, 30]
    assert packs[0].keep == {0: (0, 40)}
    assert packs[1].drop == (0,)
    assert [(call.start, call.stop) for call in packs[1].attending] == [(0, 30)]


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="without tokens"):
        plan_prefix_tree([[1], []])


def models():
    torch.manual_seed(0)
    yield "llama", LlamaForCausalLM(LlamaConfig(**SIZES))
    yield "qwen2", Qwen2ForCausalLM(Qwen2Config(**SIZES))
    window = {"sliding_window": 12, "head_dim": 8, "query_pre_attn_scalar": 8}
    yield "gemma2, window and soft caps", Gemma2ForCausalLM(Gemma2Config(**SIZES, **window))


@pytest.mark.parametrize(("name", "model"), list(models()), ids=lambda value: value if isinstance(value, str) else "")
@settings(max_examples=12, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(3, 6), min_size=2, max_size=30), min_size=1, max_size=8),
    budget=st.integers(1, 60),
)
def test_losses_in_a_tree_are_those_of_whole_sequences(name, model, sequences, budget):
    causal_lm = _causal_lm(model)
    tree = plan_prefix_tree([sequence[:-1] for sequence in sequences])
    places, targets = [], []
    for sequence, end in zip(sequences, tree.ends.tolist(), strict=True):
        places += [tree.place(end, position) for position in range(len(sequence) - 1)]
        targets += sequence[1:]
    with evaluating(model), torch.no_grad(), causal_lm.precision("exact"):
        found = causal_lm.measures_in_tree(
            tree, np.array(places), np.array(targets), ("loss", "is_top1"), budget=budget
        )
        logits = [model(torch.tensor([sequence])).logits[0, :-1].float() for sequence in sequences]
    expected = torch.cat(
        [
            torch.nn.functional.cross_entropy(part, torch.tensor(sequence[1:]), reduction="none")
            for part, sequence in zip(logits, sequences, strict=True)
        ]
    )
    torch.testing.assert_close(found["loss"], expected, atol=2e-5, rtol=1e-4)
    is_top1 = torch.cat([part.argmax(-1) == torch.tensor(s[1:]) for part, s in zip(logits, sequences, strict=True)])
    assert torch.equal(found["is_top1"].bool(), is_top1)


_made: dict[int, CausalLM] = {}


def _causal_lm(model) -> CausalLM:
    if id(model) not in _made:
        _made[id(model)] = CausalLM(model, longest_row=40)
        assert _made[id(model)].shares_prefixes()
    return _made[id(model)]
