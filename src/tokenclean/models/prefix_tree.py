"""Sequences that begin alike, as a tree in which every shared beginning stands once, cut into packs.

A node holds the tokens that all sequences below it share, beyond those of the nodes above. Nodes are in depth-first
order, so a node comes after all that it attends to, and at any place in that order only the nodes above it are needed
again: a pass over the packs keeps keys and values of one branch at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """``nodes`` in depth-first order; ``ends``: for each sequence as it was given, the node that holds its last token.

    A sequence that is the beginning of another ends where a node does, since the other branches off there.
    """

    nodes: tuple[Node, ...]
    ends: np.ndarray
    requested_tokens: int

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
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].tolist())
    ends = np.zeros(len(arrays), dtype=np.int64)
    spans: list[list[int]] = []  # first sequence, start, stop, parent of each node, in depth-first order
    branch: list[int] = []  # the nodes of the sequence placed last, from the root down
    previous: np.ndarray | None = None
    for number in order:
        tokens = arrays[number]
        shared = 0 if previous is None else _common(previous, tokens)
        while branch and spans[branch[-1]][1] >= shared:  # nodes that begin beyond what is shared
            branch.pop()
        if branch and spans[branch[-1]][2] > shared:
            _split(spans, branch, ends, shared)
        if len(tokens) > shared:
            spans.append([number, shared, len(tokens), branch[-1] if branch else -1])
            branch.append(len(spans) - 1)
        ends[number] = branch[-1]
        previous = tokens
    return _in_depth_first_order(arrays, spans, ends)


def _split(spans: list[list[int]], branch: list[int], ends: np.ndarray, at: int) -> None:
    """Let the last node of the branch end at ``at``; what it held beyond becomes a child, with all that stood below."""
    upper = branch[-1]
    first, _, stop, _ = spans[upper]
    lower = len(spans)
    spans.append([first, at, stop, upper])
    spans[upper][2] = at
    for span in spans[upper + 1 : lower]:
        if span[3] == upper:
            span[3] = lower
    ends[ends == upper] = lower


def _in_depth_first_order(arrays: list[np.ndarray], spans: list[list[int]], ends: np.ndarray) -> PrefixTree:
    children: dict[int, list[int]] = {}
    for number, span in enumerate(spans):
        children.setdefault(span[3], []).append(number)
    nodes: list[Node] = []
    place = np.zeros(len(spans), dtype=np.int64)
    waiting = [(root, -1) for root in reversed(children.get(-1, []))]
    while waiting:
        number, parent = waiting.pop()
        first, start, stop, _ = spans[number]
        place[number] = len(nodes)
        nodes.append(Node(arrays[first][start:stop], parent, start))
        below = [(child, int(place[number])) for child in children.get(number, ())]
        # Leaves first: siblings that nothing follows stand side by side and attend in one call.
        below.sort(key=lambda pair: pair[0] in children)
        waiting.extend(reversed(below))
    return PrefixTree(tuple(nodes), place[ends] if len(spans) else ends, sum(map(len, arrays)))


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Number of tokens at which both begin alike."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


@dataclass(frozen=True)
class Attending:
    """Neighbouring tokens of a pack that attend together.

    ``start``, ``stop``: the queries' places in the pack. ``kept``: nodes of earlier packs whose keys come first, from
    the root down; ``inside``: (start, stop) in the pack of the keys after them, the queries' own last. ``queries``,
    ``keys``: (branch, position) of each, int64 (·, 2): a query sees a key of its own branch, or of branch −1, that
    does not lie after it.
    """

    start: int
    stop: int
    kept: tuple[int, ...]
    inside: tuple[tuple[int, int], ...]
    queries: np.ndarray
    keys: np.ndarray


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


def plan_prefix_packs(tree: PrefixTree, budget: int, group_tokens: int = 256) -> list[PrefixPack]:
    """Neighbouring nodes in packs of at most ``budget`` tokens (one node alone may have more).

    Siblings below which nothing stands share a call of attention of up to ``group_tokens`` queries.
    """
    groups: list[list[int]] = []
    filled = 0
    for number, node in enumerate(tree.nodes):
        if not groups or filled + len(node.tokens) > budget:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += len(node.tokens)
    pack_of = {number: place for place, group in enumerate(groups) for number in group}
    last_use: dict[int, int] = {}  # node -> the last pack with a node below it
    parents = {node.parent for node in tree.nodes}
    for number in range(len(tree.nodes)):
        for above in tree.path(number)[:-1]:
            last_use[above] = pack_of[number]
    return [_pack(tree, place, group, pack_of, last_use, parents, group_tokens) for place, group in enumerate(groups)]


def _pack(
    tree: PrefixTree,
    place: int,
    group: list[int],
    pack_of: dict[int, int],
    last_use: dict[int, int],
    parents: set[int],
    group_tokens: int,
) -> PrefixPack:
    starts, filled = {}, 0
    for number in group:
        starts[number] = filled
        filled += len(tree.nodes[number].tokens)
    attending = []
    for run in _runs(tree, group, parents, group_tokens):
        above = tree.path(run[0])[:-1]
        kept = tuple(number for number in above if number not in starts)
        inside = [
            (starts[number], starts[number] + len(tree.nodes[number].tokens)) for number in above if number in starts
        ]
        start, stop = starts[run[0]], starts[run[-1]] + len(tree.nodes[run[-1]].tokens)
        own = np.concatenate([_places(tree.nodes[number], branch) for branch, number in enumerate(run)])
        shared = np.stack([np.full(tree.nodes[run[0]].depth, -1), np.arange(tree.nodes[run[0]].depth)], axis=1)
        attending.append(Attending(start, stop, kept, (*inside, (start, stop)), own, np.concatenate([shared, own])))
    return PrefixPack(
        ids=np.concatenate([tree.nodes[number].tokens for number in group]),
        positions=np.concatenate([_places(tree.nodes[number], 0)[:, 1] for number in group]),
        starts=starts,
        attending=tuple(attending),
        keep={
            number: (starts[number], starts[number] + len(tree.nodes[number].tokens))
            for number in group
            if last_use.get(number, place) > place
        },
        drop=tuple(number for number, last in last_use.items() if last == place and pack_of[number] < place),
    )


def _runs(tree: PrefixTree, group: list[int], parents: set[int], group_tokens: int) -> list[list[int]]:
    """Nodes of a pack that attend together: neighbouring siblings without children, else one node."""
    runs: list[list[int]] = []
    filled = 0
    for number in group:
        node, is_leaf = tree.nodes[number], number not in parents
        last = runs[-1][-1] if runs else None
        joins = (
            last is not None
            and is_leaf
            and last not in parents
            and tree.nodes[last].parent == node.parent
            and filled + len(node.tokens) <= group_tokens
        )
        if joins:
            runs[-1].append(number)
            filled += len(node.tokens)
        else:
            runs.append([number])
            filled = len(node.tokens)
    return runs


def _places(node: Node, branch: int) -> np.ndarray:
    """(branch, position) of each token, int64 (n, 2)."""
    positions = np.arange(node.depth, node.depth + len(node.tokens))
    return np.stack([np.full(len(positions), branch), positions], axis=1)
