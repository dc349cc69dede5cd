"""The token viewer in a terminal: the same conversations as text, coloured, or with marks where there is no colour."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
from rich.text import Text

from tokenclean.report.viewer.page_data import Shown, View
from tokenclean.report.viewer.token_spans import TokenSpans

Paint = Literal["kept", "score"]

_PROMPT, _DROPPED, _KEPT = 0, 1, 2
_STYLES = ("dim", "yellow strike", "bold blue")
_MARKS = (("", ""), ("~", "~"), ("⟦", "⟧"))
# From the lowest scores to the highest; blue and orange differ for colour-blind readers too.
_SHADES = ("black on #ff9a2e", "black on #ffc891", "", "black on #a9cffb", "black on #5aa5f5")
# All controls but tab and line feed, and the marks that turn the direction of what follows.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class _Run(NamedTuple):
    """How consecutive tokens look: the label of the first, whether the other table labels them otherwise, and the
    number of their shade, None where they are coloured by label."""

    label: int
    differs: bool
    shade: int | None


def terminal_text(
    view: View, *, proportion: float | None = None, paint: Paint = "kept", coloured: bool = True
) -> Iterator[tuple[str, Text]]:
    """A heading and the text of each conversation, once for each of the view's tables.

    ``proportion``: cut the whole pool there; None for the tables' own labels. ``coloured``: without, runs of kept
    tokens stand in ⟦ ⟧, of dropped ones between tildes, and ≠ before tokens that the tables label differently.
    Control characters stand as signs, so that no text commands the terminal.
    """
    labels = [_labels(shown, proportion) for shown in view.tables]
    shades = [_shades(shown) if paint == "score" else None for shown in view.tables]
    differs_T = (labels[0] == _KEPT) != (labels[-1] == _KEPT)
    starts = view.tables[0].table["input_ids"].offsets.tolist()
    for row, spans in enumerate(view.spans):
        here = slice(starts[row], starts[row + 1])
        for number, shown in enumerate(view.tables):
            label_T, shade_T = labels[number][here], shades[number]
            text = Text()
            for run, content in _runs(spans, label_T, differs_T[here], None if shade_T is None else shade_T[here]):
                _append(text, run, content, coloured)
            kept, response = int(np.sum(label_T == _KEPT)), int(np.sum(label_T != _PROMPT))
            name = f"{shown.name}: " if len(view.tables) > 1 else ""
            counted = f"{len(label_T)} tokens, {response} targets, {kept} kept"
            yield f"{visible(shown.table.ids[row])}  {name}{counted}", text


def visible(text: str) -> str:
    """The text with control characters and direction overrides as signs: ␛, ‹U+202E›."""
    return _HIDDEN.sub(_sign, text)


def _sign(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"‹U+{code:04X}›"


def _labels(shown: Shown, proportion: float | None) -> np.ndarray:
    """int8 (T,), of the shown rows' tokens."""
    is_response = shown.table["is_response"].values
    labels = np.full(len(is_response), _PROMPT, dtype=np.int8)
    labels[is_response] = np.where(shown.shown_R(shown.kept_R(proportion)), _KEPT, _DROPPED)
    return labels


def _shades(shown: Shown) -> np.ndarray | None:
    """Of each shown token the number of its score's shade, int64 (T,): the middle one without a score."""
    if shown.ranks_R is None:
        return None
    scores = shown.table["score"].values.astype(np.float64)
    is_scored = shown.table["is_response"].values & np.isfinite(scores)
    middle = len(_SHADES) // 2
    shades = np.full(len(scores), middle, dtype=np.int64)
    if is_scored.any():
        limit = np.quantile(np.abs(scores[is_scored]), 0.95) or 1.0
        shades[is_scored] += np.clip(np.rint(middle * scores[is_scored] / limit), -middle, middle).astype(np.int64)
    return shades


def _runs(
    spans: TokenSpans, label_T: np.ndarray, differs_T: np.ndarray, shade_T: np.ndarray | None
) -> Iterator[tuple[_Run, str]]:
    """Spans that look alike, joined. A span of several tokens has the highest label of them."""
    looks = []
    for token, behind, start, end in spans.spans():
        here = slice(token, behind)
        shade = None if shade_T is None else round(float(shade_T[here].mean()))
        looks.append((_Run(int(label_T[here].max()), bool(differs_T[here].any()), shade), spans.text[start:end]))
    for run, alike in groupby(looks, key=lambda look: look[0]):
        yield run, "".join(content for _, content in alike)


def _append(text: Text, run: _Run, content: str, coloured: bool) -> None:
    content = visible(content)
    if not coloured:
        before, after = _MARKS[run.label]
        text.append(f"{'≠' if run.differs else ''}{before}{content}{after}")
        return
    style = _STYLES[run.label] if run.shade is None or run.label == _PROMPT else _SHADES[run.shade]
    if run.shade is not None and run.label == _DROPPED:
        style = f"{style} strike".strip()
    text.append(content, style=f"{style} underline".strip() if run.differs else style or None)
