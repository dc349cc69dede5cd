"""Losses of one tokenizer's tokens brought onto another's, by the characters that they have in common.

The loss of each of the server's tokens is spread over its characters, in equal parts, and each of our tokens takes the
sum over its own characters. A token of the server that straddles a boundary between ours gives each its share. The sum
over a text is kept, and between equal tokenizations nothing changes. Spreading evenly is an assumption: within a token
of the server, nothing is known of which character was surprising.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    texts = [piece if piece is not None and _is_whole(piece) else None for piece in returned.texts]
    patterns = [_pattern_of(piece) for piece in returned.texts]
    losses = -returned.logprobs
    if not len(losses):
        raise ValueError("it returns no token")
    heads, behind_head = range(1), 0
    if np.isnan(losses[0]):
        behind_head = 1
        if texts[0] is None:  # BOS, or text of this length
            heads = range(min(len(text), _LONGEST_UNKNOWN) + 1)
        elif (end := _end_of(text, 0, texts[0])) is not None:
            heads = range(end, end + 1)
    misfit = ValueError("it returns no token")
    for head in heads:
        try:
            ends, sums = _place_from(text, head, texts[behind_head:], patterns[behind_head:], losses[behind_head:])
        except ValueError as error:
            misfit = error if head == heads[0] else misfit
            continue
        before = ([head], [np.nan]) if head else ([], [])
        return np.array([*before[0], *ends], dtype=np.float64), np.array([*before[1], *sums], dtype=np.float64)
    raise misfit


def _place_from(
    text: str, place: int, texts: Sequence[str | None], patterns: Sequence[str], losses: np.ndarray
) -> tuple[list[int], list[float]]:
    """Ends and losses of the pieces from ``place`` on. Raises ValueError where they do not make up the text."""
    ends: list[int] = []
    sums: list[float] = []
    carried, first = 0.0, 0  # loss of tokens without characters; the first token that is not placed
    while first < len(texts):
        next_known = first
        while next_known < len(texts) and texts[next_known] is None:
            next_known += 1
        known = texts[next_known] if next_known < len(texts) else None
        if next_known > first:
            behind = r"\Z" if known is None else f"(?={'|'.join(map(re.escape, _forms_of(known)))})"
            found = re.compile("".join(patterns[first:next_known]) + behind, re.DOTALL).match(text, place)
            if found is None:
                raise ValueError(_misfit(text, place, known or ""))
            carried += float(losses[first:next_known].sum())
            if found.end() > place:
                ends.append(found.end())
                sums.append(carried)
                place, carried = found.end(), 0.0
        if known is not None:
            end = _end_of(text, place, known)
            if end is None:
                raise ValueError(_misfit(text, place, known))
            ends.append(end)
            sums.append(float(losses[next_known]) + carried)
            place, carried = end, 0.0
        first = next_known + 1
    if place < len(text):
        raise ValueError(_misfit(text, place, ""))
    return ends, sums


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


def _misfit(text: str, place: int, piece: str) -> str:
    rest = text[place : place + _SHOWN_CHARACTERS]
    return f"at character {place:,} of {len(text):,} the text goes on with {rest!r}, its tokens with {piece!r}"
