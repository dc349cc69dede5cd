"""Plant noise into a pool and keep the truth as character spans, so that any tokenizer can read it later."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from tokenclean.errors import RecipeError
from tokenclean.lab.edits import Edit, NoiseSettings, RowEdits
from tokenclean.lab.noise_kinds import NOISE_KINDS
from tokenclean.pool.conversation import Pool

logger = logging.getLogger(__name__)


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
    and (seed, kind) alone: adding another kind changes neither, but where two kinds would change the same characters,
    the first in the order of ``NOISE_KINDS`` does, and a warning counts what the others left out.

    Roles, the number of turns and every character outside the spans stay. So does ``id``: it still names the original
    row, although its content hash is that of the clean text.

    Raises RecipeError (a ValueError) for an unknown kind, PoolError (a ValueError) for a pool that cannot take the
    noise, such as ``corrupted`` in a pool of one row.
    """
    if unknown := kinds.keys() - NOISE_KINDS.keys():
        given = ", ".join(map(repr, sorted(unknown)))
        raise RecipeError(f"unknown: {given}; expected one of {', '.join(NOISE_KINDS)}", source="noise kinds")
    by_turn: dict[tuple[int, int], list[tuple[Edit, str]]] = defaultdict(list)
    for kind, edits_of_rows in NOISE_KINDS.items():
        if kind in kinds:
            # Kinds share no random numbers, so that one cannot disturb another.
            digest = hashlib.sha256(f"{seed}:{kind}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
            edits_of_row = edits_of_rows(pool, kinds[kind], generator)
            wanted = int(kinds[kind].row_share * len(pool))
            _add_edits(by_turn, _draw_edits(edits_of_row, generator.permutation(len(pool)), wanted, kind), kind)
    return _apply(pool, by_turn)


def _draw_edits(edits_of_row: RowEdits, order: np.ndarray, wanted: int, kind: str) -> list[Edit]:
    """Edits of the first ``wanted`` rows in this order that have any."""
    taken = list(islice(filter(None, (edits_of_row(int(row)) for row in order)), wanted))
    if len(taken) < wanted:
        logger.warning("noise %r: %d rows were asked for, but only %d can take it", kind, wanted, len(taken))
    return [edit for of_row in taken for edit in of_row]


def _add_edits(by_turn: dict[tuple[int, int], list[tuple[Edit, str]]], edits: list[Edit], kind: str) -> None:
    """Add the edits of a kind that overlap none of the kinds before."""
    before = {place: [edit for edit, _ in planned] for place, planned in by_turn.items()}
    left_out = 0
    for edit in edits:
        if any(edit.overlaps(other) for other in before.get((edit.row, edit.turn), ())):
            left_out += 1
        else:
            by_turn[edit.row, edit.turn].append((edit, kind))
    if left_out:
        logger.warning("noise %r: %d of %d changes left out, where another kind's are", kind, left_out, len(edits))


def _apply(pool: Pool, by_turn: Mapping[tuple[int, int], list[tuple[Edit, str]]]) -> PlantedPool:
    """Apply the edits, of which no two of a turn overlap, and list them as spans."""
    spans: list[NoiseSpan] = []
    conversations = list(pool.conversations)
    for (row, turn), planned in by_turn.items():
        content, noisy, done = pool[row].turns[turn].content, "", 0
        # Stable: of two kinds that insert at one place, the first comes first.
        for edit, kind in sorted(planned, key=lambda one: (one[0].start, one[0].end)):
            noisy += content[done : edit.start]
            original, done = content[edit.start : edit.end], edit.end
            spans.append(NoiseSpan(row, turn, len(noisy), len(noisy) + len(edit.text), kind, original))
            noisy += edit.text
        turns = list(conversations[row].turns)
        turns[turn] = replace(turns[turn], content=noisy + content[done:])
        conversations[row] = replace(conversations[row], turns=tuple(turns))
    spans.sort(key=lambda span: (span.row, span.turn, span.start))
    return PlantedPool(replace(pool, conversations=tuple(conversations)), tuple(spans))
