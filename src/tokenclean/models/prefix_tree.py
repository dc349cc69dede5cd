"""Sequences with common beginnings as a tree, in which every shared prefix is one node, cut into packs.

A node holds the tokens that all sequences below it share, beyond those of the nodes above. Nodes are in depth-first
order, so a node comes after all that it attends to, and only the nodes above it are needed again: a pass over the packs
keeps keys and values of one branch at most.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Node:
    """``tokens``: int64, at least one. ``parent``: its number, −1 at a root. ``depth``: tokens of the nodes above."""

    tokens: np.ndarray
    parent: int
    depth: int


@dataclass(frozen=True)
class PrefixTree:
    """``nodes`` in depth-first order; ``ends``: for each sequence, in the order given, the node of its last token.

    A sequence that is the beginning of another ends where a node does, since the other branches off there.
    """

    nodes: tuple[Node, ...]
    ends: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens of all nodes: what a pass computes."""
        return sum(len(node.tokens) for node in self.nodes)

    def path(self, number: int) -> list[int]:
        """The node and those above it, from the root down."""
        path = []
        while number >= 0:
            path.append(number)
            number = self.nodes[number].parent
        return path[::-1]

    def place(self, end: int, position: int) -> tuple[int, int]:
        """Node and offset in it of a token, by its position in the sequence that ends in the node ``end``."""
        while self.nodes[end].depth > position:
            end = self.nodes[end].parent
        return end, position - self.nodes[end].depth


def plan_prefix_tree(sequences: Sequence[ArrayLike]) -> PrefixTree:
    """The tree of the sequences, each of at least one token id. Raises ValueError for an empty one."""
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    if any(not len(array) for array in arrays):
        raise ValueError("a sequence without tokens has no place in a prefix tree")
    # Sorted, the sequences below a node are neighbours, and what the first and the last share, all of them share.
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].tolist())
    nodes: list[Node] = []
    ends = np.zeros(len(arrays), dtype=np.int64)
    waiting = [(group, -1, 0) for group in reversed(_branches(arrays, order, 0))]
    while waiting:
        group, parent, depth = waiting.pop()
        first, number = arrays[group[0]], len(nodes)
        stop = _common(first, arrays[group[-1]])
        nodes.append(Node(first[depth:stop], parent, depth))
        ends[group] = number  # of those that go on, the nodes below will overwrite it
        below = _branches(arrays, [i for i in group if len(arrays[i]) > stop], stop)
        # Leaves first: siblings without children are then side by side and attend in one call.
        below.sort(key=lambda branch: not np.array_equal(arrays[branch[0]], arrays[branch[-1]]))
        waiting.extend((branch, number, stop) for branch in reversed(below))
    return PrefixTree(tuple(nodes), ends)


def _branches(arrays: list[np.ndarray], group: list[int], depth: int) -> list[list[int]]:
    """The sorted sequences of a group by their token at ``depth``."""
    return [list(branch) for _, branch in groupby(group, key=lambda i: int(arrays[i][depth]))]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


@dataclass(frozen=True)
class Attending:
    """Neighbouring tokens of a pack that attend together.

    ``kept``: nodes of earlier packs whose keys come first; ``inside``: (start, stop) in the pack of the keys after
    them, the queries' own last. ``queries``, ``keys``: (number of its node, position) of each, int64 (Q, 2) and (K, 2).
    ``sees``: bool, which nodes of keys a node of queries sees, itself and those above; up to the query's position.
    """

    kept: tuple[int, ...]
    inside: tuple[tuple[int, int], ...]
    queries: np.ndarray
    keys: np.ndarray
    sees: np.ndarray


@dataclass(frozen=True)
class PrefixPack:
    """One forward pass. ``ids``, ``positions``: int64 (T,); ``starts``: node -> where its tokens begin in the pack.

    ``keep``: node -> (start, stop) whose keys and values later packs need; ``drop``: kept nodes that none needs then.
    """

    ids: np.ndarray
    positions: np.ndarray
    starts: dict[int, int]
    attending: tuple[Attending, ...]
    keep: dict[int, tuple[int, int]]
    drop: tuple[int, ...]


