"""Tokens in a terminal: a row's text with kept and dropped tokens coloured, or marked where there is no colour."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.text import Text

from tokenclean.report.viewer.token_spans import TokenSpans

if TYPE_CHECKING:
    from tokenclean.ragged import Ragged
    from tokenclean.report.viewer.page_data import Shown, View

_PROMPT, _DROPPED, _KEPT = 0, 1, 2
_STYLES = ("dim", "yellow strike", "bold blue")
_MARKS = (("", ""), ("~", "~"), ("⟦", "⟧"))
# From the lowest scores to the highest; blue and orange differ for colour-blind readers too.
_SHADES = ("black on #ff9a2e", "black on #ffc891", "", "black on #a9cffb", "black on #5aa5f5")
# All control characters but tab and line feed, and those that change the direction of what follows.
_SIGNS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: "␡"}
_SIGNS |= {code: f"‹U+{code:04X}›" for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def labelled_text(
    spans: TokenSpans,
    label_T: np.ndarray,
    *,
    coloured: bool = True,
    differs_T: np.ndarray | None = None,
    shade_T: np.ndarray | None = None,
) -> Text:
    """The text of a row of T tokens, coloured by ``label_T`` (see ``token_labels``), or by ``shade_T``, from 0 for the
    lowest scores to 4.

    Without ``coloured``, runs of kept tokens are in ⟦ ⟧ and of dropped ones between tildes. Tokens of ``differs_T``
    are underlined, or have ≠ in front. Control characters are shown as signs, so that no text commands the terminal.
    A span of several tokens has the highest label of them.
    """
    looks = []
    for token, behind, start, end in spans.spans():
        here = slice(token, behind)
        differs = differs_T is not None and bool(differs_T[here].any())
        shade = None if shade_T is None else round(float(shade_T[here].mean()))
        looks.append((int(label_T[here].max()), differs, shade, spans.text[start:end]))
    text = Text()
    for (label, differs, shade), alike in groupby(looks, key=lambda look: look[:3]):
        content = visible("".join(look[3] for look in alike))
        if not coloured:
            before, after = _MARKS[label]
            text.append(f"{'≠' if differs else ''}{before}{content}{after}")
            continue
        style = _STYLES[label]
        if shade is not None and label != _PROMPT:
            style = f"{_SHADES[shade]} strike".strip() if label == _DROPPED else _SHADES[shade]
        text.append(content, style=f"{style} underline".strip() if differs else style or None)
    return text


def token_labels(is_response_T: np.ndarray, is_kept_T: np.ndarray) -> np.ndarray:
    """int8 (T,): 0 for tokens outside responses, 1 for dropped response tokens, 2 for kept ones."""
    return np.where(is_response_T, np.where(is_kept_T, _KEPT, _DROPPED), _PROMPT).astype(np.int8)


def terminal_text(
    view: View, *, proportion: float | None = None, paint: Literal["kept", "score"] = "kept", coloured: bool = True
) -> Iterator[tuple[str, Text]]:
    """A heading and the text of each conversation, once for each of the view's tables.

    ``proportion``: where to cut the whole pool; None for the tables' own labels. ``paint``: colour by label or score.
    Tokens that two tables label differently are marked (see ``labelled_text``).
    """
    labels, shades = [], []
    for shown in view.tables:
        is_response = shown.table["is_response"]
        is_kept_T = is_response.values.copy()
        is_kept_T[is_response.values] = shown.shown_R(shown.kept_R(proportion))
        labels.append(is_response.with_values(token_labels(is_response.values, is_kept_T)))
        shades.append(_shades(shown) if paint == "score" else None)
    differs = labels[0].with_values((labels[0].values == _KEPT) != (labels[-1].values == _KEPT))
    for row, spans in enumerate(view.spans):
        for shown, label, shade in zip(view.tables, labels, shades, strict=True):
            label_T, shade_T = label[row], None if shade is None else shade[row]
            kept, response = int(np.sum(label_T == _KEPT)), int(np.sum(label_T != _PROMPT))
            name = f"{shown.name}: " if len(view.tables) > 1 else ""
            counted = f"{len(label_T)} tokens, {response} targets, {kept} kept"
            if (rate := shown.noise.get(shown.table.ids[row])) is not None:
                counted += f", estimated noise {rate:.1%}"
            text = labelled_text(spans, label_T, coloured=coloured, differs_T=differs[row], shade_T=shade_T)
            yield f"{visible(shown.table.ids[row])}  {name}{counted}", text


def visible(text: str) -> str:
    """The text with control characters and direction overrides as signs: ␛, ‹U+202E›."""
    return text.translate(_SIGNS)


def _shades(shown: Shown) -> Ragged | None:
    """The number of the shade of each shown token's score, int64: the middle one without a score."""
    if shown.ranks_R is None:
        return None
    scores = shown.table["score"].values.astype(np.float64)
    is_scored = shown.table["is_response"].values & np.isfinite(scores)
    middle = len(_SHADES) // 2
    shades = np.full(len(scores), middle, dtype=np.int64)
    if is_scored.any():
        limit = np.quantile(np.abs(scores[is_scored]), 0.95) or 1.0
        shades[is_scored] += np.clip(np.rint(middle * scores[is_scored] / limit), -middle, middle).astype(np.int64)
    return shown.table["score"].with_values(shades)
