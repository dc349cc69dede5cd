"""Encodings of text files: their names, their byte order marks, and which one a text is likely to have."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from difflib import get_close_matches
from encodings.aliases import aliases
from pathlib import Path

from tokenclean.errors import PoolError

# UTF-32 comes first, since its mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Python counts these as encodings, but they write names of hosts or source code, or nothing at all.
_NO_FILE_ENCODINGS = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem")

# Text of ASCII characters alone shows where UTF-16 and UTF-32 put their zero bytes.
_ZEROS = {
    "utf-32-le": re.compile(rb"(?:[^\0]\0\0\0){4}", re.DOTALL),
    "utf-32-be": re.compile(rb"(?:\0\0\0[^\0]){4}", re.DOTALL),
    "utf-16-le": re.compile(rb"(?:[^\0]\0){8}", re.DOTALL),
    "utf-16-be": re.compile(rb"(?:\0[^\0]){8}", re.DOTALL),
}

_SAMPLE_BYTES = 1 << 12
_LEAST_SCORE = 0.5
_RIVAL_SHARE = 0.9  # of the best score: from here on another encoding is named too
_UTF8_SEQUENCE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"  # overlong forms do not matter here
)

# What makes up about half of any running text of the language: the sign by which a wrong reading is told from the right
# one, since the bytes of one East Asian language are mostly rare characters of another.
_CHINESE = frozenset(
    "的一是不了在人有我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都"
    "然没日于起还发成事只作当想看文无开手用主行方又如前所本见经头面同已老从动两长知样现分将外但身些与高意进把法此实回二"
    "理美点月明其种声全工问什吗呢请使给让做很最这個來國說們為時學對後麼沒還發無開當經頭動兩長樣現將與進實點種聲問嗎請給讓過會裡"
)
_KOREAN = frozenset(
    "이다는에의가을고하지를은로한도어서기나사리자시대아그인일보해정수있라게전면습니까요것들으만구부제스과여주장장성원공조상안들했때"
)
_WIDE_MARKS = r"\u3000-\u303f\uff01-\uff5e‘’“”…—·"
_HAN = re.compile(r"[\u4e00-\u9fff]")
_KANA = re.compile(r"[\u3041-\u30ff]")
_HANGUL = re.compile(r"[\uac00-\ud7a3]")
_WIDE = re.compile(f"[{_WIDE_MARKS}]")
_CYRILLIC = re.compile(r"[А-Яа-яЁё]")
_CYRILLIC_OF_OTHERS = re.compile(r"[Ђ-Џђ-џҐґ]")  # Ukrainian, Serbian and their neighbours
_LATIN = re.compile(r"[À-ÖØ-öø-ÿŒœŠšŽžŸ]")
_NARROW_MARKS = re.compile(r"[«»‘’‚“”„…–—€£§©®°·№½²³¿¡]")


def check_encoding(path: Path, name: str | None) -> str | None:
    """Python's name of the encoding called ``name``, None for UTF-8. Raises PoolError where no file can have it."""
    if name is None:
        return None
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        codec = None
    if codec is None or not codec._is_text_encoding or codec.name.replace("-", "_") in _NO_FILE_ENCODINGS:
        close = get_close_matches(name.lower().replace("-", "_"), sorted({*aliases, *aliases.values()}), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "expected a name such as gb18030, cp1252 or utf-16"
        raise PoolError(f"{path}: no encoding of text is called {name!r}; {hint}")
    return None if codec.name in ("utf-8", "utf-8-sig") else codec.name


def find_encoding(path: Path, start: bytes, encoding: str | None) -> str | None:
    """The encoding that a file's first bytes show, else ``encoding``; None for UTF-8.

    Raises PoolError where both differ, and where a text of two or four bytes a character does not show their order.
    """
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if marked is not None:
        if encoding is not None and not encoding.startswith(marked):
            raise PoolError(
                f"{path}: starts with the byte order mark of {marked}, which {encoding} does not have; leave "
                "--encoding out"
            )
        return None if marked == "utf-8" else marked  # which also knows the order of its bytes
    zeros = next((name for name, pattern in _ZEROS.items() if pattern.match(start)), None)
    if encoding in ("utf-16", "utf-32"):
        order = zeros if zeros and zeros.startswith(encoding) else f"{encoding}-le or {encoding}-be"
        raise PoolError(
            f"{path}: has no byte order mark, so that its encoding cannot be {encoding} alone; name the order: "
            f"--encoding {order}"
        )
    if encoding is None and zeros is not None:
        raise PoolError(f"{path}: has zero bytes as {zeros} text has; if that is its encoding: --encoding {zeros}")
    return encoding


def guess_encodings(sample: bytes) -> tuple[str, ...]:
    """Encodings that bytes which are not UTF-8 are likely to have, likeliest first; empty where none is likely.

    Every line of ``sample`` that is not UTF-8 is decoded by each candidate. A candidate's score is the mean over the
    non-ASCII characters of how well each suits its language: 1 for the language's own letters and marks, half as much
    for a rare Chinese character or Korean syllable, next to nothing for the rest (a Cyrillic letter inside a word of
    Latin ones, two accented letters in a row). A line that a candidate cannot decode counts as nothing but unsuitable.
    """
    lines: list[bytes] = []
    for line in sample.splitlines():
        if not line.isascii() and not _is_utf8(line):
            lines.append(line[:_SAMPLE_BYTES])
        if sum(map(len, lines)) >= _SAMPLE_BYTES:
            break
    scores = {name: _score(lines, name, suits) for name, suits in _CANDIDATES.items()}
    best = max(scores.values())
    if best < _LEAST_SCORE:
        return ()
    likely = [name for name, score in scores.items() if score >= _RIVAL_SHARE * best]
    return tuple(sorted(likely, key=lambda name: -scores[name]))[:2]


def is_mostly_utf8(sample: bytes) -> bool:
    """Whether the non-ASCII characters of a sample are UTF-8 but for some damage, so that it has no other encoding."""
    rest, characters = _UTF8_SEQUENCE.subn(b"", sample)
    return characters > len(rest) - len(rest.translate(None, bytes(range(0x80, 0x100))))


def _is_utf8(content: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)  # a character cut off at the end is none of its faults
    except UnicodeDecodeError:
        return False
    return True


def _score(lines: list[bytes], name: str, suits: Callable[[str, str, str], float]) -> float:
    total, count = 0.0, 0
    for line in lines:
        try:
            text = codecs.getincrementaldecoder(name)().decode(line)
        except UnicodeDecodeError:
            count += sum(byte >= 0x80 for byte in line)
            continue
        for before, character, behind in zip(" " + text, text, text[1:] + " ", strict=False):
            if not character.isascii():
                count += 1
                total += suits(before, character, behind)
    return total / count if count else 0.0


def _suits_chinese(_before: str, character: str, _behind: str) -> float:
    if _HAN.match(character):
        return 1 if character in _CHINESE else 0.5
    return 1 if _WIDE.match(character) else 0


def _suits_japanese(before: str, character: str, behind: str) -> float:
    return 1 if _KANA.match(character) else _suits_chinese(before, character, behind)


def _suits_korean(_before: str, character: str, _behind: str) -> float:
    if _HANGUL.match(character):
        return 1 if character in _KOREAN else 0.6
    return 1 if _WIDE.match(character) else 0.1


def _suits_russian(before: str, character: str, behind: str) -> float:
    if _NARROW_MARKS.match(character):
        return _suits_mark(before, behind)
    if any(other.isascii() and other.isalpha() for other in (before, behind)):
        return 0
    if not _CYRILLIC.match(character):
        return 0.5 if _CYRILLIC_OF_OTHERS.match(character) else 0
    return 0.3 if character.isupper() and _CYRILLIC.match(before) else 1


def _suits_western(before: str, character: str, behind: str) -> float:
    if _NARROW_MARKS.match(character):
        return _suits_mark(before, behind)
    touches_ascii_letter = any(other.isascii() and other.isalpha() for other in (before, behind))
    if not _LATIN.match(character):
        return 0.1
    if _LATIN.match(before) or _LATIN.match(behind):  # as in Grüße, but no whole word has such letters alone
        return 0.7 if touches_ascii_letter else 0.3
    return 1 if touches_ascii_letter else 0.6


def _suits_mark(before: str, behind: str) -> float:
    return 1 if before.isascii() or behind.isascii() else 0.1  # marks stand at the edge of words


# In this order where two suit equally well.
_CANDIDATES: dict[str, Callable[[str, str, str], float]] = {
    "cp1252": _suits_western,
    "gb18030": _suits_chinese,
    "shift_jis": _suits_japanese,
    "euc_jp": _suits_japanese,
    "cp1251": _suits_russian,
    "big5": _suits_chinese,
    "euc-kr": _suits_korean,
}