def plan_prefix_packs(tree: PrefixTree, budget: int, group_tokens: int | None = 256) -> list[PrefixPack]:
    """Neighbouring nodes in packs of at most ``budget`` tokens (one node alone may have more).

    Siblings without children share a call of attention of up to ``group_tokens`` queries; with None all of a pack.
    """
    groups: list[list[int]] = []
    filled = 0
    for number, node in enumerate(tree.nodes):
        if not groups or filled + len(node.tokens) > budget:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += len(node.tokens)
    # Of each node with children the last pack that has a node below it.
    last_use = {
        above: place for place, group in enumerate(groups) for number in group for above in tree.path(number)[:-1]
    }
    return [_pack(tree, place, group, last_use, group_tokens) for place, group in enumerate(groups)]


def _pack(
    tree: PrefixTree, place: int, group: list[int], last_use: dict[int, int], group_tokens: int | None
) -> PrefixPack:
    stops = np.cumsum([len(tree.nodes[number].tokens) for number in group]).tolist()
    spans = dict(zip(group, zip([0, *stops[:-1]], stops, strict=True), strict=True))
    runs = [group] if group_tokens is None else _runs(tree, group, last_use, group_tokens)
    return PrefixPack(
        ids=np.concatenate([tree.nodes[number].tokens for number in group]),
        positions=np.concatenate([_positions(tree.nodes[number], 0)[:, 1] for number in group]),
        starts={number: start for number, (start, _) in spans.items()},
        attending=tuple(_attending(tree, run, spans) for run in runs),
        keep={number: spans[number] for number in group if last_use.get(number, place) > place},
        drop=tuple(number for number, last in last_use.items() if last == place and number not in spans),
    )


def _attending(tree: PrefixTree, run: list[int], spans: dict[int, tuple[int, int]]) -> Attending:
    """``run``: neighbouring nodes of a pack; ``spans``: (start, stop) of each node of the pack."""
    paths = [tree.path(number) for number in run]
    above = sorted(set().union(*paths).difference(run))
    kept, shared = ([n for n in above if (n in spans) is is_inside] for is_inside in (False, True))
    seen = {number: index for index, number in enumerate([*kept, *shared, *run])}
    sees = np.zeros((len(run), len(seen)), dtype=np.bool_)
    for own, path in zip(sees, paths, strict=True):
        own[[seen[number] for number in path]] = True
    return Attending(
        kept=tuple(kept),
        inside=(*(spans[number] for number in shared), (spans[run[0]][0], spans[run[-1]][1])),
        queries=np.concatenate([_positions(tree.nodes[number], index) for index, number in enumerate(run)]),
        keys=np.concatenate([_positions(tree.nodes[number], index) for number, index in seen.items()]),
        sees=sees,
    )


def _runs(tree: PrefixTree, group: list[int], parents: Container[int], group_tokens: int) -> list[list[int]]:
    """Nodes of a pack that attend together: neighbouring siblings without children, else one node."""
    runs: list[list[int]] = []
    filled = 0
    for number in group:
        parent, size = tree.nodes[number].parent, len(tree.nodes[number].tokens)
        are_leaves = bool(runs) and number not in parents and runs[-1][-1] not in parents
        if are_leaves and tree.nodes[runs[-1][-1]].parent == parent and filled + size <= group_tokens:
            runs[-1].append(number)
            filled += size
        else:
            runs.append([number])
            filled = size
    return runs


def _positions(node: Node, index: int) -> np.ndarray:
    """(index, position) of each token, int64 (n, 2)."""
    positions = np.arange(node.depth, node.depth + len(node.tokens))
    return np.stack([np.full(len(positions), index), positions], axis=1)
