"""Escaping of text for LaTeX."""

from __future__ import annotations

import re

_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "²": "$^2$",
    "\n": r"\\",
}
_SPECIAL = re.compile("|".join(map(re.escape, _SIGNS)))
_MINUS = re.compile(r"(?<![\w.\-])-(?=\d)")


def latex(text: str) -> str:
    """Text for LaTeX: its special characters escaped, mathematical signs in math mode, a minus before a digit too."""
    escaped = _SPECIAL.sub(lambda found: _SIGNS[found.group()], text)
    return _MINUS.sub("$-$", escaped)
