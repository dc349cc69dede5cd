"""Plant noise into a pool and keep the truth as character spans, so that any tokenizer can read it later."""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tokenclean.errors import RecipeError
from tokenclean.lab.noise_kinds import NOISE_KINDS, Edit, NoiseSettings
from tokenclean.pool.conversation import Pool


@dataclass(frozen=True)
class NoiseSpan:
    """Characters [start, end) of ``pool[row].turns[turn].content`` are noise of this kind.

    ``original``: the text that stood there before, "" where the noise was inserted.
    """

    row: int
    turn: int
    start: int
    end: int
    kind: str
    original: str = ""


@dataclass(frozen=True)
class PlantedPool:
    """A pool with planted noise and the truth about it: spans sorted by (row, turn, start), not overlapping."""

    pool: Pool
    spans: tuple[NoiseSpan, ...]


def plant(pool: Pool, kinds: Mapping[str, NoiseSettings], *, seed: int) -> PlantedPool:
    """Plant the given kinds of noise (names of ``NOISE_KINDS``) into the assistant turns of ``pool``.

    Each kind damages ``int(row_share * N)`` rows; a row that cannot take it is passed over for the next, and a warning
    is logged when the pool runs out of rows. For one pool, rows and noise of a kind follow from its settings and
    (seed, kind) alone: another kind beside it changes neither. Planting runs in the order of ``NOISE_KINDS``,
    whatever the order of ``kinds``.

    Roles, the number of turns and every character outside the spans stay. So does ``id``: it goes on naming the
    original row, though the content hash in it is that of the clean text.

    Raises RecipeError (a ValueError) for an unknown kind, PoolError (a ValueError) for a pool that cannot take the
    noise, such as ``corrupted`` in a pool of one row.
    """
    _check_kinds(kinds)
    planted = PlantedPool(pool, ())
    for kind, edits_of_pool in NOISE_KINDS.items():
        if kind in kinds:
            edits = edits_of_pool(planted.pool, kinds[kind], _generator_of(seed, kind))
            planted = _apply(planted, edits, kind)
    return planted


def restore(planted: PlantedPool) -> Pool:
    """The clean pool: every span put back to its ``original``."""
    edits = [Edit(span.row, span.turn, span.start, span.end, span.original) for span in planted.spans]
    return _with_edits(planted.pool, edits)


def _check_kinds(kinds: Mapping[str, NoiseSettings]) -> None:
    problems = []
    for name in kinds:
        if name not in NOISE_KINDS:
            close = difflib.get_close_matches(name, NOISE_KINDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known kinds: {', '.join(NOISE_KINDS)}"
            problems.append(f"unknown kind of noise {name!r}; {hint}")
    if problems:
        raise RecipeError(problems, source="noise kinds")


def _generator_of(seed: int, kind: str) -> np.random.Generator:
    """A generator for (seed, kind): kinds share no random numbers, so one cannot disturb another."""
    digest = hashlib.sha256(f"{seed}:{kind}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _apply(planted: PlantedPool, edits: list[Edit], kind: str) -> PlantedPool:
    """Apply the edits, list them as spans, and move the spans planted before."""
    earlier, later = defaultdict(list), _by_turn(edits)
    for span in planted.spans:
        earlier[span.row, span.turn].append(span)
    spans: list[NoiseSpan] = []
    for at in earlier.keys() | later.keys():
        spans += _moved(earlier[at], later.get(at, []))
        content = planted.pool[at[0]].turns[at[1]].content
        shift = 0
        for edit in later.get(at, []):
            start = edit.start + shift
            original = content[edit.start : edit.end]
            spans.append(NoiseSpan(at[0], at[1], start, start + len(edit.text), kind, original))
            shift += len(edit.text) - len(original)
    spans.sort(key=lambda span: (span.row, span.turn, span.start))
    return PlantedPool(_with_edits(planted.pool, edits), tuple(spans))


def _moved(spans: list[NoiseSpan], edits: list[Edit]) -> list[NoiseSpan]:
    """The spans of one turn after its edits, none of which cuts into a span."""
    moved = []
    for span in spans:
        shift = sum(len(edit.text) - (edit.end - edit.start) for edit in edits if edit.end <= span.start)
        moved.append(replace(span, start=span.start + shift, end=span.end + shift))
    return moved


def _with_edits(pool: Pool, edits: Iterable[Edit]) -> Pool:
    """The pool with all edits applied; their positions are those before any of them."""
    conversations = list(pool.conversations)
    for (row, turn), turn_edits in _by_turn(edits).items():
        turns = list(conversations[row].turns)
        content, pieces, end = turns[turn].content, [], 0
        for edit in turn_edits:
            pieces += [content[end : edit.start], edit.text]
            end = edit.end
        turns[turn] = replace(turns[turn], content="".join([*pieces, content[end:]]))
        conversations[row] = replace(conversations[row], turns=tuple(turns))
    return replace(pool, conversations=tuple(conversations))


def _by_turn(edits: Iterable[Edit]) -> dict[tuple[int, int], list[Edit]]:
    """The edits of each (row, turn), from left to right."""
    grouped: dict[tuple[int, int], list[Edit]] = defaultdict(list)
    for edit in sorted(edits, key=lambda edit: (edit.row, edit.turn, edit.start)):
        grouped[edit.row, edit.turn].append(edit)
    return grouped
