"""Plant noise into a pool and keep the truth as character spans, so that any tokenizer can read it later."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tokenclean.errors import RecipeError
from tokenclean.lab.noise_kinds import NOISE_KINDS, Edit, NoiseSettings
from tokenclean.pool.conversation import Pool


@dataclass(frozen=True)
class NoiseSpan:
    """Characters [start, end) of ``pool[row].turns[turn].content`` are noise of this kind.

    ``original``: the text there before, "" where the noise was inserted.
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

    Each kind damages ``int(row_share * N)`` rows; a row that cannot take it is skipped for the next, and a warning is
    logged when the pool runs out of rows. In a given pool, the rows and the noise of a kind follow from its settings
    and (seed, kind) alone: adding another kind changes neither. Planting runs in the order of ``NOISE_KINDS``, not
    in that of ``kinds``.

    Roles, the number of turns and every character outside the spans stay. So does ``id``: it still names the original
    row, although its content hash is that of the clean text.

    Raises RecipeError (a ValueError) for an unknown kind, PoolError (a ValueError) for a pool that cannot take the
    noise, such as ``corrupted`` in a pool of one row.
    """
    if unknown := kinds.keys() - NOISE_KINDS.keys():
        given = ", ".join(map(repr, sorted(unknown)))
        raise RecipeError(f"unknown: {given}; expected {' or '.join(NOISE_KINDS)}", source="noise kinds")
    planted = PlantedPool(pool, ())
    for kind, edits_of_pool in NOISE_KINDS.items():
        if kind in kinds:
            # Kinds share no random numbers, so that one cannot disturb another.
            digest = hashlib.sha256(f"{seed}:{kind}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
            planted = _apply(planted, edits_of_pool(planted.pool, kinds[kind], generator), kind)
    return planted


def _apply(planted: PlantedPool, edits: list[Edit], kind: str) -> PlantedPool:
    """Apply the edits, list them as spans, and move the spans planted before."""
    by_turn: dict[tuple[int, int], list[Edit]] = defaultdict(list)
    for edit in sorted(edits, key=lambda edit: (edit.row, edit.turn, edit.start)):
        by_turn[edit.row, edit.turn].append(edit)
    spans = [_moved(span, by_turn.get((span.row, span.turn), [])) for span in planted.spans]
    conversations = list(planted.pool.conversations)
    for (row, turn), turn_edits in by_turn.items():
        turns = list(conversations[row].turns)
        content, shift = turns[turn].content, 0
        for edit in turn_edits:
            start, end = edit.start + shift, edit.end + shift
            spans.append(NoiseSpan(row, turn, start, start + len(edit.text), kind, content[start:end]))
            content = content[:start] + edit.text + content[end:]
            shift += edit.growth
        turns[turn] = replace(turns[turn], content=content)
        conversations[row] = replace(conversations[row], turns=tuple(turns))
    spans.sort(key=lambda span: (span.row, span.turn, span.start))
    return PlantedPool(replace(planted.pool, conversations=tuple(conversations)), tuple(spans))


def _moved(span: NoiseSpan, edits: list[Edit]) -> NoiseSpan:
    """The span after its turn's edits, none of which cuts into it."""
    shift = sum(edit.growth for edit in edits if edit.end <= span.start)
    return replace(span, start=span.start + shift, end=span.end + shift)
