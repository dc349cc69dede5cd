"""Losses of one tokenizer's tokens brought onto another's, by the characters that they have in common.

The loss of each of the server's tokens is spread over its characters, in equal parts, and each of our tokens takes the
sum over its own characters. A token of the server that straddles a boundary between ours gives each its share. The sum
over a text is kept, and between equal tokenizations nothing changes. Spreading evenly is an assumption: within a token
of the server, nothing is known of which character was surprising.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.scoring.served.forms import ReturnedTokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOST = "\ufffd"
"""What decoding writes for bytes that are no whole character."""

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BLANK = "\u2581"
"""SentencePiece's sign for a blank."""

_LONGEST_UNKNOWN = 64
"""Characters of a token whose text the server does not give, at most."""

_TRIES_PER_TOKEN = 50
_SHOWN_CHARACTERS = 40


def spread(ends: np.ndarray, losses: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
    """Losses of our tokens, float64 (T,), nats.

    ``ends``: where the server's pieces end, in characters, rising, (P,); the first begins at 0. ``losses``: of the
    pieces, (P,), NaN for the first where the server gives none. ``boundaries``: of our tokens, (T+1,), in characters,
    not falling, within [0, ends[-1]]. A token that begins before the end of a piece without loss gets NaN.
    """
    known_from = float(ends[0]) if len(ends) and np.isnan(losses[0]) else 0.0
    cumulative = np.concatenate([[0.0], np.cumsum(np.where(np.isnan(losses), 0.0, losses))])
    summed = np.interp(boundaries, np.concatenate([[0.0], ends]), cumulative)
    shares = np.diff(summed)
    shares[boundaries[:-1] < known_from] = np.nan
    return shares


def token_boundaries(backend: Tokenizer, ids: Sequence[int]) -> tuple[str, np.ndarray]:
    """The text of token ids, special tokens spelled out, and the boundaries of the tokens in it, float64 (T+1,), in
    characters. Tokens that split a character have it in equal parts. ``backend``: without truncation or padding, its
    offsets untrimmed (``exact_offset_backend``)."""
    text = backend.decode(list(ids), skip_special_tokens=False)
    encoding = backend.encode(text, add_special_tokens=False)
    starts, stops = (np.array([span[side] for span in encoding.offsets], dtype=np.float64) for side in (0, 1))
    if encoding.ids == list(ids):
        boundaries = np.concatenate([[0.0], stops])
        is_clean = np.concatenate([[True], stops[:-1] == starts[1:], [True]])
    else:  # ids that another tokenization made: each beginning is decoded by itself
        heads = [backend.decode(list(ids[:count]), skip_special_tokens=False) for count in range(len(ids) + 1)]
        boundaries = np.array([len(head) for head in heads], dtype=np.float64)
        is_clean = np.array([text.startswith(head) for head in heads])
    boundaries[-1], is_clean[-1] = len(text), True
    places = np.arange(len(boundaries))
    return text, np.interp(places, places[is_clean], np.maximum.accumulate(boundaries[is_clean]))


def place_tokens(text: str, returned: ReturnedTokens) -> tuple[np.ndarray, np.ndarray]:
    """Where the server's tokens are in the text that it was sent: the ends of pieces in characters, float64 (P,), and
    their losses in nats, float64 (P,).

    A piece is a token whose text is known; a blank before it that no token has is its own, since some tokenizers drop
    it when they decode a token by itself. Tokens without a text of their own, because they hold part of a character or
    the server gives none, are a piece together, up to the next token. A first token without a log-probability that is
    no text (BOS) is no piece. Raises ValueError saying what does not fit.
    """
    losses = -returned.logprobs
    if not len(losses):
        raise ValueError("it returns no token")
    heads, behind_head = range(1), 0
    if np.isnan(losses[0]):
        behind_head, first = 1, returned.texts[0]
        if first is None or not _is_whole(first):  # BOS, or text of this length
            heads = range(min(len(text), _LONGEST_UNKNOWN) + 1)
        elif (end := _end_of(text, 0, first)) is not None:
            heads = range(end, end + 1)
    units = _units_of(returned.texts[behind_head:], losses[behind_head:])
    furthest = heads[0], ""
    for head in heads:
        ends, misfit = _search(text, head, units)
        if ends is not None:
            head_ends = [head] if head else []
            placed, sums = _pieces_of(head, ends, units)
            return np.array([*head_ends, *placed], float), np.array([*([np.nan] * len(head_ends)), *sums], float)
        furthest = max(furthest, misfit)
    place, piece = furthest
    rest = text[place : place + _SHOWN_CHARACTERS]
    raise ValueError(
        f"at character {place:,} of {len(text):,} the text goes on with {rest!r}, its tokens with {piece!r}"
    )


@dataclass(frozen=True)
class _Unit:
    """A token whose text is known (``piece``), or a run of others, which stand for what ``pattern`` matches, at most
    ``longest`` characters. ``loss``: their sum."""

    piece: str
    loss: float
    pattern: re.Pattern[str] | None = None
    longest: int = 0


def _units_of(texts: Sequence[str | None], losses: np.ndarray) -> list[_Unit]:
    units = []
    numbered = enumerate(texts)
    for is_known, run in groupby(numbered, key=lambda item: item[1] is not None and _is_whole(item[1])):
        members = list(run)
        if is_known:
            units += [_Unit(piece or "", float(losses[number])) for number, piece in members]
            continue
        pattern = "".join(_pattern_of(piece) for _, piece in members)
        longest = sum(len(piece) if piece else _LONGEST_UNKNOWN for _, piece in members)
        loss = float(losses[[number for number, _ in members]].sum())
        units.append(_Unit("", loss, re.compile(pattern, re.DOTALL), longest))
    return units


def _search(text: str, place: int, units: Sequence[_Unit]) -> tuple[list[int] | None, tuple[int, str]]:
    """Where each unit ends so that together they are the text from ``place`` on, the first such places; None where
    there are none, with the furthest place reached and the token that did not fit there.

    How many characters a run stands for is found by trying: only what follows shows which length is right.
    """

    def ends_of(number: int, start: int) -> Iterator[int]:
        unit = units[number]
        if unit.pattern is None:
            end = _end_of(text, start, unit.piece)
            yield from () if end is None else (end,)
            return
        follows = units[number + 1].piece if number + 1 < len(units) else None
        for end in range(start, min(len(text), start + unit.longest) + 1):
            fits = end == len(text) if follows is None else _end_of(text, end, follows) is not None
            if fits and unit.pattern.fullmatch(text, start, end):
                yield end

    if not units:
        return ([] if place == len(text) else None), (place, "")
    chosen: list[int] = []
    untried = [ends_of(0, place)]
    furthest = place, units[0].piece
    for _ in range(_TRIES_PER_TOKEN * len(units)):
        end = next(untried[-1], None)
        if end is not None:
            chosen.append(end)
            if len(chosen) < len(units):
                furthest = max(furthest, (end, units[len(chosen)].piece))
                untried.append(ends_of(len(chosen), end))
                continue
            if end == len(text):
                return chosen, furthest
            furthest = max(furthest, (end, ""))
        else:
            untried.pop()
        if not untried:
            break
        if chosen:
            chosen.pop()
    return None, furthest


def _pieces_of(place: int, ends: Sequence[int], units: Sequence[_Unit]) -> tuple[list[int], list[float]]:
    """Ends and losses of the units that have characters; the loss of one without goes to the next, the last one's to
    the one before."""
    placed: list[int] = []
    sums: list[float] = []
    carried = 0.0
    for end, unit in zip(ends, units, strict=True):
        carried += unit.loss
        if end > place:
            placed.append(end)
            sums.append(carried)
            place, carried = end, 0.0
    if sums:
        sums[-1] += carried
    return placed, sums


def _is_whole(piece: str) -> bool:
    """Whether a token's text is text by itself, and not part of a character or nothing."""
    return bool(piece) and _LOST not in piece and not _BYTE_PIECE.fullmatch(piece)


def _pattern_of(piece: str | None) -> str:
    """What a token that is not text by itself may stand for, as a regular expression."""
    if not piece:
        return f".{{0,{_LONGEST_UNKNOWN}}}?"
    if _BYTE_PIECE.fullmatch(piece):
        return ".??"
    parts = re.split(f"({_LOST}+)", piece)
    return "".join(f".{{0,{len(part)}}}?" if part.startswith(_LOST) else re.escape(part) for part in parts)


def _forms_of(piece: str) -> tuple[str, ...]:
    """How a token may be written in the text: as it is, with the blank that decoding it alone dropped, or with the sign
    for a blank of SentencePiece, which stands for none at the beginning of a text."""
    plain = piece.replace(_BLANK, " ")
    return (piece, plain, f" {plain}", plain.removeprefix(" ")) if plain != piece else (piece, f" {piece}")


def _end_of(text: str, place: int, piece: str) -> int | None:
    """Where a token that begins at ``place`` ends; None where the text goes on otherwise."""
    return next((place + len(form) for form in _forms_of(piece) if form and text.startswith(form, place)), None)
