"""Encodings of text files: their byte order marks, and which one a text is likely to have."""

from __future__ import annotations

import codecs
import re
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

# The characters that make up about half of any running text of the language. They distinguish a right reading from a
# wrong one, since the bytes of one East Asian language are mostly rare characters of another.
_CHINESE = (
    "的一是不了在人有我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都"
    "然没日于起还发成事只作当想看文无开手用主行方又如前所本见经头面同已老从动两长知样现分将外但身些与高意进把法此实回二"
    "理美点月明其种声全工问什吗呢请使给让做很最这個來國說們為時學對後麼沒還發無開當經頭動兩長樣現將與進實點種聲問嗎請給讓過會裡"
)
_KOREAN = (
    "이다는에의가을고하지를은로한도어서기나사리자시대아그인일보해정수있라"
    "게전면습니까요것들으만구부제스과여주장장성원공조상안들했때"
)

# Patterns of a language's characters, the first that matches counts, and how well they suit it.
_Scores = tuple[tuple[str, float], ...]
_WIDE = r"[\u3000-\u303f\uff01-\uff5e‘’“”…—·]"
_NARROW = "[«»‘’‚“”„…–—€£§©®°·№½²³¿¡]"
_ANY = r"[^\x00-\x7f]"
_A = "[A-Za-z]"
_LATIN = "[À-ÖØ-öø-ÿŒœŠšŽžŸ]"
_CYRILLIC = "[А-Яа-яЁё]"
_SCORES_OF_CHINESE: _Scores = ((f"[{_CHINESE}]", 1), (r"[\u4e00-\u9fff]", 0.5), (_WIDE, 1))
_SCORES_OF_JAPANESE: _Scores = ((r"[\u3041-\u30ff]", 1), *_SCORES_OF_CHINESE)
_SCORES_OF_KOREAN: _Scores = ((f"[{_KOREAN}]", 1), (r"[\uac00-\ud7a3]", 0.6), (_WIDE, 1), (_ANY, 0.1))
_SCORES_OF_MARKS: _Scores = (
    (rf"(?<!{_ANY}){_NARROW}|{_NARROW}(?!{_ANY})", 1),  # marks are at the edge of words
    (_NARROW, 0.1),
)
_SCORES_OF_RUSSIAN: _Scores = (
    *_SCORES_OF_MARKS,
    (f"(?<={_A}){_ANY}|{_ANY}(?={_A})", 0),  # inside a word of Latin letters
    (f"(?<={_CYRILLIC})[А-ЯЁ]", 0.3),
    (_CYRILLIC, 1),
    ("[Ђ-Џђ-џҐґ]", 0.5),  # Ukrainian, Serbian and their neighbours
)
_SCORES_OF_WESTERN: _Scores = (
    *_SCORES_OF_MARKS,
    # Two accented letters in a row, as in Grüße; no whole word has such letters alone.
    (f"(?<={_LATIN}){_LATIN}(?={_A})|(?<={_A}){_LATIN}(?={_LATIN})", 0.7),
    (f"(?<={_LATIN}){_LATIN}|{_LATIN}(?={_LATIN})", 0.3),
    (f"(?<={_A}){_LATIN}|{_LATIN}(?={_A})", 1),
    (_LATIN, 0.6),
    (_ANY, 0.1),
)
# In this order where two suit equally well.
_CANDIDATES = {
    "cp1252": _SCORES_OF_WESTERN,
    "gb18030": _SCORES_OF_CHINESE,
    "shift_jis": _SCORES_OF_JAPANESE,
    "euc_jp": _SCORES_OF_JAPANESE,
    "cp1251": _SCORES_OF_RUSSIAN,
    "big5": _SCORES_OF_CHINESE,
    "euc-kr": _SCORES_OF_KOREAN,
}


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
        if not line.isascii() and _decode(line, "utf-8") is None:
            lines.append(line[:_SAMPLE_BYTES])
        if sum(map(len, lines)) >= _SAMPLE_BYTES:
            break
    scores = {name: _score(lines, name) for name in _CANDIDATES}
    best = max(scores.values())
    if best < _LEAST_SCORE:
        return ()
    likely = [name for name, score in scores.items() if score >= _RIVAL_SHARE * best]
    return tuple(sorted(likely, key=lambda name: -scores[name]))[:2]


def is_mostly_utf8(sample: bytes) -> bool:
    """Whether the non-ASCII characters of a sample are UTF-8 but for some damage, so that it has no other encoding."""
    rest, characters = _UTF8_SEQUENCE.subn(b"", sample)
    return characters > _count_high_bytes(rest)


def _decode(content: bytes, name: str) -> str | None:
    """The text; None where the bytes are none of this encoding. A character cut off at the end is no fault."""
    try:
        return codecs.getincrementaldecoder(name)().decode(content)
    except UnicodeDecodeError:
        return None


def _score(lines: list[bytes], name: str) -> float:
    scores = [score for _, score in _CANDIDATES[name]]
    pattern = re.compile("|".join(f"({pattern})" for pattern, _ in _CANDIDATES[name]))
    total, count = 0.0, 0
    for line in lines:
        text = _decode(line, name)
        if text is None:
            count += _count_high_bytes(line)
            continue
        count += sum(not character.isascii() for character in text)
        for match in pattern.finditer(text):
            total += scores[(match.lastindex or 0) - 1]
    return total / count if count else 0.0


def _count_high_bytes(content: bytes) -> int:
    return len(content) - len(content.translate(None, bytes(range(0x80, 0x100))))
