"""Which characters of a decoded row belong to each of its tokens.

A row is decoded once, as a whole. A token's characters follow from its bytes where the tokenizer spells tokens in bytes
(GPT-2, Llama-3, Qwen), and otherwise from decoding a few tokens more or less. Tokens that share a character, as a
reader sees characters, form one span: an emoji family, a letter with its accents or a syllable of Devanagari would
break apart when cut.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.tokens.encoding import fast_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_WINDOW_BYTES = 4096
# Some decoders rewrite earlier text as it grows, so that no window agrees with the whole row. The row's whole start is
# then decoded again, which is slow, so only at every so many tokens.
_RETRY_TOKENS = 16

_ZWJ = "\u200d"
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class TokenSpans:
    """A decoded row and the characters of its tokens.

    ``text``: the row of T tokens. ``lengths``: int64, shape (T,): at the last token of each span its characters (code
    points), 0 at the tokens before it; tokens without characters at the row's end belong to the last span.
    ``lengths.sum() == len(text)``.
    """

    text: str
    lengths: np.ndarray

    def spans(self) -> Iterator[tuple[int, int, int, int]]:
        """(first token, token behind the last, first character, character behind the last) of each span, in order.

        A row that decodes to nothing is one span of no character; a row without tokens has none.
        """
        closing = np.flatnonzero(self.lengths)
        ends = [*(closing + 1).tolist()[:-1], len(self.lengths)] if len(self.lengths) else []
        first_token = first_character = 0
        for end, length in zip(ends, self.lengths[closing].tolist() or [0], strict=False):
            yield first_token, end, first_character, first_character + length
            first_token, first_character = end, first_character + length


class SpanDecoder:
    """Decodes rows of one tokenizer, special tokens included."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | Tokenizer) -> None:
        from tokenizers import Tokenizer, decoders

        self._backend = tokenizer if isinstance(tokenizer, Tokenizer) else fast_backend(tokenizer)
        self._is_byte_level = isinstance(self._backend.decoder, decoders.ByteLevel)
        self._bytes = cache(self._spelled)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def decode(self, ids: np.ndarray) -> TokenSpans:
        """``ids``: int, shape (T,). The text is what the tokenizer decodes, with no spaces cleaned up."""
        text = self._decoded(ids.tolist())
        ends = self._ends_by_bytes(ids, text) if self._is_byte_level else None
        if ends is None:
            ends = self._ends_by_decoding(ids.tolist(), text)
        return TokenSpans(text, _lengths(text, ends))

    def piece(self, token: int) -> str:
        """The token by itself, for people: text with invalid bytes as ``\\xe4``, or as the vocabulary spells it."""
        if self._is_byte_level:
            return self._bytes(token).decode("utf-8", "backslashreplace")
        return self._backend.id_to_token(token) or ""

    def _decoded(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def _spelled(self, token: int) -> bytes:
        text = self._backend.id_to_token(token) or ""
        try:
            return bytes(_BYTE_OF_SIGN[sign] for sign in text)
        except KeyError:  # an added token is spelled in plain text
            return text.encode("utf-8", "replace")

    def _ends_by_bytes(self, ids: np.ndarray, text: str) -> np.ndarray | None:
        """The character at which each token ends, int64 (T,), −1 inside a character; None where the bytes make another
        text than the tokenizer decodes."""
        pieces = [self._bytes(token) for token in ids.tolist()]
        decoded, is_first = _utf8(b"".join(pieces))
        if decoded != text:
            return None
        end_bytes = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        characters_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_first, dtype=np.int64)])
        is_boundary = np.append(is_first, True)[end_bytes]
        return np.where(is_boundary, characters_before[end_bytes], -1)

    def _ends_by_decoding(self, ids: list[int], text: str) -> np.ndarray:
        """As ``_ends_by_bytes``, for any decoder: a boundary is where the text decoded so far begins the whole text.

        The window decoded starts at the boundary before the last, not at the last, since decoders treat the first token
        differently (they strip a space). A place where the window does not fit the text is not a boundary.
        """
        ends = np.full(len(ids), -1, dtype=np.int64)
        window = anchor = at = 0  # the window's first token, the token behind the last boundary, and its character
        before = ""  # the window decoded up to the anchor
        for behind in range(1, len(ids) + 1):
            decoded = self._decoded(ids[window:behind])
            piece = decoded[len(before) :]
            if decoded.startswith(before) and text.startswith(piece, at):
                end = at + len(piece)
            elif (behind - anchor) % _RETRY_TOKENS == 0 and text.startswith(whole := self._decoded(ids[:behind])):
                end = len(whole)
            else:
                continue
            ends[behind - 1] = end
            window, anchor, at = anchor, behind, end
            before = self._decoded(ids[window:anchor])
        return ends


def _lengths(text: str, ends: np.ndarray) -> np.ndarray:
    """Span lengths (``TokenSpans.lengths``) from where tokens end; the last token ends where the text does."""
    lengths = np.zeros(len(ends), dtype=np.int64)
    if len(ends) == 0:
        return lengths
    ends = ends.copy()
    ends[-1] = len(text)
    is_plain = text.isascii() and "\r\n" not in text
    start = 0
    for token in np.flatnonzero(ends >= 0).tolist():
        end = int(ends[token])
        if end > start and (is_plain or not _is_one_character(text, end)):
            lengths[token] = end - start
            start = end
    return lengths


def _utf8(data: bytes) -> tuple[str, np.ndarray]:
    """The text, with U+FFFD for each longest invalid sequence, and whether each byte is a character's first (bool)."""
    is_first = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    parts: list[str] = []
    at = 0
    while at < len(data):
        window = data[at : at + _WINDOW_BYTES]
        try:
            text, used = codecs.utf_8_decode(window, "strict", at + len(window) == len(data))
        except UnicodeDecodeError as error:
            text, used = window[: error.start].decode() + "\ufffd", error.end
            is_first[at + error.start] = True
            is_first[at + error.start + 1 : at + error.end] = False
        parts.append(text)
        at += used
    return "".join(parts), is_first


def _is_one_character(text: str, at: int) -> bool:
    """Whether the code points before and after ``at`` are one character to a reader (UAX 29, simplified)."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if after < "\u0300" and before != _ZWJ:
        return before == "\r" and after == "\n"
    if before == _ZWJ and unicodedata.category(after) in ("So", "Sm"):  # it joins pictures, not letters
        return True
    is_mark = unicodedata.category(after) in ("Mn", "Me", "Mc") or "\U000e0020" <= after <= "\U000e007f"
    if is_mark or after in _JOINERS:
        return before not in "\r\n"
    if after in "\u0e33\u0eb3" or "\U0001f3fb" <= after <= "\U0001f3ff":  # vowels written after; skin tones
        return True
    if _is_flag_letter(after):
        letters_before = 0
        while letters_before < at and _is_flag_letter(text[at - 1 - letters_before]):
            letters_before += 1
        return letters_before % 2 == 1
    if _is_hangul_tail(after):
        return "\u1100" <= before <= "\u11ff" or "\ua960" <= before <= "\ua97c" or "\uac00" <= before <= "\ud7fb"
    return unicodedata.combining(before) == 9 and unicodedata.category(after) == "Lo"  # a virama joins two consonants


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_hangul_tail(character: str) -> bool:
    """A vowel or a final consonant, which continues a syllable."""
    return "\u1160" <= character <= "\u11ff" or "\ud7b0" <= character <= "\ud7fb"


def _signs_of_bytes() -> dict[str, int]:
    """GPT-2's spelling: a printable Latin-1 character stands for its byte, the others for U+0100 and on in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_SIGN = _signs_of_bytes()
